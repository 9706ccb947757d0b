"""Pasting objects of one crop onto another: image, masks, boxes and semantic truth keep telling the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from PIL import Image

from pffnet_d2.config import add_pffnet_config
from pffnet_d2.data import copy_paste
from pffnet_d2.data.augmentation import CopyPaste, GreyValues, build_augmentations, invert
from pffnet_d2.data.copy_paste import Crop, Partners, paste_objects
from pffnet_d2.data.mapper import PFFNetDatasetMapper
from pffnet_d2.data.prepared import write_semantic
from pffnet_d2.errors import InputError
from pffnet_d2.masks.coco import label_map_to_annotations


def crop_of(label_map: np.ndarray, grey: int, category: int = 0) -> Crop:
    """Each object i of a label map has the grey value ``grey`` + i, the ground has ``grey``."""
    masks = np.stack([label_map == i for i in range(1, label_map.max() + 1)])
    boxes = np.array([[c.min(), r.min(), c.max() + 1, r.max() + 1] for r, c in map(np.nonzero, masks)], np.float32)
    image = (label_map + grey).astype(np.uint8)[..., None].repeat(3, axis=2)
    return Crop(image, (label_map > 0).astype(np.uint8), masks, boxes, np.full(len(masks), category, np.int64))


@pytest.fixture
def below() -> Crop:
    labels = np.zeros((12, 16), np.int32)
    labels[2:6, 2:6], labels[8:10, 3:13], labels[1:3, 12:14] = 1, 2, 3
    return crop_of(labels, 10)


@pytest.fixture
def above() -> Crop:
    labels = np.zeros((12, 16), np.int32)
    labels[3:6, 2:8], labels[0:2, 9:11], labels[8:11, 4:6] = 1, 2, 3  # 2 touches the border
    return crop_of(labels, 100, category=7)


def test_by_hand(below: Crop, above: Crop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_paste, "PASTED", 1.0)
    before = [np.copy(x) for x in (*below, *above)]
    out = paste_objects(below, above)
    # object 1 keeps 4 of 16 pixels and goes, 2 keeps 16 of 20, 3 all; two are pasted
    assert out.boxes.tolist() == [[3, 8, 13, 10], [12, 1, 14, 3], [2, 3, 8, 6], [4, 8, 6, 11]]
    assert out.masks.sum(axis=(1, 2)).tolist() == [16, 4, 18, 6]
    assert out.classes.tolist() == [0, 0, 7, 7]
    grey = out.image[..., 0]
    assert [set(grey[mask].tolist()) for mask in out.masks] == [{12}, {13}, {101}, {103}]
    assert set(grey[2, 2:6].tolist()) == {11}  # what is left of object 1 stays object
    assert out.semantic is not None
    np.testing.assert_array_equal(out.semantic, grey != 10)
    assert out.image.dtype == out.semantic.dtype == np.uint8
    for old, new in zip(before, (*below, *above), strict=True):
        np.testing.assert_array_equal(old, new)


def test_ignored_pixels_and_no_semantic_file(below: Crop, above: Crop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_paste, "PASTED", 1.0)
    ignored = np.full((12, 16), 255, np.uint8)
    out = paste_objects(below._replace(semantic=ignored), above)
    assert out.semantic is not None
    assert (out.semantic == 1).sum() == 24
    assert (out.semantic == 255).sum() == 12 * 16 - 24
    assert paste_objects(below._replace(semantic=None), above).semantic is None


def test_about_half_is_pasted_and_the_seed_tells_which(below: Crop, above: Crop) -> None:
    numbers = []
    for seed in range(200):
        np.random.seed(seed)  # noqa: NPY002
        out = paste_objects(below, above)
        numbers.append(int((out.classes == 7).sum()))
        np.random.seed(seed)  # noqa: NPY002
        np.testing.assert_array_equal(paste_objects(below, above).image, out.image)
    assert set(numbers) == {0, 1, 2}
    assert 0.8 < np.mean(numbers) < 1.2


@pytest.mark.parametrize("shape", [(30, 40), (7, 40), (30, 9), (6, 7)])
def test_crops_of_different_sizes(below: Crop, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pasted objects lie anywhere inside, whole; masks, boxes, image and semantic truth agree."""
    monkeypatch.setattr(copy_paste, "PASTED", 1.0)
    labels = np.zeros(shape, np.int32)
    for i, (y, x) in enumerate(((y, x) for y in range(1, shape[0] - 2, 4) for x in range(1, shape[1] - 2, 4)), 1):
        labels[y : y + 2, x : x + 2] = i
    other = crop_of(labels, 100, category=7)
    places = set()
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002
        out = paste_objects(below, other)
        assert out.image.shape == below.image.shape
        pasted = out.masks[out.classes == 7]
        assert len(pasted)
        assert (pasted.sum(axis=(1, 2)) == 4).all()
        assert not (pasted[:, 0].any() or pasted[:, -1].any()) or shape[0] < 12
        places |= {tuple(box) for box in out.boxes.tolist()}
        assert out.masks.sum(axis=0).max() == 1
        for mask, box in zip(out.masks, out.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert len(np.unique(out.image[mask])) == 1
        assert out.semantic is not None
        np.testing.assert_array_equal(out.semantic, out.image[..., 0] != 10)
    assert len(places) > 10


def test_nothing_to_paste_and_nothing_below(below: Crop, above: Crop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_paste, "PASTED", 1.0)
    empty = Crop(
        np.zeros((12, 16, 3), np.uint8),
        np.zeros((12, 16), np.uint8),
        np.zeros((0, 12, 16), np.bool_),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
    )
    for old, new in zip(below, paste_objects(below, empty), strict=True):
        np.testing.assert_array_equal(old, new)
    assert paste_objects(empty, above).boxes.tolist() == [[2, 3, 8, 6], [4, 8, 6, 11]]
    assert len(paste_objects(empty, empty).masks) == 0


def test_partners_are_of_the_same_group() -> None:
    groups = ["a", "b", "a", "a", "c"]
    partners = Partners(groups)
    np.random.seed(0)  # noqa: NPY002
    drawn = {index: {partners(index) for _ in range(60)} for index in range(5)}
    assert drawn == {0: {0, 2, 3}, 1: {1}, 2: {0, 2, 3}, 3: {0, 2, 3}, 4: {4}}


def entry_of(folder: Path, seed: int) -> dict[str, Any]:
    """An image of 40 x 50 whose objects, at random, have grey value 50, on black."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 50), np.int32)
    for i in range(1, 9):
        y, x = rng.integers(34), rng.integers(44)
        labels[y : y + 6, x : x + 6] = i
    Image.fromarray((50 * (labels > 0)).astype(np.uint8)[..., None].repeat(3, axis=2)).save(folder / f"{seed}.png")
    write_semantic(folder / f"{seed}s.png", labels)
    return {
        "file_name": str(folder / f"{seed}.png"),
        "sem_seg_file_name": str(folder / f"{seed}s.png"),
        "height": 40,
        "width": 50,
        "annotations": [{**a, "category_id": 0} for a in label_map_to_annotations(labels)],
    }


def test_the_mapper_pastes_what_the_loader_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of grey values before it apply to each crop alone, those after it to both together."""
    monkeypatch.setattr(copy_paste, "PASTED", 1.0)
    first, second = entry_of(tmp_path, 1), entry_of(tmp_path, 2)
    flip = T.RandomFlip(1.0, horizontal=True, vertical=False)
    plain = PFFNetDatasetMapper(True, augmentations=[flip])
    more = 0
    for after in ([], [GreyValues(invert, 1.0)]):
        mapper = PFFNetDatasetMapper(True, augmentations=[flip, CopyPaste(1.0), *after])
        out = mapper(first, second)
        seen = (255 - out["image"] if after else out["image"])[0] > 0
        masks = out["instances"].gt_masks.tensor
        torch.testing.assert_close(seen.long(), out["sem_seg"])
        assert (masks.any(0) & ~seen).sum() == 0
        torch.testing.assert_close(
            out["instances"].gt_boxes.tensor, out["instances"].gt_masks.get_bounding_boxes().tensor
        )
        expected = plain(first)["sem_seg"].bool()
        assert (seen | expected).sum() == seen.sum() > expected.sum()
        more += (seen & ~plain(second)["sem_seg"].bool() & ~expected).sum().item()
    assert more == 0  # nothing but the objects of the two
    alone = mapper(first)  # the other crop is of the same image, which lies on itself here
    assert len(alone["instances"]) <= len(first["annotations"])
    never = PFFNetDatasetMapper(True, augmentations=[flip, CopyPaste(0.0)])(first, second)
    torch.testing.assert_close(never["image"], plain(first)["image"])
    unlabelled = {key: value for key, value in second.items() if key not in ("annotations", "sem_seg_file_name")}
    assert "instances" not in mapper(unlabelled, first)
    assert len(mapper(first, unlabelled)["instances"]) == len(plain(first)["instances"])


def test_its_place_in_the_list() -> None:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["rotate90", "copy_paste", "scale", "stain"]
    kinds = [type(a).__name__ for a in build_augmentations(cfg, True)]
    assert kinds == ["RandomScale", "RandomRotate90", "CopyPaste", "GreyValues"]
    for names, says in (
        (["copy_paste", "flip"], "flip follows copy_paste"),
        (["copy_paste", "stain", "copy_paste"], "copy_paste follows copy_paste"),
    ):
        cfg.INPUT.PFFNET.AUGMENTATIONS = names
        with pytest.raises(InputError, match=f"{says}; list copy_paste once, after flip, hflip, rotate90"):
            build_augmentations(cfg, True)
