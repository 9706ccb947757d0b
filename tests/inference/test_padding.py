"""Mirrored edges: by hand, and only where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.modeling import build_model

from pffnet_d2 import Predictor
from pffnet_d2.config import read_config
from pffnet_d2.errors import InputError
from pffnet_d2.inference.padding import mirror, padded


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 5), (4, 4)])
def test_as_numpy_reflects(size: tuple[int, int]) -> None:
    inside = torch.arange(3 * size[0] * size[1]).reshape(3, *size)
    image = torch.full((3, 9, 11), -1)
    image[:, : size[0], : size[1]] = inside
    mirror(image, size)
    expected = np.pad(inside.numpy(), ((0, 0), (0, 9 - size[0]), (0, 11 - size[1])), mode="reflect")
    np.testing.assert_array_equal(image.numpy(), expected)


def test_only_outside_training_and_only_if_asked(small_model: Any) -> None:
    image = torch.arange(3 * 40 * 50).reshape(3, 40, 50) % 251
    for padding in ("zero", "mirror"):
        cfg = read_config(str(small_model.config), ["MODEL.PFFNET.TEST_PADDING", padding])
        model = padded(build_model(cfg), cfg)
        for training in (True, False):
            batch = model.train(training).preprocess_image([{"image": image}])
            assert batch.image_sizes == [(40, 50)]
            assert (batch.tensor[0, :, :40, :50] == image - 128.0).all()
            mirrored = bool((batch.tensor[0, :, 40:64, :50] == (image - 128.0)[:, 15:39].flip(1)).all())
            assert mirrored == (padding == "mirror" and not training)
            assert bool((batch.tensor[0, :, 40:] == 0).all()) != mirrored


def test_the_predictor_pads_so(small_model: Any) -> None:
    image = np.random.default_rng(0).integers(0, 255, (70, 70, 3)).astype(np.uint8)
    zero, mirrored, larger = (
        Predictor(small_model.config, small_model.weights, opts=["MODEL.PFFNET.TEST_PADDING", padding])(given)
        for padding, given in (
            ("zero", image),
            ("mirror", image),
            ("zero", np.pad(image, ((0, 26), (0, 26), (0, 0)), mode="reflect")),
        )
    )
    assert mirrored.label_map.shape == (70, 70)
    assert not np.array_equal(zero.scores["class_score"], mirrored.scores["class_score"])
    # The same pixels for the network; only boxes that leave the image are cut.
    assert mirrored.scores["class_score"][0] == pytest.approx(larger.scores["class_score"][0], abs=0.05)


def test_unknown(small_model: Any) -> None:
    with pytest.raises(InputError, match="'edge' is not one of zero, mirror"):
        Predictor(small_model.config, small_model.weights, opts=["MODEL.PFFNET.TEST_PADDING", "edge"])
