"""Labels as OME-Zarr: what zarr and ome-zarr read is what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

zarr = pytest.importorskip("zarr", reason="zarr is not installed")

from pffnet_d2.imaging.ome_zarr import ZarrImage, ZarrPlane  # noqa: E402
from pffnet_d2.inference.export.base import Part, SourceImage  # noqa: E402
from pffnet_d2.inference.export.ome_zarr import CHUNK, LabelPyramid, OmeZarr, create  # noqa: E402


def source(
    shape: tuple[int, int], *, whole: bool = False, pixel_size: tuple[float, float] | None = None
) -> SourceImage:
    nothing: Any = None
    return SourceImage("a.tif", shape, nothing, nothing, whole=whole, pixel_size=pixel_size)


def labels_of(shape: tuple[int, int]) -> NDArray[np.int32]:
    """Ids above 65,535, and nothing at the bottom."""
    labels = np.random.default_rng(0).integers(0, 70_000, shape).astype(np.int32)
    labels[shape[0] // 2 :] = 0
    return labels


def written(path: Path, labels: NDArray[np.int32], rows: int, **of: Any) -> Path:
    shape: Any = labels.shape
    with OmeZarr().begin(path, source(shape, **of)) as add:
        for top in range(0, shape[0], rows):
            add(Part(labels[top : top + rows], origin=(top, 0)))
    return path


@pytest.mark.parametrize("shape", [(1, 1), (5, 700), (512, 512), (1300, 530)])
def test_a_pyramid_of_every_second_pixel(tmp_path: Path, shape: tuple[int, int]) -> None:
    labels = labels_of(shape)
    path = written(tmp_path / "a_labels.ome.zarr", labels, 100, pixel_size=(0.25, 0.5))
    assert [p.name for p in tmp_path.iterdir()] == ["a_labels.ome.zarr"]
    group = zarr.open_group(str(path), mode="r")
    assert group.attrs["labels"] == ["objects"]
    attributes = group["objects"].attrs
    assert attributes["image-label"] == {"version": "0.4"}
    (image,) = attributes["multiscales"]
    assert [axis["unit"] for axis in image["axes"]] == ["micrometer", "micrometer"]
    for level, dataset in enumerate(image["datasets"]):
        array = group["objects"][dataset["path"]]
        assert (np.asarray(array[:, :]) == labels[:: 2**level, :: 2**level]).all()
        assert array.dtype == np.uint32
        (scale,) = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [0.25 * 2**level, 0.5 * 2**level]}
    assert max(array.shape) <= CHUNK
    assert (ZarrPlane(ZarrImage(path / "objects"))[:, :] == labels).all()
    assert ZarrImage(path / "objects").pixel_size == (0.25, 0.5)


def test_ome_zarrs_own_reader(tmp_path: Path) -> None:
    reader = pytest.importorskip("ome_zarr.reader", reason="ome-zarr is not installed")
    from ome_zarr.io import parse_url

    labels = labels_of((600, 40))
    path = written(tmp_path / "a_labels.ome.zarr", labels, 600)
    nodes = [node for node in reader.Reader(parse_url(str(path)))() if node.data]
    assert (np.asarray(nodes[0].data[0]) == labels).all()
    assert len(nodes[0].data) == 2


def test_any_order_and_size_of_parts_gives_the_same_bytes(tmp_path: Path) -> None:
    """Rows of one process, and chunks of several."""
    labels = labels_of((1100, 1030))
    folders = [written(tmp_path / f"{rows}_labels.ome.zarr", labels, rows) for rows in (256, 1100)]
    pyramid = create(tmp_path / "c_labels.ome.zarr", (1100, 1030), None)
    for level in range(len(pyramid.levels)):
        for box in reversed(LabelPyramid(tmp_path / "c_labels.ome.zarr").chunks(level)):
            if level:
                pyramid.reduce(level, box)
            else:
                pyramid.write(box, labels[box[0] : box[2], box[1] : box[3]])
    folders.append(tmp_path / "c_labels.ome.zarr")
    found = [
        {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != ".zattrs"}
        for folder in folders
    ]
    assert found[0] == found[1] == found[2]
    assert not (folders[0] / "objects/0/2").exists(), "chunks of background are left out"


def test_what_it_replaces(tmp_path: Path) -> None:
    path = written(tmp_path / "a_labels.ome.zarr", np.full((3, 3), 7, np.int32), 3)
    assert OmeZarr().replaces(path)
    assert OmeZarr().replaces(tmp_path / "none")
    written(path, np.full((2, 2), 9, np.int32), 2, whole=True)
    assert json.loads((path / "objects/0/.zarray").read_text())["shape"] == [2, 2]
    (tmp_path / "mine").mkdir()
    assert not OmeZarr().replaces(tmp_path / "mine")


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broadcast"), OmeZarr().begin(tmp_path / "a", source((9, 9))) as add:
        add(Part(np.ones((4, 10), np.int32)))
    assert list(tmp_path.iterdir()) == []
