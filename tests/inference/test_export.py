"""Files read back by other programs: tifffile, pycocotools, matplotlib, roifile, csv."""

from __future__ import annotations

import csv
import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path as Polygon

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import (
    FORMATS,
    Export,
    check_formats,
    write_coco,
    write_csv,
    write_geojson,
    write_label_tiff,
    write_rois,
)
from pffnet_d2.masks.compose import contiguous


@pytest.fixture
def label_map() -> np.ndarray:
    """A square with a hole, an object in two parts, one at the last corner; 30 x 50 pixels."""
    label_map = np.zeros((30, 50), np.int32)
    label_map[4:12, 5:20] = 1
    label_map[7:9, 8:11] = 0
    label_map[20:25, 2:6] = label_map[20:23, 10:13] = 2
    label_map[28:, 47:] = 3
    return label_map


SCORES = {
    "score": np.array([0.9, 0.8, 0.123456789]),
    "class_score": np.array([0.95, 0.85, 0.5]),
    "mask_quality": np.array([0.947, 0.941, 0.247]),
}


def filled(rings: list, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixel centres in an odd number of closed rings."""
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([xs.ravel(), ys.ravel()], axis=1)
    return (np.sum([Polygon(np.array(r)).contains_points(centres) for r in rings], axis=0) % 2 == 1).reshape(shape)


def from_geojson(path: Path, shape: tuple[int, int]) -> np.ndarray:
    painted = np.zeros(shape, np.int32)
    for feature in json.loads(path.read_text())["features"]:
        geometry = feature["geometry"]
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        assert all(ring[0] == ring[-1] for polygon in polygons for ring in polygon)
        mask = filled([ring for polygon in polygons for ring in polygon], shape)
        assert not painted[mask].any()
        painted[mask] = feature["properties"]["measurements"]["Label"]
    return painted


def from_rois(path: Path, shape: tuple[int, int]) -> np.ndarray:
    roifile = pytest.importorskip("roifile")
    painted = np.zeros(shape, np.int32)
    for roi in roifile.roiread(path) if zipfile.ZipFile(path).namelist() else []:
        rings = [np.concatenate([ring, ring[:1]]) for ring in roi.coordinates(multi=True)]
        corners = np.concatenate(rings)
        assert (roi.left, roi.top) == tuple(corners.min(axis=0))
        assert (roi.right, roi.bottom) == tuple(corners.max(axis=0))
        painted[filled(rings, shape)] = int(roi.name)
    return painted


def from_coco(path: Path, shape: tuple[int, int]) -> np.ndarray:
    painted = np.zeros(shape, np.int32)
    for annotation in json.loads(path.read_text())["annotations"]:
        mask = mask_util.decode(annotation["segmentation"]).astype(bool)
        assert annotation["area"] == mask.sum()
        painted[mask] = annotation["id"]
    return painted


def export(label_map: np.ndarray) -> Export:
    n = int(label_map.max())
    pixels = np.arange(label_map.size, dtype=np.uint16).reshape(label_map.shape)
    return Export("a.tif", np.zeros((*label_map.shape, 3), np.uint8), pixels, label_map, {"score": np.ones(n)})


@settings(max_examples=25)
@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=15), elements=st.integers(0, 4)))
def test_every_object_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray) -> None:
    pytest.importorskip("roifile")
    label_map, folder = contiguous(labels), tmp_path_factory.mktemp("export")
    for name in ("label-tiff", "geojson", "roi", "coco"):
        FORMATS[name][1](folder / f"{name}.zip", export(label_map))
    assert (tifffile.imread(folder / "label-tiff.zip") == label_map).all()
    assert (from_geojson(folder / "geojson.zip", label_map.shape) == label_map).all()
    assert (from_rois(folder / "roi.zip", label_map.shape) == label_map).all()
    assert (from_coco(folder / "coco.zip", label_map.shape) == label_map).all()
    assert sorted(p.name for p in folder.iterdir()) == ["coco.zip", "geojson.zip", "label-tiff.zip", "roi.zip"]


def test_geojson_is_what_qupath_reads(tmp_path: Path, label_map: np.ndarray) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, label_map, SCORES, pixel_size=(0.5, 0.5), category="nucleus")
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


def test_rois_by_an_independent_reading_of_the_bytes(tmp_path: Path, label_map: np.ndarray) -> None:
    roifile = pytest.importorskip("roifile")
    path = tmp_path / "a.zip"
    for _ in range(2):  # roifile's own writer would append
        write_rois(path, label_map, SCORES)
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["00001.roi", "00002.roi", "00003.roi"]
    with zipfile.ZipFile(path) as archive:
        data = archive.read("00003.roi")
    # ImageJ's RoiDecoder: magic, type (8 traced) at 6, top left bottom right at 8, count at 16, x then y from 64.
    assert data[:4] == b"Iout"
    assert data[6] == 8
    assert np.frombuffer(data[8:18], ">i2").tolist() == [28, 47, 30, 50, 4]
    assert np.frombuffer(data[64:80], ">i2").tolist() == [0, 3, 3, 0, 0, 0, 2, 2]
    first = roifile.roiread(path)[0]
    assert first.composite
    assert "score: 0.9\n" in first.props


def test_rois_beyond_a_signed_short(tmp_path: Path) -> None:
    pytest.importorskip("roifile")
    label_map = np.zeros((3, 40000), np.int32)
    label_map[1, 39000:39900] = 1
    write_rois(tmp_path / "a.zip", label_map)
    import roifile

    (roi,) = roifile.roiread(tmp_path / "a.zip")
    assert (np.array(roi.coordinates()) % 2**16).min(axis=0).tolist() == [39000, 1]
    with pytest.raises(InputError, match=r"65,535"):
        write_rois(tmp_path / "b.zip", np.zeros((1, 70000), np.int32))
    assert not (tmp_path / "b.zip").exists()


def test_coco(tmp_path: Path, label_map: np.ndarray) -> None:
    write_coco(tmp_path / "a.json", label_map, SCORES, file_name="a.tif", category="nucleus")
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["images"] == [{"id": 1, "file_name": "a.tif", "height": 30, "width": 50}]
    assert data["categories"][0]["name"] == "nucleus"
    last = data["annotations"][2]
    assert (last["bbox"], last["area"], last["score"], last["mask_quality"]) == ([47, 28, 3, 2], 6, 0.123457, 0.247)
    write_coco(tmp_path / "none.json", np.zeros((4, 5), np.int32), file_name="a.tif")
    assert json.loads((tmp_path / "none.json").read_text())["annotations"] == []


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_in_pixels_and_micrometres(tmp_path: Path, label_map: np.ndarray) -> None:
    pixels = np.zeros((30, 50), np.uint16)
    pixels[label_map == 3] = [60000, 65535, 65535, 65535, 65535, 65000]
    write_csv(tmp_path / "px.csv", label_map, SCORES, pixels=pixels)
    write_csv(tmp_path / "um.csv", label_map, SCORES, pixels=pixels, pixel_size=(0.5, 0.5))
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


def test_label_tiff_depth_and_resolution(tmp_path: Path, label_map: np.ndarray) -> None:
    write_label_tiff(tmp_path / "a.tif", label_map, pixel_size=(0.5, 0.25))
    write_label_tiff(tmp_path / "b.tif", label_map, resolution=((300, 1), (150, 1), 2))
    many = np.arange(70000, dtype=np.int32).reshape(70, 1000)
    write_label_tiff(tmp_path / "c.tif", many)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0]
        assert page.dtype == np.uint16
        assert page.get_resolution("micrometer") == pytest.approx((4, 2))  # pixels a micrometre, x and y
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tags = tiff.pages[0].tags
        assert (tags["XResolution"].value, tags["YResolution"].value) == ((300, 1), (150, 1))
        assert tags["ResolutionUnit"].value == 2
    assert tifffile.imread(tmp_path / "c.tif").dtype == np.uint32
    assert (tifffile.imread(tmp_path / "c.tif") == many).all()


def test_what_fails_leaves_nothing_and_what_was_there(tmp_path: Path, label_map: np.ndarray) -> None:
    path = tmp_path / "a.csv"
    path.write_text("before")
    with pytest.raises(InputError, match="not square"):
        write_csv(path, label_map, pixel_size=(1, 2))
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines(["half", None])
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    with pytest.raises(InputError, match="cannot be written"):
        write_csv(tmp_path / "no folder" / "a.csv", label_map)


def test_unknown_format_and_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'png' is unknown; choose from label-tiff,overlay,"):
        check_formats(["csv", "png"])
    monkeypatch.setitem(sys.modules, "roifile", None)
    check_formats(["csv", "geojson"])
    with pytest.raises(InputError, match=r"pip install 'roifile"):
        check_formats(["roi"])
