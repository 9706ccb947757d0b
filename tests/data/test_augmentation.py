from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import transforms as T

from pffnet_d2.config import add_pffnet_config
from pffnet_d2.data.augmentation import RandomRotate90, Rotate90Transform, build_augmentations
from pffnet_d2.errors import InputError


@pytest.fixture
def cfg() -> Any:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    return cfg


@pytest.mark.parametrize("quarters", range(4))
def test_points_boxes_and_pixels_turn_alike(quarters: int) -> None:
    rng = np.random.default_rng(quarters)
    height, width = 5, 8
    turn = Rotate90Transform(quarters, height, width)
    for _ in range(10):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        image = np.zeros((height, width), np.uint8)
        image[y, x] = 1
        turned = turn.apply_image(image)
        ((ty, tx),) = np.argwhere(turned)
        np.testing.assert_allclose(turn.apply_coords(np.array([[x + 0.5, y + 0.5]])), [[tx + 0.5, ty + 0.5]])
        np.testing.assert_allclose(turn.apply_box(np.array([[x, y, x + 1, y + 1]])), [[tx, ty, tx + 1, ty + 1]])
        np.testing.assert_array_equal(turn.apply_segmentation(image), turned)
    points = rng.uniform(0, 5, (6, 2))
    picture = rng.integers(0, 255, (height, width, 3))
    np.testing.assert_array_equal(turn.inverse().apply_image(turn.apply_image(picture)), picture)
    np.testing.assert_allclose(turn.inverse().apply_coords(turn.apply_coords(points)), points)


def test_a_quarter_is_counter_clockwise() -> None:
    assert Rotate90Transform(1, 2, 2).apply_image(np.array([[1, 2], [3, 4]])).tolist() == [[2, 4], [1, 3]]


def test_all_four_quarters_are_drawn() -> None:
    np.random.seed(0)  # noqa: NPY002  (Detectron2 draws from it)
    image = np.zeros((4, 6, 3), np.uint8)
    assert {RandomRotate90().get_transform(image).quarters for _ in range(60)} == {0, 1, 2, 3}


def test_build(cfg: Any) -> None:
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [256, 256]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (0,), 0
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["flip", "rotate90"]
    kinds = [type(a) for a in build_augmentations(cfg, True)]
    assert kinds == [T.RandomCrop, T.RandomFlip, T.RandomFlip, RandomRotate90]
    assert build_augmentations(cfg, False) == []
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.PFFNET.AUGMENTATIONS = (300, 400), 500, []
    assert [type(a) for a in build_augmentations(cfg, True)] == [T.RandomCrop, T.ResizeShortestEdge]
    assert [type(a) for a in build_augmentations(cfg, False)] == [T.ResizeShortestEdge]
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["flipp"]
    with pytest.raises(InputError, match="unknown augmentation 'flipp'; choose from flip, rotate90"):
        build_augmentations(cfg, True)
