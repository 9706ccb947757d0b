from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BitMasks
from PIL import Image

from pffnet_d2.config import add_pffnet_config
from pffnet_d2.data.augmentation import Rotate90Transform
from pffnet_d2.data.mapper import PFFNetDatasetMapper
from pffnet_d2.data.prepared import write_semantic
from pffnet_d2.errors import InputError
from pffnet_d2.masks.coco import label_map_to_annotations

HEIGHT, WIDTH = 37, 52


def make(folder: Path, label_map: np.ndarray, semantic: bool = True) -> dict[str, Any]:
    """A data set dict whose image shows the labels: red the id, blue 255 - id."""
    image = np.stack([label_map, np.zeros_like(label_map), 255 - label_map], 2).astype(np.uint8)
    Image.fromarray(image).save(folder / "a.png")
    annotations = [{**a, "category_id": 0} for a in label_map_to_annotations(label_map)]
    height, width = label_map.shape
    entry = {
        "file_name": str(folder / "a.png"),
        "height": height,
        "width": width,
        "image_id": 4,
        "annotations": annotations,
    }
    if semantic:
        write_semantic(folder / "s.png", label_map)
        entry["sem_seg_file_name"] = str(folder / "s.png")
    return entry


def random_labels(seed: int = 0) -> np.ndarray:
    """Blocks of 20 objects, touching, some in several parts."""
    blocks = np.random.default_rng(seed).integers(0, 21, (HEIGHT // 4 + 1, WIDTH // 4 + 1))
    label_map = np.kron(blocks, np.ones((4, 4), int))[:HEIGHT, :WIDTH]
    return np.asarray(np.unique(label_map, return_inverse=True)[1].reshape(HEIGHT, WIDTH), np.int32)


def check(out: dict[str, Any], exact: bool = True) -> None:
    """Image, masks, boxes and semantic map tell the same."""
    instances = out["instances"]
    masks = instances.gt_masks.tensor
    assert masks.dtype == torch.bool
    assert tuple(masks.shape[1:]) == tuple(out["image"].shape[1:]) == instances.image_size
    assert masks.any(dim=(1, 2)).all()
    assert masks.sum(0).max() <= 1
    torch.testing.assert_close(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)
    assert instances.gt_classes.dtype == torch.int64
    assert len(instances.gt_classes) == len(masks)
    assert out["sem_seg"].dtype == torch.int64
    torch.testing.assert_close(out["sem_seg"], masks.any(0).long())
    if exact:
        red = out["image"][0]
        assert out["image"].dtype == torch.uint8
        ids = [int(red[m][0]) for m in masks]
        assert ids == sorted(set(ids))
        assert set(red.unique().tolist()) - {0} == set(ids)
        for i, mask in zip(ids, masks, strict=True):
            torch.testing.assert_close(red == i, mask)


@pytest.mark.parametrize(
    ("quarters", "horizontal", "vertical", "crop"), list(itertools.product(range(4), (0, 1), (0, 1), (0, 1)))
)
def test_everything_moves_together(tmp_path: Path, quarters: int, horizontal: int, vertical: int, crop: int) -> None:
    chain: list[Any] = [T.RandomCrop("absolute", (20, 24))] if crop else []
    height, width = (20, 24) if crop else (HEIGHT, WIDTH)
    chain += [
        T.RandomFlip(horizontal, horizontal=True, vertical=False),
        T.RandomFlip(vertical, horizontal=False, vertical=True),
    ]
    chain += [Rotate90Transform(quarters, height, width)]
    mapper = PFFNetDatasetMapper(True, augmentations=chain, image_format="RGB")
    out = mapper(make(tmp_path, random_labels(quarters), semantic=bool(horizontal)))
    check(out)
    assert out["image"].shape[1:] == ((width, height) if quarters % 2 else (height, width))
    assert (out["height"], out["width"], out["image_id"]) == (HEIGHT, WIDTH, 4)
    assert "annotations" not in out
    assert "sem_seg_file_name" not in out


def test_resized_masks_stay_on_the_semantic_grid(tmp_path: Path) -> None:
    for shortest in (25, 61):
        mapper = PFFNetDatasetMapper(True, augmentations=[T.ResizeShortestEdge(shortest, 1000)])
        check(mapper(make(tmp_path, random_labels())), exact=False)


def test_objects_outside_the_crop_are_dropped(tmp_path: Path) -> None:
    label_map = np.zeros((HEIGHT, WIDTH), np.int32)
    label_map[0:5, 0:5], label_map[30:35, 10:20] = 1, 2
    crop = T.CropTransform(8, 28, 30, 9)
    out = PFFNetDatasetMapper(True, augmentations=[crop])(make(tmp_path, label_map))
    assert out["instances"].gt_boxes.tensor.tolist() == [[2, 2, 12, 7]]
    crop = T.CropTransform(25, 0, 20, 20)
    out = PFFNetDatasetMapper(True, augmentations=[crop])(make(tmp_path, label_map))
    assert len(out["instances"]) == 0
    assert out["instances"].gt_masks.tensor.shape == (0, 20, 20)


def test_image_without_objects(tmp_path: Path) -> None:
    out = PFFNetDatasetMapper(True, augmentations=[Rotate90Transform(1, HEIGHT, WIDTH)])(
        make(tmp_path, np.zeros((HEIGHT, WIDTH), np.int32))
    )
    instances = out["instances"]
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_masks.tensor.shape == (0, WIDTH, HEIGHT)
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.shape == (0,)
    assert out["sem_seg"].sum() == 0


def test_overlapping_annotations_stay_whole(tmp_path: Path) -> None:
    a, b = np.zeros((HEIGHT, WIDTH), np.int32), np.zeros((HEIGHT, WIDTH), np.int32)
    a[5:15, 5:15], b[10:20, 8:30] = 1, 1
    entry = make(tmp_path, a, semantic=False)
    entry["annotations"] += [{**x, "category_id": 0} for x in label_map_to_annotations(b)]
    out = PFFNetDatasetMapper(True, augmentations=[Rotate90Transform(2, HEIGHT, WIDTH)])(entry)
    masks = out["instances"].gt_masks.tensor.numpy()
    np.testing.assert_array_equal(masks, np.stack([a, b])[:, ::-1, ::-1].astype(bool))
    np.testing.assert_array_equal(out["sem_seg"].numpy(), masks.any(0))
    assert out["instances"].gt_boxes.tensor[0].tolist() == [WIDTH - 15, HEIGHT - 15, WIDTH - 5, HEIGHT - 5]
    out = PFFNetDatasetMapper(True, augmentations=[T.CropTransform(40, 0, 10, 10)])(entry)
    assert out["instances"].gt_masks.tensor.shape == (0, 10, 10)


def test_classes_follow_their_masks(tmp_path: Path) -> None:
    label_map = np.zeros((HEIGHT, WIDTH), np.int32)
    label_map[0:5, 0:5], label_map[30:35, 10:20], label_map[0:5, 40:45] = 1, 2, 3
    entry = make(tmp_path, label_map)
    for category, annotation in enumerate(entry["annotations"]):
        annotation["category_id"] = category
    entry["annotations"].insert(1, {**entry["annotations"][0], "iscrowd": 1})
    out = PFFNetDatasetMapper(True, augmentations=[T.CropTransform(8, 0, 44, 37)])(entry)
    assert out["instances"].gt_classes.tolist() == [1, 2]


def test_configured_for_test_and_colour_order(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST = 0
    entry = make(tmp_path, random_labels())
    annotations = list(entry["annotations"])
    out = PFFNetDatasetMapper(cfg, False)(entry)
    assert set(out) == {"file_name", "height", "width", "image_id", "image"}
    np.testing.assert_array_equal(out["image"][2].numpy(), random_labels())  # BGR, size untouched
    np.testing.assert_array_equal(out["image"][0].numpy(), 255 - random_labels())
    assert entry["annotations"] == annotations  # the caller's dict is left as it was
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE, cfg.INPUT.MIN_SIZE_TRAIN = (
        True,
        "absolute",
        [16, 16],
        (0,),
    )
    cfg.INPUT.FORMAT = "RGB"
    mapper = PFFNetDatasetMapper(cfg, True)
    for _ in range(10):
        check(mapper(entry))
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(InputError, match=r"INPUT\.FORMAT 'L'"):
        PFFNetDatasetMapper(cfg, True)


def test_bad_files_are_named(tmp_path: Path) -> None:
    mapper = PFFNetDatasetMapper(True, augmentations=[])
    entry = make(tmp_path, random_labels())
    with pytest.raises(InputError, match=rf"a\.png: {HEIGHT} x {WIDTH} pixels where the data set says {HEIGHT} x 9"):
        mapper({**entry, "width": 9})
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match=r"small\.png: 3 x 3 pixels"):
        mapper({**entry, "sem_seg_file_name": str(tmp_path / "small.png")})
    wrong = label_map_to_annotations(np.ones((2, 2), np.int32))
    with pytest.raises(InputError, match=r"a\.png: annotation 1 .*2 x 2 pixels"):
        mapper({**entry, "annotations": [{**wrong[0], "category_id": 0}]})
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        mapper(entry)
