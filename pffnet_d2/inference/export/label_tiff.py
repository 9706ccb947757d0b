"""``label-tiff``: the label map as a TIFF."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.inference.export.base import Add, Exporter, Part, SourceImage
from pffnet_d2.inference.export.rows import Bands

TILE = 256  # side in pixels of the tiles of a label map that is written part by part


class LabelTiff(Exporter):
    """A deflated TIFF. In one part: 16 bit up to 65,535 objects, 32 bit above. Part by part: a tiled 32-bit BigTIFF."""

    name = "label-tiff"
    ending = "_labels.tif"
    about = "label map"
    streams = True
    by_rows = True

    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        scale = _scale(image.pixel_size, image.resolution)
        return _in_one_part(path, scale) if image.whole else _tiled(path, image.shape, scale)


def write_label_tiff(
    path: Path,
    label_map: NDArray[Any],
    *,
    pixel_size: tuple[float, float] | None = None,
    resolution: tuple[Any, Any, int] | None = None,
) -> None:
    """Write a label map as a deflated TIFF of 16 bits up to 65,535 objects and 32 bits above.

    Args:
        path: the file.
        label_map: (H, W) integers >= 0.
        pixel_size: height and width of a pixel in micrometres; stored as pixels per centimetre.
        resolution: the tags XResolution, YResolution and ResolutionUnit to copy if the pixel size is unknown.

    Raises:
        InputError: the file cannot be written.
    """
    with _in_one_part(path, _scale(pixel_size, resolution)) as add:
        add(Part(label_map))


@contextmanager
def _in_one_part(path: Path, scale: dict[str, Any]) -> Iterator[Add]:
    with whole_file(path, "w+b") as file:

        def add(part: Part) -> None:
            dtype = np.uint16 if part.labels.max(initial=0) < 2**16 else np.uint32
            tifffile.imwrite(file, part.labels.astype(dtype), **_STYLE, **scale)

        yield add


@contextmanager
def _tiled(path: Path, shape: tuple[int, int], scale: dict[str, Any]) -> Iterator[Add]:
    """Writes a tiled BigTIFF. tifffile takes all tiles of an image from one iterator, but rows arrive part by part, so
    the compressed tiles, which are small, first go to a temporary file."""
    encode = tifffile.TIFF.COMPRESSORS[tifffile.COMPRESSION.ADOBE_DEFLATE]
    sizes: list[int] = []
    with whole_file(path, "w+b") as file, TemporaryFile(dir=path.parent) as waiting:
        bands = Bands(shape, TILE)

        def add(part: Part) -> None:
            for _, tile in bands.tiles(part.labels):
                sizes.append(waiting.write(encode(tile)))

        yield add
        waiting.seek(0)
        with tifffile.TiffWriter(file, bigtiff=True) as writer:
            tiles = (waiting.read(size) for size in sizes)
            writer.write(tiles, shape=shape, dtype=np.uint32, tile=(TILE, TILE), **_STYLE, **scale)


_STYLE: dict[str, Any] = {"photometric": "minisblack", "compression": "zlib", "metadata": None}


def _scale(pixel_size: tuple[float, float] | None, resolution: tuple[Any, Any, int] | None) -> dict[str, Any]:
    """The arguments with which tifffile writes the size of a pixel."""
    if pixel_size:
        return {"resolution": (1e4 / pixel_size[1], 1e4 / pixel_size[0]), "resolutionunit": 3}
    return {"resolution": resolution[:2], "resolutionunit": resolution[2]} if resolution else {}
