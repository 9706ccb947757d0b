"""Corrected predictions as truth: what prediction writes, read back; outlines that people draw; bad ones."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pffnet_d2.data.readers import own
from pffnet_d2.data.readers.custom_layouts import CustomImage, find_images, relative_paths
from pffnet_d2.data.readers.outline_files import read_outlines
from pffnet_d2.data.readers.source import SourceFile, list_files
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import write_geojson, write_label_tiff, write_rois

SHAPE = (40, 50)


def objects() -> np.ndarray:
    """A disc with a hole, an object in two parts, one that touches corners and borders, a single pixel."""
    labels = np.zeros(SHAPE, np.int32)
    y, x = np.ogrid[:40, :50]
    labels[(y - 12) ** 2 + (x - 14) ** 2 < 80] = 1
    labels[11:14, 12:15] = 0
    labels[25:30, 5:9] = labels[32:35, 8:12] = 2
    labels[0:3, 40:50] = labels[3:6, 37:40] = 3
    labels[39, 49] = 4
    return labels


def found(root: Path, **options: Any) -> dict[str, CustomImage]:
    images = find_images(root, relative_paths(root, list_files(root)), **options)
    return {image.image_id: image for image in images}


def with_images(root: Path, *names: str) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for name in names:
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(root / "images" / f"{name}.png")
    return root


@pytest.mark.parametrize("form", ["geojson", "roi", "label-tiff"])
def test_what_prediction_writes_reads_back(tmp_path: Path, form: str) -> None:
    root = with_images(tmp_path, "a", "b")
    for name, labels in (("a", objects()), ("b", np.zeros(SHAPE, np.int32))):
        if form == "geojson":
            write_geojson(root / "labels" / f"{name}.geojson", labels)
        elif form == "roi":
            pytest.importorskip("roifile")
            write_rois(root / "labels" / f"{name}_rois.zip", labels)
        else:
            write_label_tiff(root / "labels" / f"{name}_labels.tif", labels)
            (root / "labels" / f"{name}_overlay.png").write_bytes(b"a picture beside it")
    images = found(root, truth="ids")
    np.testing.assert_array_equal(images["a"].read_label_map(), objects())
    assert not images["b"].read_label_map().any()
    if form != "label-tiff":
        read_masks = images["a"].read_masks
        assert read_masks is not None
        assert [mask.area for mask in read_masks()] == np.bincount(objects().ravel())[1:].tolist()


def test_rois_in_a_folder_and_a_single_one(tmp_path: Path) -> None:
    pytest.importorskip("roifile")
    root = with_images(tmp_path, "a", "b")
    write_rois(tmp_path / "all.zip", objects())
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        archive.extractall(root / "labels" / "a")
    shutil.copy(root / "labels" / "a" / "00002.roi", root / "labels" / "b.roi")
    (tmp_path / "all.zip").unlink()
    images = found(root)
    np.testing.assert_array_equal(images["a"].read_label_map(), objects())
    np.testing.assert_array_equal(images["b"].read_label_map(), objects() == 2)


def test_rois_beyond_a_signed_short(tmp_path: Path) -> None:
    pytest.importorskip("roifile")
    labels = np.zeros((3, 40000), np.int32)
    labels[1, 39000:39900] = 1
    labels[0, 10:20] = 2
    write_rois(tmp_path / "a.zip", labels)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path)
    masks = read_outlines([SourceFile(tmp_path / f"0000{i}.roi") for i in (1, 2)], 3, 40000)
    assert [(mask.y0, mask.x0, mask.area) for mask in masks] == [(1, 39000, 900), (0, 10, 10)]


def feature(ring: list[list[float]], **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}} | more


SQUARE = [[2, 3], [6, 3], [6, 5], [2, 5], [2, 3]]
FREEHAND = [[1.5, 1.4], [4.6, 1.4], [4.6, 3.6], [1.5, 3.6]]  # holds the centres of columns 2 to 4 and rows 1 to 2


def outlines(tmp_path: Path, content: Any, outline: str = "") -> list[tuple[int, int, tuple[int, ...]]]:
    (tmp_path / "a.geojson").write_text(content if isinstance(content, str) else json.dumps(content))
    masks = read_outlines([SourceFile(tmp_path / "a.geojson")], *SHAPE, outline)
    return [(mask.y0, mask.x0, mask.mask.shape) for mask in masks]


def test_drawn_outlines(tmp_path: Path) -> None:
    square = (3, 2, (2, 4))
    for content in ({"type": "FeatureCollection", "features": [feature(SQUARE)]}, [feature(SQUARE)], feature(SQUARE)):
        assert outlines(tmp_path, content) == [square]
    assert outlines(tmp_path, [feature(FREEHAND)]) == [(1, 1, (3, 4))]
    half_outside = [[-3, -3], [2, -3], [2, 2], [-3, 2], [-3, -3]]
    assert outlines(tmp_path, [feature(half_outside), feature(SQUARE)]) == [(0, 0, (2, 2)), square]
    cell = feature(SQUARE, nucleusGeometry=feature([[3, 3], [5, 3], [5, 4], [3, 4]])["geometry"])
    assert outlines(tmp_path, [cell], "cell") == [square]
    assert outlines(tmp_path, [cell], "nucleus") == [(3, 3, (1, 2))]
    assert outlines(tmp_path, {"type": "FeatureCollection", "features": []}) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not GeoJSON"),
        ('{"type": "FeatureCollection", "features": [', "is not GeoJSON"),
        ({"type": "FeatureCollection", "features": 3}, "holds no features"),
        ([1], "feature 0 is no GeoJSON feature"),
        ([feature(SQUARE), {"type": "Feature", "geometry": None}], "feature 1 is a None, not an area"),
        ([{"type": "Feature", "geometry": {"type": "LineString", "coordinates": SQUARE}}], "is a LineString"),
        ([feature([[1, 2], [3, 4]])], "no polygon"),
        ([feature([[1], [3], [4]])], "no polygon"),
        ([feature([["a", "b"], [3, 4], [5, 6]])], "no polygon"),
        ([{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": 5}}], "no polygon"),
        ([{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": []}}], "no polygon"),
        ([{"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": []}}], "no polygon"),
        ([feature([[60, 60], [70, 60], [70, 70]])], "feature 0 covers no pixel of the image, 40 x 50"),
        ([feature([[3, 3], [3.1, 3], [3.1, 3.1]])], "covers no pixel"),
        ([feature(SQUARE, nucleusGeometry=feature(SQUARE)["geometry"])], "--option outline=cell or outline=nucleus"),
    ],
)
def test_bad_outlines(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        outlines(tmp_path, content)
    assert str(tmp_path / "a.geojson") in str(raised.value)


def test_bad_rois(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile")
    line = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.POINT, left=1, top=1, right=2, bottom=2)
    for content, words in (
        (b"", "cannot be read as an ROI"),
        (b"Iout", "cannot be read as an ROI"),
        (line.tobytes(), "is a point, not an area"),
    ):
        (tmp_path / "a.roi").write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_outlines([SourceFile(tmp_path / "a.roi")], *SHAPE)


def test_shapes_of_imagej(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile")
    kinds = roifile.ROI_TYPE
    rectangle = roifile.ImagejRoi(roitype=kinds.RECT, left=3, top=4, right=8, bottom=6)
    drawn = roifile.ImagejRoi.frompoints(np.array(FREEHAND, dtype=np.float32))
    for roi, expected in ((rectangle, (4, 3, 10)), (drawn, (1, 1, 12))):
        (tmp_path / "a.roi").write_bytes(roi.tobytes())
        (mask,) = read_outlines([SourceFile(tmp_path / "a.roi")], *SHAPE)
        assert (mask.y0, mask.x0, mask.area) == expected


def test_truth_that_is_there_twice_or_belongs_to_nothing(tmp_path: Path) -> None:
    root = with_images(tmp_path, "a")
    write_geojson(root / "labels" / "a.geojson", objects())
    write_label_tiff(root / "labels" / "a_labels.tif", objects())
    with pytest.raises(InputError, match="the truth of a is there twice"):
        found(root)
    (root / "labels" / "a_labels.tif").rename(root / "labels" / "b_labels.tif")
    with pytest.raises(InputError, match=r"b_labels\.tif: truth without an image"):
        found(root)
    (root / "labels" / "b_labels.tif").unlink()
    with pytest.raises(InputError, match="option outline=both: give cell or nucleus"):
        found(root, outline="both")


def test_names_of_results_that_are_names_of_images(tmp_path: Path) -> None:
    root = with_images(tmp_path, "a", "a_labels")
    for name in ("a", "a_labels"):
        tifffile.imwrite(root / "labels" / f"{name}.tif", np.full(SHAPE, 1, np.uint8))
    assert sorted(found(root)) == ["a", "a_labels"]


def test_a_corrected_prediction_is_a_data_set(tmp_path: Path) -> None:
    """The folders of a run, with the results of QuPath as truth."""
    (tmp_path / "plates" / "p1").mkdir(parents=True)
    (tmp_path / "results" / "p1").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "plates" / "p1" / f"{i}.png")
        write_geojson(tmp_path / "results" / "p1" / f"{i}.geojson", objects())
    options = {"images": "plates", "labels": "results"}
    records = [
        record for split in own.splits(tmp_path, **options) for record in own.records(tmp_path, split, **options)
    ]
    assert sorted(record.image_id for record in records) == [f"p1_{i}" for i in range(5)]
    for record in records:
        assert record.read_label_map is not None
        np.testing.assert_array_equal(record.read_label_map(), objects())
