"""What QuPath reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pffnet_d2.inference.export import write_geojson


def test_geojson_is_what_qupath_reads(tmp_path: Path, label_map: np.ndarray, scores: dict[str, np.ndarray]) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, label_map, scores, pixel_size=(0.5, 0.5), category="nucleus")
    collection = json.loads(path.read_text())
    assert collection["type"] == "FeatureCollection"
    assert [f["geometry"]["type"] for f in collection["features"]] == ["Polygon", "MultiPolygon", "Polygon"]
    first, second, third = (f["properties"] for f in collection["features"])
    assert {p["objectType"] for p in (first, second, third)} == {"detection"}
    assert first["classification"]["name"] == "nucleus"
    assert first["measurements"] == {
        "Label": 1,
        "Score": 0.9,
        "Class score": 0.95,
        "Mask quality": 0.947,
        "Area um^2": (8 * 15 - 6) / 4,
    }
    assert third["measurements"]["Score"] == 0.123457
    assert len(collection["features"][0]["geometry"]["coordinates"]) == 2  # with its hole
    assert collection["features"][2]["geometry"]["coordinates"] == [[[47, 28], [50, 28], [50, 30], [47, 30], [47, 28]]]
    ids = [f["id"] for f in collection["features"]]
    assert len(set(ids)) == 3
    write_geojson(path, label_map)
    assert [f["id"] for f in json.loads(path.read_text())["features"]] == ids
