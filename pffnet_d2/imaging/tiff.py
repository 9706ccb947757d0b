"""Reads one plane of a TIFF, tile by tile or strip by strip, for data preparation and prediction.

Only the tiles or strips that cover the plane, or the requested window of it, are read.
"""

from __future__ import annotations

import io
import logging
import lzma
import math
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.axes import channel_axis_of, check_choice, choice, reduce_axes
from pffnet_d2.imaging.codecs import JPEG, decode_segment

# tifffile's warnings repeat the InputError. A user who configures logging still sees them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Exceptions of Pillow and tifffile for damaged files. Pillow's PNG reader raises SyntaxError for a broken chunk.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
# Bytes of decoded tiles or strips that are cached per file. A strip as wide as the image serves several windows.
_CACHE = 2**27
# A file whose header declares a tile or strip of more pixels is damaged.
_MAX_SEGMENT = 2**31
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _YCBCR = 0, 1, 2, 3, 4, 6
_PHOTOMETRIC = 262


class TiffPlane:
    """One plane of a TIFF, or three as colours. A slice ``plane[y0:y1, x0:x1]`` reads the tiles or strips it needs.

    Attributes:
        shape: (H, W) or (H, W, 3).
        dtype: that of the file; uint8 for palettes.
    """

    def __init__(
        self,
        tiff: tifffile.TiffFile,
        name: str,
        plane: Mapping[str, int] | int | None = None,
        channels: Sequence[int] | None = None,
        *,
        single: bool = False,
        as_stored: bool = False,
        series: Any = None,
    ) -> None:
        """
        Args:
            tiff: the open file.
            name: of the file, for messages.
            plane: as ``microscopy.read_microscopy_image`` takes it.
            channels: as ``microscopy.read_microscopy_image`` takes them.
            single: refuse stacks and channels, with messages that do not suggest --plane and --channels.
            as_stored: return the numbers in the file, for label images: palettes are not converted, and values whose 0
                is white are not inverted.
            series: one of ``tiff.series``, or a level of one; None reads the only image of the file.

        Raises:
            InputError: the file contains several images, or colours that are not supported; ``plane`` and ``channels``
                do not choose one plane.
            ValueError, ...: those of ``DAMAGE``: tiles or strips lie beyond the end of the file.
        """
        self._name, self._tiff, self._as_stored = name, tiff, as_stored
        if series is None:
            series = _only_series(tiff, name, thumbnails=not as_stored)
        self._series, self._page = series, checked_page(series, name)
        self._colours = one_colour(self._page, name)
        axes, shape = self._series.axes, self._series.shape
        sizes = dict(zip(axes, shape, strict=True))
        # Contiguous data are memory-mapped with all their axes; otherwise each page contains the last few axes.
        contiguous = self._series.dataoffset is not None and not self._series.is_multifile
        self._mapped = contiguous and self._page.is_memmappable
        inner = {"Y", "X", "S"} if self._mapped else set(axes[len(axes) - len(self._page.shape) :])
        if not {"Y", "X"} <= inner or self._page.imagedepth > 1:
            raise InputError(f"{name}: its axes {axes} of {shape} are not understood; save one plane as grey or RGB")
        long = stack_axes_of(self._series, self._page, as_stored=as_stored)
        if single:
            _check_single(long, name, self._colours)
            self._colours = True
        else:
            check_choice(long, name, plane, channels, self._colours)
        channel_axis = channel_axis_of(long, channels, self._colours)
        stack = {axis: n for axis, n in long.items() if axis not in ("S", channel_axis)}
        self._index = dict.fromkeys((axis for axis in axes if axis not in inner), 0) | choice(stack, name, plane)
        # Channels in separate planes are read one by one, other channels together with the pixels.
        self._apart = channel_axis if channel_axis not in inner else None
        self._channels = channels
        self._cache: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._cached = 0
        self._check_length()
        nothing = np.zeros([1 if axis in "YX" else n for axis, n in sizes.items() if axis in inner], self._series.dtype)
        probe = self._as_image([(nothing, "".join(axis for axis in axes if axis in inner))] * len(self._indices()))
        self.shape: tuple[int, ...] = (sizes["Y"], sizes["X"], *probe.shape[2:])
        self.dtype = probe.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        (top, bottom, _), (left, right, _) = (part.indices(n) for part, n in zip(key, self.shape, strict=False))
        with damage_named(self._name):
            return self._read(slice(top, bottom), slice(left, right))

    def _check_length(self) -> None:
        """Raise ValueError if data lie beyond the end of the file. This is checked before hours of work, and before
        memory is reserved for the size in a damaged header."""
        if self._mapped:
            end = self._series.dataoffset + math.prod(self._series.shape) * self._series.dtype.itemsize
            if end > self._tiff.filehandle.size:
                raise ValueError("data lie beyond the end of the file")
            return
        if math.prod(self._segment_size()) > _MAX_SEGMENT:
            raise ValueError("no tile or strip is as large")
        for number in self._pages_read():
            page = self._series.pages[number]
            if page is None:
                raise InputError(
                    f"{self._name}: the file that contains this plane is not beside it; put all files of the data set "
                    "into one folder"
                )
            ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if max(ends, default=0) > page.parent.filehandle.size:
                raise ValueError("data lie beyond the end of the file")

    def _pages_read(self) -> list[int]:
        leading = self._series.shape[: len(self._series.shape) - len(self._page.shape)]
        return [int(np.ravel_multi_index(list(index.values()), leading)) if index else 0 for index in self._indices()]

    def _indices(self) -> list[dict[str, int]]:
        """For each plane that is read, its index along each outer axis."""
        if self._apart is None:
            return [self._index]
        return [self._index | {self._apart: c} for c in (self._channels or [0])]

    def _read(self, rows: slice, columns: slice) -> NDArray[Any]:
        if self._mapped:
            return self._as_image(self._map(rows, columns))
        axes = self._series.axes[len(self._series.axes) - len(self._page.shape) :]
        return self._as_image([(self._segments(number, axes, rows, columns), axes) for number in self._pages_read()])

    def _map(self, rows: slice, columns: slice) -> list[tuple[NDArray[Any], str]]:
        # Mapped again for each window, because the memory pages of a permanent map would stay resident.
        values = self._tiff.filehandle.memmap_array(
            self._series.dtype.newbyteorder(self._tiff.byteorder), self._series.shape, self._series.dataoffset
        )
        parts = []
        for index in self._indices():
            own: dict[str, Any] = index | {"Y": rows, "X": columns}
            part = values[tuple(own.get(axis, slice(None)) for axis in self._series.axes)]
            left = "".join(axis for axis in self._series.axes if axis not in index)
            parts.append((np.array(part, dtype=self._series.dtype), left))
        return parts

    def _as_image(self, parts: list[tuple[NDArray[Any], str]]) -> NDArray[Any]:
        """(H, W) or (H, W, 3) from the planes that were read and their axes."""
        chosen = None if self._apart else self._channels
        planes = []
        for pixels, axes in parts:
            if self._series.transform is not None:
                pixels = self._series.transform(pixels)
            pixels, axes = as_meant(pixels, axes, self._page, as_stored=self._as_stored)
            planes.append(reduce_axes(pixels, axes, self._name, None, chosen, self._colours))
        return planes[0] if len(planes) == 1 else np.stack(planes, axis=2)

    def _segment_size(self) -> tuple[int, int, int]:
        """Height, width and samples of a tile or strip."""
        page = self._page
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        samples = 1 if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else page.samplesperpixel
        if min(height, width, samples) < 1:
            raise ValueError("tiles or strips without pixels")
        return height if page.is_tiled else min(height, page.imagelength), width, samples

    def _segments(self, number: int, axes: str, rows: slice, columns: slice) -> NDArray[Any]:
        """A window of a page, from its tiles or strips."""
        # Not with zarr and tifffile.aszarr, which decode a strip again for every window that crosses it. They read
        # 8192 x 8192 pixels of 16 bits, in windows of 1024 x 1024, in 7.9 s from deflated strips of 64 rows (this in
        # 0.9 s), in 88 s from one deflated strip (0.7 s), in 9.7 s from one plain strip (0.1 s, mapped) and in 2.9 s
        # from deflated tiles (1.0 s). They also need imagecodecs for LZW, and importing zarr takes 1.2 s.
        page = self._page
        height, width, samples = self._segment_size()
        across, down = -(-page.imagewidth // width), -(-page.imagelength // height)
        apart = page.samplesperpixel // samples
        out = np.zeros((apart, rows.stop - rows.start, columns.stop - columns.start, samples), dtype=page.dtype)
        for sample in range(apart):
            for i in range(rows.start // height, -(-rows.stop // height)):
                for j in range(columns.start // width, -(-columns.stop // width)):
                    y, x = i * height, j * width
                    high = height if page.is_tiled else min(height, page.imagelength - y)
                    segment = self._segment(number, (sample * down + i) * across + j, (high, width, samples))
                    top, bottom = max(y, rows.start), min(y + segment.shape[0], rows.stop)
                    left, right = max(x, columns.start), min(x + segment.shape[1], columns.stop)
                    out[
                        sample, top - rows.start : bottom - rows.start, left - columns.start : right - columns.start
                    ] = segment[top - y : bottom - y, left - x : right - x]
        if len(axes) == 2:
            return out[0, :, :, 0]
        return out[0] if apart == 1 else out[..., 0]

    def _segment(self, number: int, index: int, shape: tuple[int, int, int]) -> NDArray[Any]:
        """A decoded tile or strip (h, w, samples). Tiles at the edge may or may not be cropped."""
        key = number, index
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        page = self._series.pages[number]
        if page.databytecounts[index]:
            data = _bytes(page.parent.filehandle, page.dataoffsets[index], page.databytecounts[index])
            segment = decode_segment(self._page, data, index, shape, page.jpegtables, self._name)
        else:
            segment = np.zeros(shape, self._page.dtype)
        self._cache[key] = segment
        self._cached += segment.nbytes
        while self._cached > _CACHE and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return segment


def _bytes(file: Any, offset: int, count: int) -> bytes:
    """Reads bytes from one of the files of an image, of which tifffile closes all but the first. Raises ValueError if
    the file is too short."""
    closed = file.closed
    if closed:
        file.open()
    try:
        file.seek(offset)
        data: bytes = file.read(count)
    finally:
        if closed:
            file.close()
    if len(data) < count:
        raise ValueError("a tile is cut off")
    return data


def decode_tiff(data: bytes, name: str, max_pixels: int, *, as_stored: bool = False) -> NDArray[Any]:
    """The only plane of a TIFF in memory, (H, W) or (H, W, 3).

    Raises:
        InputError: naming ``name``: it is a stack, has several channels or more than ``max_pixels`` pixels, or is
            damaged.
    """
    with damage_named(name), whole_tiff(io.BytesIO(data)) as tiff:
        plane = TiffPlane(tiff, name, single=True, as_stored=as_stored)
        height, width = plane.shape[:2]
        if height * width > max_pixels:
            raise InputError(
                f"{name}: {height} x {width} pixels are more than {max_pixels:,} pixels; cut it into smaller images"
            )
        return plane[:, :]


@contextmanager
def damage_named(name: str | Path) -> Iterator[None]:
    """Turn exceptions caused by a damaged file inside the block into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{name}: cannot be read as an image; it is truncated, damaged or of another kind: fetch it again"
        ) from error


@contextmanager
def whole_tiff(file: Path | io.BytesIO) -> Iterator[tifffile.TiffFile]:
    """A ``TiffFile`` that raises ValueError if pages are cut off. tifffile only logs this and reads the other pages."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        with tifffile.TiffFile(file) as tiff:
            _ = tiff.series
            if any("invalid page offset" in message or "failed to reshape" in message for message in said):
                raise ValueError("pages are missing")
            yield tiff
    finally:
        logger.removeHandler(handler)


def series_of(tiff: tifffile.TiffFile, *, thumbnails: bool) -> list[Any]:
    """The images of a TIFF: the first series, and those that are neither smaller nor marked as reduced.

    Args:
        tiff: the open file.
        thumbnails: treat smaller images as thumbnails even if the file does not mark them as such.
    """
    if not tiff.series:
        raise ValueError("no image")
    first = tiff.series[0]
    return [
        first,
        *(
            other
            for other in tiff.series[1:]
            if math.prod(other.shape) >= math.prod(first.shape) or not (thumbnails or other.keyframe.is_reduced)
        ),
    ]


def _only_series(tiff: tifffile.TiffFile, name: str, *, thumbnails: bool) -> Any:
    """The only image of a TIFF. Raises InputError if there are several; ``thumbnails`` as for ``series_of``."""
    images = series_of(tiff, thumbnails=thumbnails)
    if len(images) > 1:
        shapes = ", ".join(shape_of(series) for series in images[:4])
        raise InputError(f"{name}: contains {len(tiff.series)} images ({shapes}); save the one you want by itself")
    return images[0]


def shape_of(series: Any) -> str:
    return "x".join(map(str, series.shape))


def stack_axes_of(series: Any, page: Any, *, as_stored: bool = False) -> dict[str, int]:
    """Lengths of the axes of an image that are longer than 1, other than Y and X."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    long = {axis: n for axis, n in sizes.items() if n > 1 and axis not in "YX"}
    if page.photometric == _PALETTE and not as_stored:
        long.setdefault("S", 3)
    return long


def checked_page(series: Any, name: str) -> Any:
    """The first page of an image. Raises InputError if values of its type cannot be read."""
    page = series.keyframe
    if page.dtype is None:
        raise InputError(
            f"{name}: {page.bitspersample}-bit values of this type cannot be read; save it as 8, 16 or 32-bit integers "
            "or 32-bit floating values"
        )
    if page.dtype.kind not in "buif":
        raise InputError(f"{name}: {page.dtype} values are not supported; save it as integers or floating values")
    return page


def one_colour(page: Any, name: str) -> bool:
    """Whether the samples of a pixel form one colour (RGB, or grey with alpha) and are not channels.

    Raises:
        InputError: the colours are not supported, such as CMYK.
    """
    photometric = page.photometric
    # JPEG decoders convert YCbCr to RGB. Decoders of other compressions do not.
    converted = photometric == _YCBCR and page.compression in JPEG
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK) and not converted:
        kind = {5: "CMYK", 6: "YCbCr"}.get(int(photometric), str(getattr(photometric, "name", photometric)))
        raise InputError(f"{name}: its colours are {kind}; save it as RGB, or as grey")
    return photometric in (_RGB, _PALETTE, _YCBCR) or bool({1, 2} & {int(extra) for extra in page.extrasamples})


def _check_single(long: Mapping[str, int], name: str, colours: bool) -> None:
    """Raise InputError unless the axes longer than 1 other than Y and X are one colour: alpha, RGB or RGBA."""
    planes = math.prod(n for axis, n in long.items() if axis != "S")
    if planes > 1:
        raise InputError(f"{name}: contains a stack of {planes} planes; save one plane as grey or RGB")
    if not colours and long.get("S", 1) not in (1, 3, 4):
        raise InputError(f"{name}: contains {long['S']} channels; save one as grey, or three as RGB")


def as_meant(pixels: NDArray[Any], axes: str, page: Any, *, as_stored: bool = False) -> tuple[NDArray[Any], str]:
    """Pixels and axes of a TIFF, with palettes converted to RGB, values whose 0 is white inverted, and 2 or 4 bits
    scaled to the range of 8 bits."""
    kind, bits = pixels.dtype.kind, page.bitspersample
    # tifffile declares in the 1-bit files it writes that 0 is white, but writes 1 for white.
    if page.photometric == _WHITE_IS_ZERO and _PHOTOMETRIC in page.tags and (kind == "b" or not as_stored):
        if kind == "b" and not str(page.software).startswith("tifffile"):
            pixels = ~pixels
        elif kind == "u":
            pixels = pixels.dtype.type(2**bits - 1) - pixels
    if as_stored:
        return pixels, axes
    if page.photometric == _PALETTE and page.colormap is not None:
        colours = np.asarray(page.colormap)
        colours = colours >> 8 if colours.max(initial=0) > 255 else colours  # some programs write 8-bit palettes
        return np.moveaxis(colours, 0, -1).astype(np.uint8)[pixels], axes + "S"
    if kind == "u" and bits < 8:
        return (pixels.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8), axes
    return pixels, axes
