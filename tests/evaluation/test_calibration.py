"""True IoU of predicted masks."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

import pffnet_d2  # noqa: F401  (registers)
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.calibration import best_ious, measure
from pffnet_d2.imaging.read import read_image
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.masks.instance_mask import InstanceMask


def test_best_ious_by_hand() -> None:
    truth = np.zeros((10, 20), np.int32)
    truth[0:4, 0:4] = 1
    truth[0:4, 4:12] = 2
    mask = np.ones((4, 8), bool)  # columns 2..9: 8 pixels of object 1 (16), 24 of object 2 (32)
    whole, empty = InstanceMask(0, 0, np.ones((4, 4), bool)), InstanceMask(0, 0, np.zeros((0, 0), bool))
    masks = [InstanceMask(0, 2, mask), whole, InstanceMask(6, 3, mask), empty]
    assert best_ious(masks, truth).tolist() == [24 / 40, 1.0, 0.0, 0.0]
    assert best_ious([InstanceMask(0, 0, mask)], np.zeros((10, 20), np.int32)).tolist() == [0.0]


def test_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("phantoms", None, tmp_path, Selection(count=2))
    monkeypatch.setenv("DETECTRON2_DATASETS", os.fspath(tmp_path))

    class LeftHalf:
        """Always finds the left half of the image."""

        rule = LabelMapRule(mask_threshold=0.5)

        def predict(self, images: list[np.ndarray]) -> list[SimpleNamespace]:
            (image,) = images
            seen.append(image)
            height, width = image.shape[:2]
            found = Instances((height, width), pred_boxes=Boxes(torch.tensor([[0.0, 0.0, width / 2, height]])))
            found.pred_masks = torch.ones(1, 1, 28, 28)
            return [SimpleNamespace(instances=found, scores={"score": np.array([0.5])})]

    seen: list[np.ndarray] = []
    table = measure(LeftHalf(), "phantoms_val")
    assert table["score"].tolist() == [0.5, 0.5]
    files = sorted((tmp_path / "phantoms" / "val" / "images").iterdir())
    for image, file in zip(seen, files, strict=True):
        np.testing.assert_array_equal(image, read_image(file))  # not normalised once more
    assert (table["iou"] > 0).all()
    assert (table["iou"] < 0.2).all()
    assert len(measure(LeftHalf(), "phantoms_val", limit=1)["iou"]) == 1
    with pytest.raises(InputError, match="no such data set"):
        measure(LeftHalf(), "nuclei")
    with pytest.raises(InputError, match="nothing was found"):
        measure(LeftHalf(), "phantoms_val", limit=0)
    name = "without_truth_for_calibration"
    DatasetCatalog.register(name, lambda: [{"file_name": "a.png", "height": 4, "width": 4}])
    try:
        with pytest.raises(InputError, match=r"a\.png has no truth"):
            measure(LeftHalf(), name)
    finally:
        DatasetCatalog.remove(name)
