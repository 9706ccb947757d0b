"""One plane of any microscopy file, with the size of its pixels: what prediction starts from.

``images.decode_image`` reads the plain images that data sets are made of. A file from a microscope may hold several
channels, a stack, palettes, 32-bit or floating values and metadata; which of its planes is meant, the user says.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.data.images import (
    DAMAGE,
    MAX_PIXELS,
    PNG_MAGIC,
    TIFF_MAGIC,
    Normalisation,
    decode_image,
    read_bytes,
)
from pffnet_d2.errors import InputError

# To micrometres; the names of OME and ImageJ.
UNITS = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4}
# Below this many pixels a centimetre (1270 an inch) a resolution is that of a screen or a printer.
_OPTICAL = 500
_RGB, _PALETTE, _WHITE_IS_ZERO, _CMYK = 2, 3, 0, 5
# Pillow's modes that np.array gives as grey, RGB or RGBA, or that are converted to RGB.
_AS_ARRAY, _AS_RGB = ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "1", "P"), ("CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True)
class Micrograph:
    """One plane of a file."""

    pixels: NDArray[Any]  # (H, W) or RGB (H, W, 3), of the file's own depth; finite
    pixel_size: tuple[float, float] | None = None  # height and width of a pixel in micrometres, where the file says
    resolution: tuple[Any, Any, int] | None = None  # a TIFF's XResolution, YResolution, ResolutionUnit


def read_micrograph(
    path: str | Path, *, plane: Mapping[str, int] | int | None = None, channels: Sequence[int] | None = None
) -> Micrograph:
    """Read TIFF (plain, OME, ImageJ), PNG, JPEG, BMP, ... of 8, 16 or 32-bit integers or floating values.

    Args:
        path: the file.
        plane: of a stack, the index (from 0) along each axis, as in {"Z": 3, "T": 0}, or the one index where there is
            only one such axis.
        channels: (from 0) one, which is taken as grey, or three as red, green and blue. Not asked for: grey and RGB(A)
            files as they are. Where the file names no channel axis, its only stack axis holds the channels.

    Raises:
        InputError: naming the file: not readable, truncated or empty; a stack or several channels and nothing chosen,
            saying how; an index that is not there; values that are not finite; more than MAX_PIXELS pixels.
    """
    path = Path(path)
    data = read_bytes(path)
    if channels is not None and len(channels) not in (1, 3):
        raise InputError(f"channels {','.join(map(str, channels))}: give one (grey) or three (red, green, blue)")
    if not data:
        raise InputError(f"{path}: the file is empty; fetch it again")
    if data[:4] in TIFF_MAGIC:
        micrograph = _read_tiff(path, plane, channels)
    else:
        pixels, axes = _read_other(path, data, plane)
        micrograph = Micrograph(reduce_axes(pixels, axes, str(path), plane if axes[0] == "I" else None, channels, True))
    return Micrograph(sound(micrograph.pixels, str(path)), micrograph.pixel_size, micrograph.resolution)


def describe(normalisation: Normalisation) -> str:
    """A normalisation in words, for logs."""
    if normalisation.name == "as_is":
        return "8-bit values, inverted" if normalisation.invert else "8-bit values as they are"
    at_least = f", at least {normalisation.minimum_range:g} grey values apart" if normalisation.minimum_range else ""
    to = "255..0 (inverted)" if normalisation.invert else "0..255"
    return f"percentiles {normalisation.low:g} to {normalisation.high:g}{at_least}, to {to}"


def parse_normalisation(text: str) -> Normalisation | None:
    """``auto`` (None: 8-bit images as they are, deeper ones by percentiles, as in training), ``as-is``, or
    ``percentile[:LOW,HIGH[,RANGE]]`` in percent and grey values."""
    if text == "auto":
        return None
    if text == "as-is":
        return Normalisation("as_is")
    name, _, numbers = text.partition(":")
    try:
        values = [float(number) for number in numbers.split(",")] if numbers else [0.1, 99.9]
        low, high = values[:2]
        if name != "percentile" or len(values) > 3 or not 0 <= low < high <= 100 or not 0 <= values[-1] < math.inf:
            raise ValueError
    except ValueError:
        raise InputError(
            f"normalisation {text}: use auto, as-is or percentile:LOW,HIGH,RANGE such as percentile:0.1,99.9,512"
        ) from None
    return Normalisation("percentile", low, high, values[2] if len(values) == 3 else 0.0)


def _read_tiff(path: Path, plane: Mapping[str, int] | int | None, channels: Sequence[int] | None) -> Micrograph:
    with damage_named(path), whole_tiff(path) as tiff:
        series, page, colours = choose_series(tiff, path, plane, channels)
        sizes = dict(zip(series.axes, series.shape, strict=True))
        if sizes["Y"] * sizes["X"] > MAX_PIXELS:
            raise InputError(
                f"{path}: {sizes['Y']} x {sizes['X']} pixels are more than {MAX_PIXELS:,}; "
                "predict it in tiles (--tile 1024), or cut it"
            )
        try:
            pixels = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            pixels = _without_imagecodecs(path, series.shape, compression(page))
        pixels, axes = as_meant(pixels, series.axes, page)
        return with_scale(tiff, reduce_axes(pixels, axes, str(path), plane, channels, colours))


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """What damage to the file raises in the block becomes an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (*DAMAGE, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot be read as an image; it is truncated, damaged or of another kind: fetch it again"
        ) from error


def choose_series(
    tiff: tifffile.TiffFile, path: Path, plane: Mapping[str, int] | int | None, channels: Sequence[int] | None
) -> tuple[Any, Any, bool]:
    """The one image of a TIFF, its first page, and whether its samples are one colour: RGB, or grey with alpha.

    Raises:
        InputError: it holds several; it is CMYK; ``plane`` and ``channels`` choose no one plane of it.
    """
    if not tiff.series:
        raise ValueError("no image")
    series, page = tiff.series[0], tiff.series[0].keyframe
    rivals = [s for s in tiff.series[1:] if math.prod(s.shape) >= math.prod(series.shape)]
    if rivals:
        shapes = ", ".join("x".join(map(str, s.shape)) for s in [series, *rivals][:4])
        raise InputError(f"{path}: holds {len(tiff.series)} images ({shapes}); save the one you want by itself")
    colours = page.photometric in (_RGB, _PALETTE) or bool({1, 2} & {int(extra) for extra in page.extrasamples})
    if page.photometric == _CMYK:
        raise InputError(f"{path}: its colours are CMYK; save it as RGB")
    # Before a large stack is read.
    sizes = {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if n > 1}
    check_choice(sizes, str(path), plane, channels, colours)
    return series, page, colours


def as_meant(pixels: NDArray[Any], axes: str, page: Any) -> tuple[NDArray[Any], str]:
    """Pixels and axes of a TIFF with palettes expanded to RGB, and white where the file counts down to it."""
    if page.photometric == _PALETTE and page.colormap is not None:
        return np.moveaxis(np.asarray(page.colormap) >> 8, 0, -1).astype(np.uint8)[pixels], axes + "S"
    if page.photometric == _WHITE_IS_ZERO and pixels.dtype.kind == "u":  # tifffile writes bits so
        return ~pixels, axes
    return pixels, axes


def compression(page: Any) -> str:
    return str(getattr(page.compression, "name", page.compression))


@contextmanager
def whole_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """``TiffFile`` that raises where pages are cut off: tifffile logs that and goes on with those that are left."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        with tifffile.TiffFile(path) as tiff:
            _ = tiff.series
            if any("invalid page offset" in message or "failed to reshape" in message for message in said):
                raise ValueError("pages are missing")
            yield tiff
    finally:
        logger.removeHandler(handler)


def _without_imagecodecs(path: Path, shape: tuple[int, ...], compression: str) -> NDArray[Any]:
    """Pillow reads LZW and JPEG in one plane; its result counts only where it has the shape the file says."""
    try:
        with Image.open(path) as image:
            pixels = np.array(image)
    except (*DAMAGE, Image.DecompressionBombError):
        pixels = np.zeros(0)
    if pixels.shape != shape:
        raise InputError(f"{path}: needs imagecodecs for its {compression} compression; type: pip install imagecodecs")
    return pixels


def _read_other(path: Path, data: bytes, plane: Mapping[str, int] | int | None) -> tuple[NDArray[Any], str]:
    """Pixels and axes of what Pillow reads."""
    if data[:8] != PNG_MAGIC or b"acTL" in data[:256]:  # may have frames, or colours of another kind
        try:
            with Image.open(path) as image:
                if image.width * image.height <= MAX_PIXELS:  # else decode_image says so
                    frames, mode = getattr(image, "n_frames", 1), image.mode
                    if frames > 1:
                        check_choice({"I": frames}, str(path), plane, None, True)
                        image.seek(choice({"I": frames}, str(path), plane)["I"])
                        return np.array(image.convert("RGB"))[None], "IYXS"
                    if mode in _AS_RGB:
                        return np.array(image.convert("RGB")), "YXS"
                    if mode not in _AS_ARRAY:
                        raise InputError(f"{path}: Pillow's mode {mode} is not supported; save it as grey or RGB")
        except (*DAMAGE, Image.DecompressionBombError) as error:
            if isinstance(error, InputError):
                raise
    pixels = decode_image(data, str(path))
    return pixels, "YXS"[: pixels.ndim]


def check_choice(
    sizes: dict[str, int], name: str, plane: Mapping[str, int] | int | None, channels: Sequence[int] | None, rgb: bool
) -> None:
    """Whether plane and channels choose one image out of axes longer than 1; see ``read_micrograph``."""
    sizes = {axis: n for axis, n in sizes.items() if axis not in "YX"}
    channel_axis = channel_axis_of(sizes, channels, rgb)
    stack = {axis: n for axis, n in sizes.items() if axis != channel_axis and axis != "S"}
    choice(stack, name, plane)
    count = sizes.get(channel_axis, 1) if channel_axis else (sizes.get("S", 1) if rgb else 1)
    if channels is not None:
        wrong = [c for c in channels if not 0 <= c < count]
        if wrong:
            raise InputError(f"{name}: no channel {wrong[0]}: it has {count}, from 0 to {count - 1}")
    elif channel_axis and count > 1:
        raise InputError(
            f"{name}: {count} channels; choose one (--channels 0) or three as red, green and blue (--channels 2,1,0)"
        )


def channel_axis_of(sizes: Mapping[str, int], channels: Sequence[int] | None, rgb: bool) -> str | None:
    if "C" in sizes:
        return "C"
    if "S" in sizes:
        return None if rgb else "S"
    stack = [axis for axis in sizes if axis not in "YX"]
    return stack[0] if channels is not None and len(stack) == 1 else None


def choice(stack: Mapping[str, int], name: str, plane: Mapping[str, int] | int | None) -> dict[str, int]:
    """Index along every axis of a stack."""
    if not stack:
        return {}
    shape = ", ".join(f"{axis} {n}" for axis, n in stack.items())
    if plane is None or (isinstance(plane, int) and len(stack) > 1):
        example = "--plane 0" if len(stack) == 1 else "--plane " + ",".join(f"{axis}=0" for axis in stack)
        raise InputError(
            f"{name}: a stack of {math.prod(stack.values())} planes ({shape}); choose one, as in {example}"
        )
    chosen = {next(iter(stack)): plane} if isinstance(plane, int) else {axis.upper(): i for axis, i in plane.items()}
    for axis, n in stack.items():
        if axis not in chosen:
            raise InputError(f"{name}: a stack ({shape}); --plane says nothing of {axis}, as {axis}=0 would")
        if not 0 <= chosen[axis] < n:
            raise InputError(f"{name}: no plane {axis}={chosen[axis]}: there are {n}, from 0 to {n - 1}")
    return chosen


def reduce_axes(
    pixels: NDArray[Any],
    axes: str,
    name: str,
    plane: Mapping[str, int] | int | None,
    channels: Sequence[int] | None,
    rgb: bool,
) -> NDArray[Any]:
    """(H, W) or (H, W, 3) of an array with named axes: Y, X, S samples, C channels, any other a stack."""
    keep = [i for i, (axis, n) in enumerate(zip(axes, pixels.shape, strict=True)) if n > 1 or axis in "YX"]
    pixels = pixels.reshape([pixels.shape[i] for i in keep])
    axes = "".join(axes[i] for i in keep)
    sizes = dict(zip(axes, pixels.shape, strict=True))
    check_choice(sizes, name, plane, channels, rgb)
    channel_axis = channel_axis_of({a: n for a, n in sizes.items() if a not in "YX"}, channels, rgb)
    stack = {axis: n for axis, n in sizes.items() if axis not in ("Y", "X", "S", channel_axis)}
    for axis, index in choice(stack, name, plane).items():
        if axis in axes:
            pixels = np.take(pixels, index, axis=axes.index(axis))
            axes = axes.replace(axis, "")
    order = ["Y", "X", *(axis for axis in axes if axis not in "YX")]
    pixels = pixels.transpose([axes.index(axis) for axis in order])
    if channels is not None and pixels.ndim == 3:
        pixels = pixels[:, :, channels[0]] if len(channels) == 1 else pixels[:, :, list(channels)]
    elif channels is not None and len(channels) == 3:  # grey, and the checks admit only 0,0,0
        pixels = np.stack([pixels] * 3, axis=2)
    if pixels.ndim == 3:  # grey with alpha; RGB with alpha
        pixels = pixels[:, :, 0] if pixels.shape[2] == 2 else pixels[:, :, :3]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] == 3):
        raise InputError(f"{name}: its axes {axes} of {pixels.shape} are not understood; save one plane as grey or RGB")
    return np.ascontiguousarray(pixels)


def sound(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    """The pixels where they can be worked with; signed bytes as unsigned ones."""
    if 0 in pixels.shape:
        raise InputError(f"{name}: has no pixels (shape {pixels.shape}); fetch it again")
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{name}: {pixels.dtype} values are not supported; save it as integers or floating values")
    if pixels.dtype.kind == "f":
        bad = pixels.size - np.count_nonzero(np.isfinite(pixels))
        if bad:
            raise InputError(f"{name}: {bad} values are NaN or infinite; replace them, by 0 say, and save it again")
    if pixels.dtype == np.int8:
        return (pixels.astype(np.int16) + 128).astype(np.uint8)
    return pixels


def with_scale(tiff: tifffile.TiffFile, pixels: NDArray[Any]) -> Micrograph:
    """Pixels with what the TIFF says of their size: OME, ImageJ, or tags fit for a microscope."""
    tags: Any = tiff.series[0].keyframe.tags
    found = [tags.get(key) for key in ("XResolution", "YResolution", "ResolutionUnit")]
    resolution = None
    if found[0] is not None and found[1] is not None:
        resolution = (found[0].value, found[1].value, int(found[2].value) if found[2] is not None else 2)
    size = _ome_pixel_size(tiff.ome_metadata) if tiff.is_ome else None
    if size is None and resolution and resolution[0][0] and resolution[1][0]:
        x, y = (numerator / max(denominator, 1) for numerator, denominator in resolution[:2])
        unit = str((tiff.imagej_metadata or {}).get("unit", "")) if tiff.is_imagej else ""
        unit = re.sub(r"\\u00b5", "µ", unit, flags=re.IGNORECASE)
        if unit in UNITS:
            size = (UNITS[unit] / y, UNITS[unit] / x)
        else:
            per_cm = {3: 1.0, 2: 1 / 2.54}.get(resolution[2], 0.0)
            if min(x, y) * per_cm > _OPTICAL:
                size = (1e4 / (y * per_cm), 1e4 / (x * per_cm))
    return Micrograph(pixels, size, resolution)


def _ome_pixel_size(xml: str | None) -> tuple[float, float] | None:
    try:
        (pixels, *_) = [e for e in ElementTree.fromstring(xml or "").iter() if e.tag.endswith("}Pixels")]
        y, x = (
            float(pixels.attrib[f"PhysicalSize{axis}"]) * UNITS[pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "YX"
        )
    except (ElementTree.ParseError, ValueError, KeyError):
        return None
    return (y, x) if 0 < x < math.inf and 0 < y < math.inf else None
