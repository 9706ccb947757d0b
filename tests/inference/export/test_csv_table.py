"""Measurements, read back by csv."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from pffnet_d2.inference.export import write_csv


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_in_pixels_and_micrometres(tmp_path: Path, label_map: np.ndarray, scores: dict[str, np.ndarray]) -> None:
    pixels = np.zeros((30, 50), np.uint16)
    pixels[label_map == 3] = [60000, 65535, 65535, 65535, 65535, 65000]
    write_csv(tmp_path / "px.csv", label_map, scores, pixels=pixels)
    write_csv(tmp_path / "um.csv", label_map, scores, pixels=pixels, pixel_size=(0.5, 0.5))
    in_px, in_um = rows(tmp_path / "px.csv"), rows(tmp_path / "um.csv")
    assert [row["label"] for row in in_px] == ["1", "2", "3"]
    first, _, last = in_px
    assert (first["area_px2"], first["score"], first["bbox_x"], first["bbox_width"]) == ("114", "0.9", "5", "15")
    assert (last["centroid_x"], last["centroid_y"]) == ("48.5", "29")
    assert (last["intensity_min"], last["intensity_max"]) == ("60000", "65535")
    assert float(last["intensity_mean"]) == pytest.approx((60000 + 4 * 65535 + 65000) / 6, rel=1e-5)
    # A rectangle of 15 x 8: second moments (n^2 - 1) / 12 for columns and rows, without the hole it is not 3's.
    assert float(last["eccentricity"]) == pytest.approx(math.sqrt(1 - 3 / 8))
    for a, b in zip(in_px, in_um, strict=True):
        assert float(b["area_um2"]) == pytest.approx(float(a["area_px2"]) / 4, rel=1e-5)
        assert float(b["perimeter_um"]) == pytest.approx(float(a["perimeter_px"]) / 2, rel=1e-5)
        assert b["eccentricity"] == a["eccentricity"]
        assert b["centroid_x"] == a["centroid_x"]


def test_csv_of_colours_and_of_nothing(tmp_path: Path, label_map: np.ndarray) -> None:
    rgb = np.zeros((30, 50, 3), np.uint8)
    rgb[label_map == 2] = (10, 20, 30)
    write_csv(tmp_path / "a.csv", label_map, pixels=rgb)
    write_csv(tmp_path / "none.csv", np.zeros((30, 50), np.int32), {"score": np.zeros(0)}, pixels=rgb)
    second = rows(tmp_path / "a.csv")[1]
    assert [second[f"intensity_mean_{i}"] for i in range(3)] == ["10", "20", "30"]
    assert rows(tmp_path / "none.csv") == []
    with open(tmp_path / "none.csv") as file:
        header = file.readline().strip().split(",")
    assert header == ["label", "score", *list(second)[1:]]
