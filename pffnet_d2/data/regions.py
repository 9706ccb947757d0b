"""Images that are read window by window: files, and whatever slices like an array (memory maps, zarr, dask).

A TIFF is read by its own tiles or strips, so that no more of it is in memory than they and the windows asked for; zarr
is not needed. The percentiles of a whole image are exact and take one pass over it for every 16 bits of its values.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from pffnet_d2.data.images import TIFF_MAGIC, Normalisation
from pffnet_d2.data.micrographs import (
    Micrograph,
    as_meant,
    channel_axis_of,
    choice,
    choose_series,
    compression,
    damage_named,
    read_micrograph,
    reduce_axes,
    sound,
    whole_tiff,
    with_scale,
)
from pffnet_d2.errors import InputError

# Decoded tiles or strips of a file that are kept: a strip as wide as the image serves several windows.
_CACHE = 2**27
_BLOCK = (1024, 4096)


class Sliceable(Protocol):
    """(H, W) or (H, W, C), of which ``array[y0:y1, x0:x1]`` gives a part that ``np.asarray`` takes."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


@contextmanager
def open_micrograph(
    path: Path, *, plane: Mapping[str, int] | int | None = None, channels: Sequence[int] | None = None
) -> Iterator[Micrograph]:
    """A file as ``read_micrograph`` gives it, but with pixels that are read when sliced, while the block lasts.

    TIFF (plain, Big, OME, ImageJ; of a pyramid the full resolution) has no limit of size. Other formats are read whole.

    Raises:
        InputError: as ``read_micrograph``; some of a TIFF's tiles or strips lie beyond its end. Slicing raises it where
            values are not finite or a tile cannot be decoded.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if magic not in TIFF_MAGIC:
        yield read_micrograph(path, plane=plane, channels=channels)
        return
    with whole_tiff_named(path) as tiff:
        with damage_named(path):
            micrograph = with_scale(tiff, _TiffPlane(tiff, path, plane, channels))  # type: ignore[arg-type]
        yield micrograph


@contextmanager
def whole_tiff_named(path: Path) -> Iterator[tifffile.TiffFile]:
    """``whole_tiff`` where only opening it can fail for the file's sake."""
    opened = whole_tiff(path)
    with damage_named(path):
        tiff = opened.__enter__()
    try:
        yield tiff
    finally:
        opened.__exit__(None, None, None)


def window(pixels: Sliceable, rows: slice, columns: slice, name: str) -> NDArray[Any]:
    """A part of an image as an array. Raises InputError where it cannot be worked with; signed bytes come unsigned."""
    return sound(np.asarray(pixels[rows, columns]), name)


class _TiffPlane:
    """One plane of a TIFF, or three as colours; slicing it reads the tiles or strips it needs."""

    def __init__(
        self,
        tiff: tifffile.TiffFile,
        path: Path,
        plane: Mapping[str, int] | int | None,
        channels: Sequence[int] | None,
    ) -> None:
        self._path, self._tiff = path, tiff
        self._series, self._page, self._colours = choose_series(tiff, path, plane, channels)
        axes, shape = self._series.axes, self._series.shape
        sizes = dict(zip(axes, shape, strict=True))
        # Contiguous data are mapped into memory, whatever their axes; else every page holds the last few of them.
        self._mapped = self._series.dataoffset is not None and self._page.is_memmappable
        inner = {"Y", "X", "S"} if self._mapped else set(axes[len(axes) - len(self._page.shape) :])
        if not {"Y", "X"} <= inner:
            raise InputError(f"{path}: its axes {axes} of {shape} are not understood; save one plane as grey or RGB")
        long = {axis: n for axis, n in sizes.items() if n > 1 and axis not in "YX"}
        channel_axis = channel_axis_of(long, channels, self._colours)
        stack = {axis: n for axis, n in long.items() if axis not in ("S", channel_axis)}
        self._index = dict.fromkeys((axis for axis in axes if axis not in inner), 0) | choice(stack, str(path), plane)
        # Channels that lie in planes of their own are read one by one, others with the pixels.
        self._apart = channel_axis if channel_axis not in inner else None
        self._channels = channels
        self._cache: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._cached = 0
        self._check_length()
        probe = self._read(slice(0, 1), slice(0, 1))
        self.shape: tuple[int, ...] = (sizes["Y"], sizes["X"], *probe.shape[2:])
        self.dtype = probe.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        (top, bottom, _), (left, right, _) = (part.indices(n) for part, n in zip(key, self.shape, strict=False))
        with damage_named(self._path):
            return self._read(slice(top, bottom), slice(left, right))

    def _check_length(self) -> None:
        """Before hours of work: whether all data lie within the file."""
        size = self._tiff.filehandle.size
        if self._mapped:
            ends = [self._series.dataoffset + math.prod(self._series.shape) * self._series.dtype.itemsize]
        else:
            pages = [self._series.pages[i] for i in self._pages_read()]
            ends = [o + n for page in pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > size:
            raise ValueError("data lie beyond the end of the file")

    def _pages_read(self) -> list[int]:
        leading = self._series.shape[: len(self._series.shape) - len(self._page.shape)]
        return [int(np.ravel_multi_index(list(index.values()), leading)) if index else 0 for index in self._indices()]

    def _indices(self) -> list[dict[str, int]]:
        """The index along each outer axis, of each plane that is read."""
        if self._apart is None:
            return [self._index]
        return [self._index | {self._apart: c} for c in (self._channels or [0])]

    def _read(self, rows: slice, columns: slice) -> NDArray[Any]:
        parts = []
        if self._mapped:
            # Mapped anew each time: pages that were read would stay resident.
            values = np.memmap(
                self._path,
                dtype=self._series.dtype.newbyteorder(self._tiff.byteorder),
                mode="r",
                offset=self._series.dataoffset,
                shape=self._series.shape,
            )
            inner = {"Y": rows, "X": columns}
            for index in self._indices():
                own: dict[str, Any] = index | inner
                part = values[tuple(own.get(axis, slice(None)) for axis in self._series.axes)]
                parts.append(
                    (np.array(part, dtype=self._series.dtype), "".join(a for a in self._series.axes if a not in index))
                )
        else:
            axes = self._series.axes[len(self._series.axes) - len(self._page.shape) :]
            parts = [(self._segments(number, axes, rows, columns), axes) for number in self._pages_read()]
        chosen = None if self._apart else self._channels
        planes = []
        for pixels, axes in parts:
            pixels, axes = as_meant(pixels, axes, self._page)
            planes.append(reduce_axes(pixels, axes, str(self._path), None, chosen, self._colours))
        return planes[0] if len(planes) == 1 else np.stack(planes, axis=2)

    def _segments(self, number: int, axes: str, rows: slice, columns: slice) -> NDArray[Any]:
        """A window of a page, from its tiles or strips."""
        page = self._page
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        height = min(height, page.imagelength)
        across, down = -(-page.imagewidth // width), -(-page.imagelength // height)
        apart = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
        samples = page.samplesperpixel // apart
        out = np.zeros((apart, rows.stop - rows.start, columns.stop - columns.start, samples), dtype=page.dtype)
        for sample in range(apart):
            for i in range(rows.start // height, -(-rows.stop // height)):
                for j in range(columns.start // width, -(-columns.stop // width)):
                    segment = self._segment(number, (sample * down + i) * across + j)
                    y, x = i * height, j * width
                    top, bottom = max(y, rows.start), min(y + segment.shape[0], rows.stop)
                    left, right = max(x, columns.start), min(x + segment.shape[1], columns.stop)
                    out[
                        sample, top - rows.start : bottom - rows.start, left - columns.start : right - columns.start
                    ] = segment[top - y : bottom - y, left - x : right - x]
        if len(axes) == 2:
            return out[0, :, :, 0]
        return out[0] if apart == 1 else out[..., 0]

    def _segment(self, number: int, index: int) -> NDArray[Any]:
        """A decoded tile or strip (h, w, samples); edge tiles may come cropped or not."""
        key = number, index
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        page, file = self._series.pages[number], self._tiff.filehandle
        data = None
        if page.databytecounts[index]:
            file.seek(page.dataoffsets[index])
            data = file.read(page.databytecounts[index])
            if len(data) < page.databytecounts[index]:
                raise ValueError("a tile is cut off")
        tables = {"jpegtables": page.jpegtables, "jpegheader": self._page.jpegheader} if self._page.compression in (
            6, 7, 33007, 34892,
        ) else {}  # fmt: skip
        try:
            decoded, _, shape = self._page.decode(data, index, **tables)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise InputError(
                f"{self._path}: needs imagecodecs for its {compression(self._page)} compression; "
                "type: pip install imagecodecs"
            ) from None
        segment = np.zeros(shape[1:], self._page.dtype) if decoded is None else decoded[0]
        self._cache[key] = segment
        self._cached += segment.nbytes
        while self._cached > _CACHE and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return segment


def limits(pixels: Sliceable, normalisation: Normalisation, name: str) -> tuple[float, float] | None:
    """The percentiles a normalisation needs, of the whole image; None where it needs none."""
    if normalisation.name != "percentile":
        return None
    low, high = percentiles(pixels, (normalisation.low, normalisation.high), name)
    return low, high


def percentiles(pixels: Sliceable, percents: Sequence[float], name: str = "image") -> list[float]:
    """``np.percentile`` over the first three channels of an image that is never whole in memory.

    Exact, as the ordered values are found 16 bits at a time: each pass over the image counts the next 16 bits of those
    values that share the bits found so far. One pass for up to 16 bits, two for 32 (floating values too), four for 64.

    Raises:
        InputError: naming ``name``: values that are not finite.
    """
    channels = min(pixels.shape[2], 3) if len(pixels.shape) == 3 and pixels.shape[2] != 2 else 1
    count = pixels.shape[0] * pixels.shape[1] * channels
    places = [percent / 100 * (count - 1) for percent in percents]
    # By rank among all values: the bits found so far, and the rank among those that share them.
    found = {rank: (0, rank) for place in places for rank in (math.floor(place), math.ceil(place))}
    dtype = window(pixels, slice(0, 1), slice(0, 1), name).dtype
    bits = 16 * max(dtype.itemsize // 2, 1)
    for shift in range(bits - 16, -1, -16):
        counts = {prefix: np.zeros(2**16, dtype=np.int64) for prefix, _ in found.values()}
        for block in _blocks(pixels, channels, name):
            ordered = _ordered(block).ravel()
            unsigned = ordered.dtype.type
            digits = (ordered >> unsigned(shift)).astype(np.uint16)  # the lowest 16 bits
            for prefix, histogram in counts.items():
                chosen = digits if shift == bits - 16 else digits[ordered >> unsigned(shift + 16) == prefix]
                histogram += np.bincount(chosen, minlength=2**16)
        for rank, (prefix, below) in found.items():
            upto = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(upto, below, side="right"))
            found[rank] = (prefix << 16) | digit, below - (int(upto[digit - 1]) if digit else 0)
    values = {rank: _value(prefix, dtype) for rank, (prefix, _) in found.items()}
    results = []
    for at in places:
        low, high, part = values[math.floor(at)], values[math.ceil(at)], at - math.floor(at)
        # As numpy does it, from the nearer of the two.
        results.append(low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part))
    return results


def _blocks(pixels: Sliceable, channels: int, name: str) -> Iterator[NDArray[Any]]:
    height, width = pixels.shape[:2]
    for y in range(0, height, _BLOCK[0]):
        for x in range(0, width, _BLOCK[1]):
            block = window(pixels, slice(y, min(y + _BLOCK[0], height)), slice(x, min(x + _BLOCK[1], width)), name)
            yield block[..., :channels] if block.ndim == 3 else block


def _ordered(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of the values; those of floats from their bits, with the sign turned."""
    values = np.ascontiguousarray(values)
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    unsigned: Any = np.dtype(f"u{values.dtype.itemsize}").type
    sign = unsigned(1 << (8 * values.dtype.itemsize - 1))
    bits = values.view(unsigned)
    if values.dtype.kind == "i":
        return bits ^ sign
    if values.dtype.kind == "f":
        return np.where(bits & sign, ~bits, bits | sign)
    return bits


def _value(ordered: int, dtype: np.dtype[Any]) -> float:
    """The value that ``_ordered`` turned into this number."""
    if dtype.kind in "bu":
        return float(ordered)
    width = 8 * dtype.itemsize
    sign = 1 << (width - 1)
    if dtype.kind == "i":
        return float(ordered - sign)
    bits = ordered ^ sign if ordered & sign else ~ordered & (2**width - 1)
    return float(np.array([bits], dtype=f"u{dtype.itemsize}").view(f"f{dtype.itemsize}")[0])


def digest(pixels: Sliceable, name: str) -> str:
    """Hexadecimal digest of all values of an image, read block by block; raises InputError as :func:`window`."""
    found = hashlib.sha256(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    channels = pixels.shape[2] if len(pixels.shape) == 3 else 1
    for block in _blocks(pixels, channels, name):
        found.update(np.ascontiguousarray(block).tobytes())
    return found.hexdigest()
