"""plots.py: diagrams that depend on their data, are written whole, and name what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.visualization.plots import calibration, image_scatter, learning_curve, read_metrics


def metrics_file(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_read_metrics_orders_and_merges(tmp_path: Path) -> None:
    """A run killed at iteration 59 and resumed after 39: the second value of 59 counts, half a line is left out."""
    file = metrics_file(
        tmp_path / "metrics.json",
        [
            json.dumps({"iteration": 19, "total_loss": 3.0}),
            json.dumps({"iteration": 59, "total_loss": 9.0, "lr": 0.1}),
            '{"iteration": 79, "total_',
            json.dumps({"iteration": 39, "total_loss": 2.0}),
            json.dumps({"iteration": 59, "total_loss": 1.0}),
        ],
    )
    assert [(m["iteration"], m["total_loss"]) for m in read_metrics(file)] == [(19, 3.0), (39, 2.0), (59, 1.0)]


def test_learning_curve_is_a_picture_that_depends_on_its_data(tmp_path: Path) -> None:
    pictures = []
    for name, scores in (("a", {}), ("b", {"label_map/AJI": 0.7}), ("c", {"label_map/AJI": 0.2})):
        lines = [json.dumps({"iteration": i, "total_loss": 5.0 / i, "loss_mask": 1.0 / i}) for i in (20, 40, 60)]
        lines.append(json.dumps({"iteration": 40, "label_map/AJI": 0.1} | scores if scores else {"iteration": 40}))
        lines.append(json.dumps({"iteration": 60, **scores}))
        learning_curve(metrics_file(tmp_path / f"{name}.json", lines), tmp_path / "curves" / f"{name}.png")
        pictures.append(np.asarray(Image.open(tmp_path / "curves" / f"{name}.png")))
    assert pictures[1].shape[0] > pictures[0].shape[0]  # scores have an axis of their own
    assert pictures[0].std() > 0
    assert sorted(p.name for p in (tmp_path / "curves").iterdir()) == ["a.png", "b.png", "c.png"]


def test_learning_curve_without_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.json: No such file"):
        learning_curve(tmp_path / "metrics.json", tmp_path / "x.png")
    with pytest.raises(InputError, match="contains no iterations"):
        learning_curve(metrics_file(tmp_path / "metrics.json", ["{}"]), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_calibration_by_hand(tmp_path: Path) -> None:
    """Two tenths: scores 0.95 with IoU 0.75 (3 objects), 0.25 with IoU 0.45 (1 object)."""
    score, iou = np.array([0.95, 0.95, 0.95, 0.25]), np.array([0.75, 0.7, 0.8, 0.45])
    lines = calibration({"score": score, "mask_quality": np.full(4, 0.5), "iou": iou}, tmp_path / "new" / "a.png")
    assert lines == [
        "mask_quality: r undefined, calibration error 0.175, mean minus true IoU -0.175 (4 objects, 1 tenths)",
        "score: r 0.965, calibration error 0.200, mean minus true IoU +0.100 (4 objects, 2 tenths)",
    ]
    assert np.asarray(Image.open(tmp_path / "new" / "a.png")).std() > 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_image_scatter(tmp_path: Path) -> None:
    table = tmp_path / "label_map.csv"
    pictures = []
    for found in (3, 30):
        table.write_text(f"image_id,truths,predictions,AJI,PQ\n1,20,18,0.8,0.7\n2,40,{found},0.6,0.5\n")
        image_scatter(table, tmp_path / "a.png")
        pictures.append((tmp_path / "a.png").read_bytes())
    assert pictures[0] != pictures[1]
    for text, words in (
        ("a,b\n1,2\n", "is not the label_map.csv"),
        ("truths,predictions,AJI,PQ\n", "contains no images"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=words):
            image_scatter(table, tmp_path / "b.png")
    with pytest.raises(InputError, match=r"none\.csv: No such file"):
        image_scatter(tmp_path / "none.csv", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.png: cannot be written"):
        calibration({"score": np.ones(1), "iou": np.ones(1)}, tmp_path / "file" / "a.png")
