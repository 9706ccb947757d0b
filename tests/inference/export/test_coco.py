"""One image as a COCO data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pffnet_d2.inference.export import write_coco_image


def test_coco(tmp_path: Path, label_map: np.ndarray, scores: dict[str, np.ndarray]) -> None:
    write_coco_image(tmp_path / "a.json", label_map, scores, file_name="a.tif", category="nucleus")
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["images"] == [{"id": 1, "file_name": "a.tif", "height": 30, "width": 50}]
    assert data["categories"][0]["name"] == "nucleus"
    last = data["annotations"][2]
    assert (last["bbox"], last["area"], last["score"], last["mask_quality"]) == ([47, 28, 3, 2], 6, 0.123457, 0.247)
    write_coco_image(tmp_path / "none.json", np.zeros((4, 5), np.int32), file_name="a.tif")
    assert json.loads((tmp_path / "none.json").read_text())["annotations"] == []
