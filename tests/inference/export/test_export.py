"""What all formats have in common; files read back by other programs."""

from __future__ import annotations

import json
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path as Polygon
from scipy.ndimage import find_objects

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import EXPORTERS, Exporter, Part, SourceImage, choose, names, write_csv
from pffnet_d2.masks.compose import contiguous


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


def source(label_map: np.ndarray, whole: bool = True) -> SourceImage:
    """An image of rising grey values under a label map."""
    pixels = np.arange(label_map.size, dtype=np.uint16).reshape(label_map.shape)
    rgb = np.repeat((pixels % 256).astype(np.uint8)[..., None], 3, axis=2)
    return SourceImage("a.tif", label_map.shape, partial(window, pixels), partial(window, rgb), whole)


def window(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    return pixels[box[0] : box[2], box[1] : box[3]]


@settings(max_examples=25)
@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=15), elements=st.integers(0, 4)))
def test_every_object_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray) -> None:
    pytest.importorskip("roifile")
    label_map, folder = contiguous(labels), tmp_path_factory.mktemp("export")
    for name in ("label-tiff", "geojson", "roi", "coco"):
        (exporter,) = choose([name]).files
        with exporter.begin(folder / f"{name}.zip", source(label_map)) as add:
            add(Part(label_map))
    assert (tifffile.imread(folder / "label-tiff.zip") == label_map).all()
    assert (from_geojson(folder / "geojson.zip", label_map.shape) == label_map).all()
    assert (from_rois(folder / "roi.zip", label_map.shape) == label_map).all()
    assert (from_coco(folder / "coco.zip", label_map.shape) == label_map).all()
    assert sorted(p.name for p in folder.iterdir()) == ["coco.zip", "geojson.zip", "label-tiff.zip", "roi.zip"]


def per_image() -> list[Exporter]:
    return [exporter for exporter in EXPORTERS if isinstance(exporter, Exporter)]


def test_formats_are_told_apart_and_documented() -> None:
    """In the help text and in the table of docs/predict.md."""
    endings = [exporter.ending for exporter in per_image()]
    assert len(set(names())) == len(names()) == len(EXPORTERS)
    assert len(set(endings)) == len(endings)
    table = (Path(__file__).parents[3] / "docs" / "predict.md").read_text()
    for exporter in EXPORTERS:
        file = f"NAME{exporter.ending}" if isinstance(exporter, Exporter) else exporter.file_name
        assert f"| `{exporter.name}` | `{file}`" in table
        assert exporter.about


@pytest.mark.parametrize("exporter", per_image(), ids=lambda exporter: exporter.name)
def test_an_error_leaves_no_file(exporter: Exporter, tmp_path: Path, label_map: np.ndarray) -> None:
    exporter.require()
    (tmp_path / "a").write_text("before")
    with pytest.raises(KeyboardInterrupt), exporter.begin(tmp_path / "a", source(label_map, not exporter.streams)):
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def read_table(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.read_table(path)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("exporter", [e for e in per_image() if e.streams], ids=lambda exporter: exporter.name)
def test_parts_give_what_the_whole_gives(exporter: Exporter, tmp_path: Path, label_map: np.ndarray) -> None:
    """Objects one by one out of their windows, or rows a few at a time."""
    scores = {"score": np.array([0.5, 0.25, 1.0])}
    with exporter.begin(tmp_path / "whole", source(label_map)) as add:
        add(Part(label_map, scores))
    (tmp_path / "parts").mkdir()
    with exporter.begin(tmp_path / "parts" / "whole", source(label_map, whole=False)) as add:
        if exporter.by_rows:
            for top in range(0, len(label_map), 7):
                add(Part(label_map[top : top + 7], origin=(top, 0)))
        else:
            for i, (y, x) in enumerate(find_objects(label_map)):
                own = (label_map[y, x] == i + 1).astype(np.int32)
                add(Part(own, {"score": scores["score"][i : i + 1]}, i + 1, (y.start, x.start)))
    whole, parts = tmp_path / "whole", tmp_path / "parts" / "whole"
    if exporter.name == "label-tiff":  # of another layout
        np.testing.assert_array_equal(tifffile.imread(parts), tifffile.imread(whole))
    elif exporter.name == "parquet":  # a file, and a folder
        found, expected = read_table(parts).to_pydict(), read_table(whole).to_pydict()
        assert list(found) == list(expected)
        for name, column in expected.items():  # centroids are sums in another order
            np.testing.assert_allclose(found[name], column, rtol=1e-12)
    elif parts.is_dir():
        assert content(parts) == content(whole)
    else:
        assert parts.read_bytes() == whole.read_bytes()


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
        choose(["csv", "png"])
    monkeypatch.setitem(sys.modules, "roifile", None)
    choose(["csv", "geojson"])
    with pytest.raises(InputError, match=r"pip install 'roifile"):
        choose(["roi"])


def test_a_collection_brings_what_it_is_made_of() -> None:
    pytest.importorskip("h5py")
    formats = choose(["csv", "cvppp", "label-tiff"])
    assert [exporter.name for exporter in formats.files] == ["csv", "label-tiff"]
    assert [exporter.name for exporter in formats.collections] == ["cvppp"]


def test_what_needs_the_whole_image_is_not_streamed() -> None:
    assert [exporter.name for exporter in choose(names(streaming=True), streaming=True).files] == [
        "label-tiff",
        "overlay",
        "geojson",
        "csv",
        "ome-zarr",
        "parquet",
    ]
    with pytest.raises(InputError, match="format coco cannot be written in tiles; with --tile choose from label-tiff,"):
        choose(["csv", "coco"], streaming=True)
