"""A model in Detectron2's own predictor gets images like those of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from pffnet_d2 import Predictor, config_path
from pffnet_d2.config import read_config
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import STRETCH, to_rgb8
from pffnet_d2.masks.compose import LabelMapRule, instances_to_label_map
from pffnet_d2.modeling.inputs import AsTrained

OBJECT_GUIDED = "dsb2018/ObjectGuided_R18_compact.yaml"


def dim_field(dtype: type = np.uint8, brightest: int = 40) -> np.ndarray:
    """An image (70, 90) of discs a few grey values brighter than the background."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:70, :90]
    image = rng.integers(3, 7, (70, 90))
    for y, x in rng.integers(10, 60, (8, 2)):
        image[(rows - y) ** 2 + (columns - x) ** 2 < 60] = rng.integers(brightest // 2, brightest)
    return image.astype(dtype)


@pytest.fixture(scope="module")
def stretching(tiny_run: Path) -> Predictor:
    opts = ["MODEL.PFFNET.NORMALISATION", "stretch", "MODEL.PFFNET.IMAGES", ""]
    return Predictor(tiny_run / "config.yaml", tiny_run / "model_final.pth", opts=opts)


@pytest.mark.parametrize(("dtype", "brightest"), [(np.uint8, 40), (np.uint16, 3000)])
def test_default_predictor_finds_the_same(
    stretching: Predictor, leave_no_trace: None, dtype: type, brightest: int
) -> None:
    image = dim_field(dtype, brightest)
    ours = stretching(image)
    instances = DefaultPredictor(stretching.cfg)(np.repeat(image[:, :, None], 3, axis=2))["instances"]
    theirs = instances_to_label_map(instances, LabelMapRule.from_config(stretching.cfg))
    assert ours.label_map.max() > 3
    assert (theirs == ours.label_map).all()


def test_of_a_square_model_too(tmp_path: Path, leave_no_trace: None) -> None:
    cfg = read_config(str(config_path(OBJECT_GUIDED)), ["MODEL.DEVICE", "cpu", "INPUT.SQUARE.TEST", "128"])
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    image = np.repeat(dim_field()[:, :, None], 3, axis=2) * 6
    theirs, ours = DefaultPredictor(cfg), Predictor(cfg)
    seen: list[torch.Tensor] = []
    for model in (theirs.model, ours.model.model):
        model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert theirs(image)["instances"].image_size == ours(image).label_map.shape == (70, 90)
    assert seen[0].shape == (1, 3, 128, 128)
    assert seen[0].equal(seen[1])


def as_trained(*opts: str) -> AsTrained:
    return AsTrained(read_config(str(config_path(OBJECT_GUIDED)), opts))


def of(image: np.ndarray, dtype: torch.dtype = torch.float32, **more: Any) -> dict[str, Any]:
    return {"image": torch.from_numpy(image.transpose(2, 0, 1).copy()).to(dtype), **more}


def test_normalised_images_stay_as_they_are() -> None:
    """Stretching twice would amplify the noise of an empty image."""
    change = as_trained("MODEL.PFFNET.NORMALISATION", "stretch", "INPUT.SQUARE.TEST", "0")
    raw = np.repeat(dim_field()[:, :, None], 3, axis=2)
    once = change(of(raw))["image"]
    assert (once.numpy() == to_rgb8(raw[:, :, 0], STRETCH).transpose(2, 0, 1)).all()
    assert once.dtype == torch.float32
    assert change(of(raw, normalised=True))["image"].max() == raw.max()
    assert change(of(raw, torch.uint8))["image"].dtype == torch.uint8
    fractions = of(raw / 2.0)
    assert change(fractions)["image"] is fractions["image"]


@pytest.mark.parametrize("stretch", [False, True])
def test_size(stretch: bool) -> None:
    change = as_trained("INPUT.SQUARE.TEST", "64", "INPUT.SQUARE.STRETCH", str(stretch))
    raw = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    resize = T.Resize((64, 64)) if stretch else T.ResizeShortestEdge(64, 64, "choice")
    expected = resize.get_transform(raw).apply_image(raw)
    found = change(of(raw))
    assert (found["image"].numpy() == expected.transpose(2, 0, 1)).all()
    assert (found["height"], found["width"]) == (70, 90)
    again = change({**found, "height": 7, "width": 9})
    assert again["image"] is found["image"]
    assert (again["height"], again["width"]) == (7, 9)


def test_as_it_is_by_default() -> None:
    change = as_trained("INPUT.SQUARE.TEST", "0")
    image = of(np.full((5, 6, 3), 9, np.uint8), torch.uint8)
    assert change(image)["image"] is image["image"]


def test_training_requires_the_squares_of_our_mapper() -> None:
    """Detectron2's own mapper ignores INPUT.SQUARE.TRAIN."""
    check = as_trained("INPUT.SQUARE.TRAIN", "64").check_training
    check([{"image": torch.zeros(3, 64, 64)}])
    with pytest.raises(InputError, match=r"INPUT\.SQUARE\.TRAIN 64: a training image has 64 x 80 pixels; train with"):
        check([{"image": torch.zeros(3, 64, 64)}, {"image": torch.zeros(3, 64, 80)}])
    as_trained("INPUT.SQUARE.TRAIN", "0").check_training([{"image": torch.zeros(3, 64, 80)}])
