"""``ome-zarr``: the label map as NGFF labels, in chunks that several processes can write at once.

The folder is a ``labels`` group of NGFF 0.4 (https://ngff.openmicroscopy.org/0.4/#labels-md) in Zarr 2 with one label
image, ``objects``. It opens by itself, and becomes a part of its image if it is copied into that as ``labels``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.atomic_write import move, work_folder
from pffnet_d2.inference.export import base
from pffnet_d2.inference.export.base import Add, Exporter, Part, SourceImage
from pffnet_d2.inference.export.rows import Bands
from pffnet_d2.inference.tiling import Box

CHUNK = 512  # side of a chunk in pixels
NAME = "objects"  # of the label image in the group
_VERSION = "0.4"


class OmeZarr(Exporter):
    """A pyramid of 32-bit labels, each level half as large as the one before."""

    name = "ome-zarr"
    ending = "_labels.ome.zarr"
    about = "label map as NGFF labels"
    streams = True
    by_rows = True
    in_parallel = True

    def require(self) -> None:
        base.required("zarr", self.name, "pffnet_d2[ome-zarr]")

    def replaces(self, place: Path) -> bool:
        return not place.exists() or (place / NAME / ".zattrs").is_file()

    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        return _rows(path, image.shape, image.pixel_size)


class LabelPyramid:
    """The label image of a group that :func:`create` made. Different processes may write different chunks."""

    def __init__(self, path: Path) -> None:
        import zarr

        group = zarr.open_group(str(path / NAME), mode="r+")
        count = sum(1 for _ in group.array_keys())
        self.levels: list[Any] = [group[str(level)] for level in range(count)]

    def chunks(self, level: int = 0) -> list[Box]:
        """The chunks of a level in row order."""
        height, width = self.levels[level].shape
        return [
            (y, x, min(y + CHUNK, height), min(x + CHUNK, width))
            for y in range(0, height, CHUNK)
            for x in range(0, width, CHUNK)
        ]

    def write(self, box: Box, labels: NDArray[np.integer]) -> None:
        """Writes whole chunks of the full resolution. Chunks of background are left out."""
        y0, x0, y1, x1 = box
        self.levels[0][y0:y1, x0:x1] = labels.astype(np.uint32)

    def reduce(self, level: int, box: Box) -> None:
        """Writes whole chunks of a reduced level: every second row and column of the level before, which must be
        complete there."""
        y0, x0, y1, x1 = box
        labels = np.asarray(self.levels[level - 1][2 * y0 : 2 * y1, 2 * x0 : 2 * x1])[::2, ::2]
        self.levels[level][y0:y1, x0:x1] = labels


def create(path: Path, shape: tuple[int, int], pixel_size: tuple[float, float] | None) -> LabelPyramid:
    """Makes a group of labels without objects. It replaces an earlier one.

    Args:
        path: the folder.
        shape: H, W of the image.
        pixel_size: height and width of a pixel in micrometres; None states none.
    """
    import zarr
    from numcodecs import Zlib

    shutil.rmtree(path, ignore_errors=True)
    zarr.open_group(str(path), mode="w", zarr_format=2, attributes={"labels": [NAME]})
    shapes = [shape]
    while max(shapes[-1]) > CHUNK:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    attributes = _attributes(path.name.removesuffix(OmeZarr.ending), len(shapes), pixel_size)
    group = zarr.open_group(str(path / NAME), mode="w", zarr_format=2, attributes=attributes)
    for level, size in enumerate(shapes):
        group.create_array(
            str(level),
            shape=size,
            chunks=(CHUNK, CHUNK),
            dtype="uint32",
            # Blosc's bytes may depend on the number of its threads; equal labels are to give equal bytes.
            compressors=Zlib(1),
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    return LabelPyramid(path)


def _attributes(name: str, levels: int, pixel_size: tuple[float, float] | None) -> dict[str, Any]:
    unit = {"unit": "micrometer"} if pixel_size else {}
    side = pixel_size or (1.0, 1.0)
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [length * 2**level for length in side]}],
        }
        for level in range(levels)
    ]
    axes = [{"name": axis, "type": "space", **unit} for axis in "yx"]
    image = {"version": _VERSION, "name": name, "axes": axes, "datasets": datasets}
    return {"multiscales": [image], "image-label": {"version": _VERSION}}


@contextmanager
def _rows(path: Path, shape: tuple[int, int], pixel_size: tuple[float, float] | None) -> Iterator[Add]:
    with work_folder(path) as folder:
        made = folder / path.name
        pyramid = create(made, shape, pixel_size)
        bands = Bands(shape, CHUNK)

        def add(part: Part) -> None:
            for box, labels in bands.tiles(part.labels):
                pyramid.write(box, labels[: box[2] - box[0], : box[3] - box[1]])

        yield add
        for level in range(1, len(pyramid.levels)):
            for box in pyramid.chunks(level):
                pyramid.reduce(level, box)
        move(made, path)
