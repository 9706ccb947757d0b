"""Reads images window by window: files, and any object that slices like an array (memory maps, zarr, dask)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.imaging.microscopy import MicroscopyImage, open_selection, sound
from pffnet_d2.imaging.normalisation import BRIGHT, COLOURFUL, EVERY_VALUE, Normalisation, colourfulness
from pffnet_d2.imaging.scene import Selection
from pffnet_d2.imaging.scene import Sliceable as Sliceable

_BLOCK = (1024, 4096)


@contextmanager
def open_microscopy_image(
    path: Path,
    selection: Selection | None = None,
    *,
    plane: Mapping[str, int] | int | None = None,
    channels: Sequence[int | str] | None = None,
    every_channel: bool = False,
) -> Iterator[MicroscopyImage]:
    """Open a file like ``read_microscopy_image``, but read its pixels when they are sliced, inside the block.

    A TIFF (plain, Big, OME or ImageJ, one level of a pyramid), an OME-Zarr and the formats of ``vendor`` may have any
    size. Other formats are read whole.

    Args:
        path: the file.
        selection: what is read of it, instead of ``plane`` and ``channels``.
        plane, channels: as for ``read_microscopy_image``.
        every_channel: also open all channels of the plane.

    Raises:
        InputError: see ``read_microscopy_image``; tiles or strips of a TIFF lie beyond its end. Slicing raises it if a
            tile or strip cannot be decoded.
    """
    chosen = selection or Selection(plane=plane, channels=channels)
    with open_selection(path, chosen, every_channel=every_channel) as image:
        image.pixels[0:1, 0:1]  # raises before hours of work if pixels cannot be decoded
        yield image


def window(pixels: Sliceable, rows: slice, columns: slice, name: str) -> NDArray[Any]:
    """A part of an image as an array; signed bytes become unsigned. Raises InputError like ``microscopy.sound``."""
    return sound(np.asarray(pixels[rows, columns]), name)


def limits(pixels: Sliceable, normalisation: Normalisation, name: str) -> tuple[float, float] | None:
    """The percentiles of a whole image that a normalisation needs; None if it needs none."""
    if normalisation.name != "percentile":
        return None
    low, median, high = percentiles(pixels, (normalisation.low, 50, normalisation.high), name)
    if normalisation.stained_as_is and median > BRIGHT and _colourfulness(pixels, name) > COLOURFUL:
        return EVERY_VALUE
    return low, high


def _colourfulness(pixels: Sliceable, name: str) -> float:
    """``normalisation.colourfulness`` of an 8-bit image that need not fit into memory; 0 without three channels."""
    if len(pixels.shape) < 3 or pixels.shape[2] < 3:
        return 0.0
    total = sum(colourfulness(block) * (block.size // 3) for block in _blocks(pixels, 3, name))
    return total / (pixels.shape[0] * pixels.shape[1])


def percentiles(pixels: Sliceable, percents: Sequence[float], name: str = "image") -> list[float]:
    """``np.percentile`` over the first three channels of an image that need not fit into memory.

    The result is exact. The values are found 16 bits at a time: each pass over the image counts the next 16 bits of
    the values that share the bits found so far. This takes one pass for up to 16 bits, two for 32 bits (floats too)
    and four for 64 bits.

    Raises:
        InputError: naming ``name``: values that are not finite.
    """
    channels = min(pixels.shape[2], 3) if len(pixels.shape) == 3 and pixels.shape[2] != 2 else 1
    count = pixels.shape[0] * pixels.shape[1] * channels
    places = [percent / 100 * (count - 1) for percent in percents]
    # For each rank among all values: the bits found so far, and the rank among the values that share these bits.
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
        # Interpolated from the nearer of the two values, as in numpy.
        results.append(low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part))
    return results


def _blocks(pixels: Sliceable, channels: int, name: str) -> Iterator[NDArray[Any]]:
    height, width = pixels.shape[:2]
    for y in range(0, height, _BLOCK[0]):
        for x in range(0, width, _BLOCK[1]):
            block = window(pixels, slice(y, min(y + _BLOCK[0], height)), slice(x, min(x + _BLOCK[1], width)), name)
            yield block[..., :channels] if block.ndim == 3 else block


def _ordered(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the same order as the values; floats by their bits, with the sign flipped."""
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
    """The inverse of ``_ordered`` for one value."""
    if dtype.kind in "bu":
        return float(ordered)
    width = 8 * dtype.itemsize
    sign = 1 << (width - 1)
    if dtype.kind == "i":
        return float(ordered - sign)
    bits = ordered ^ sign if ordered & sign else ~ordered & (2**width - 1)
    return float(np.array([bits], dtype=f"u{dtype.itemsize}").view(f"f{dtype.itemsize}")[0])


def digest(pixels: Sliceable, name: str) -> str:
    """Hexadecimal SHA-256 of all values of an image, read block by block. Raises InputError like ``window``."""
    found = hashlib.sha256(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    channels = pixels.shape[2] if len(pixels.shape) == 3 else 1
    for block in _blocks(pixels, channels, name):
        found.update(np.ascontiguousarray(block).tobytes())
    return found.hexdigest()
