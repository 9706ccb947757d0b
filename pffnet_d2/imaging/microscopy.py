"""Reads one plane of any microscopy file, with the size of its pixels, for prediction.

``read.decode_image`` reads the plain images of data sets. A microscopy file may contain several channels, a stack,
palettes, 32-bit or floating-point values and metadata; the user chooses one of its planes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.axes import check_choice, choice, reduce_axes
from pffnet_d2.imaging.ome_zarr import ZarrPlane, is_zarr
from pffnet_d2.imaging.read import MAX_PIXELS, open_image, pixels_of, read_bytes
from pffnet_d2.imaging.tiff import TIFF_MAGIC, TiffPlane, damage_named, whole_tiff

# Factors that convert units to micrometres, by the unit names of OME and ImageJ.
UNITS = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4}
# A resolution of fewer pixels per centimetre (1270 per inch) is that of a screen or a printer.
_OPTICAL = 500
_SMALLEST = 1e-4  # micrometres; smaller than an atom


@dataclass(frozen=True)
class MicroscopyImage:
    """One plane of a file."""

    pixels: NDArray[Any]  # (H, W) or RGB (H, W, 3), in the file's own depth; finite
    pixel_size: tuple[float, float] | None = None  # height and width in micrometres, if the file states it
    resolution: tuple[Any, Any, int] | None = None  # XResolution, YResolution, ResolutionUnit of a TIFF


def read_microscopy_image(
    path: str | Path,
    *,
    plane: Mapping[str, int] | int | None = None,
    channels: Sequence[int] | None = None,
    pixel_size: float | None = None,
) -> MicroscopyImage:
    """Read TIFF (plain, OME, ImageJ), OME-Zarr, PNG, JPEG, BMP, ... of 8, 16 or 32-bit integers or floating-point
    values.

    Args:
        path: the file.
        plane: for a stack, the index (from 0) along each axis, as in {"Z": 3, "T": 0}, or a single index if the stack
            has only one axis.
        channels: one channel (from 0), read as grey, or three, read as red, green and blue. None reads grey and RGB(A)
            files as they are. If the file does not name a channel axis, its only stack axis contains the channels.
        pixel_size: chooses the level of an OME-Zarr pyramid, in micrometres; see ``ome_zarr.ZarrPlane``.

    Raises:
        InputError: naming the file: it is unreadable, truncated or empty; it is a stack or has several channels, and no
            choice was made (the message says how to choose); an index is out of range; values are not finite; it has
            more than MAX_PIXELS pixels.
    """
    path = Path(path)
    if channels is not None and len(channels) not in (1, 3):
        raise InputError(f"channels {','.join(map(str, channels))}: give one (grey) or three (red, green, blue)")
    if is_zarr(path):
        lazy = zarr_image(path, plane, channels, pixel_size)
        _check_size(path, *lazy.pixels.shape[:2])
        image = MicroscopyImage(lazy.pixels[:, :], lazy.pixel_size)
    elif is_tiff(path):
        image = _read_tiff(path, plane, channels)
    else:
        image = MicroscopyImage(_read_other(path, plane, channels))
    return MicroscopyImage(sound(image.pixels, str(path)), image.pixel_size, image.resolution)


def is_tiff(path: Path) -> bool:
    """Whether a file begins like a TIFF. Raises InputError naming it if it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not magic:
        raise InputError(f"{path}: the file is empty; fetch it again")
    return magic in TIFF_MAGIC


def _read_tiff(path: Path, plane: Mapping[str, int] | int | None, channels: Sequence[int] | None) -> MicroscopyImage:
    with damage_named(path), whole_tiff(path) as tiff:
        pixels = TiffPlane(tiff, str(path), plane, channels)
        _check_size(path, *pixels.shape[:2])
        return with_scale(tiff, pixels[:, :])


def zarr_image(
    path: Path, plane: Mapping[str, int] | int | None, channels: Sequence[int] | None, pixel_size: float | None
) -> MicroscopyImage:
    """One plane of an OME-Zarr; its pixels are read when they are sliced. Raises InputError like ``ZarrPlane``."""
    pixels = ZarrPlane(path, plane, channels, pixel_size)
    return MicroscopyImage(pixels, pixels.pixel_size)  # type: ignore[arg-type]


def _check_size(path: Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{path}: {height} x {width} pixels are more than {MAX_PIXELS:,}; "
            "predict it in tiles (--tile 1024), or cut it"
        )


def _read_other(path: Path, plane: Mapping[str, int] | int | None, channels: Sequence[int] | None) -> NDArray[Any]:
    """Reads one frame of a file with Pillow."""
    data, name = read_bytes(path), str(path)
    with open_image(data, name) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            check_choice({"I": frames}, name, plane, None, True)
            image.seek(choice({"I": frames}, name, plane)["I"])
            plane = None
        pixels = pixels_of(image, data, name)
    return reduce_axes(pixels, "YXS"[: pixels.ndim], name, plane, channels, True)


def sound(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    """The same pixels, with signed bytes as unsigned bytes (-128 becomes 0).

    Raises:
        InputError: naming ``name``: there are no pixels; values are neither integers nor floats; values are not finite.
    """
    if 0 in pixels.shape:
        raise InputError(f"{name}: has no pixels (shape {pixels.shape}); fetch it again")
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{name}: {pixels.dtype} values are not supported; save it as integers or floating values")
    if pixels.dtype.kind == "f":
        bad = pixels.size - np.count_nonzero(np.isfinite(pixels))
        if bad:
            raise InputError(
                f"{name}: {bad} values are NaN or infinite; replace them, for example by 0, and save it again"
            )
    if pixels.dtype == np.int8:
        return (pixels.astype(np.int16) + 128).astype(np.uint8)
    return pixels


def with_scale(tiff: tifffile.TiffFile, pixels: NDArray[Any]) -> MicroscopyImage:
    """The pixels with the pixel size that the TIFF states."""
    tags: Any = tiff.series[0].keyframe.tags
    found = [tags.get(key) for key in ("XResolution", "YResolution", "ResolutionUnit")]
    resolution = None
    if found[0] is not None and found[1] is not None:
        resolution = (found[0].value, found[1].value, int(found[2].value) if found[2] is not None else 2)
    for x, y, unit in _pixel_sizes(tiff, resolution):
        if unit in UNITS and all(_SMALLEST < side * UNITS[unit] < math.inf for side in (x, y)):
            return MicroscopyImage(pixels, (y * UNITS[unit], x * UNITS[unit]), resolution)
    return MicroscopyImage(pixels, None, resolution)


def _pixel_sizes(
    tiff: tifffile.TiffFile, resolution: tuple[Any, Any, int] | None
) -> Iterator[tuple[float, float, str]]:
    """Width, height and unit of a pixel as each kind of metadata in the file states them, the most reliable first.
    Many programs write 72 dots per inch if they do not know the size."""
    page = tiff.series[0].keyframe
    if tiff.is_ome:
        yield from _ome_pixel_size(tiff.ome_metadata)
    stk = page.tags.get("UIC1tag")  # of MetaMorph
    calibration = stk.value if stk is not None and isinstance(stk.value, dict) else {}
    x, y = calibration.get("XCalibration"), calibration.get("YCalibration")
    # tifffile returns an integer, the offset, if a value is missing from the file.
    if calibration.get("SpatialCalibration") and isinstance(x, float) and isinstance(y, float):
        yield x, y, str(calibration.get("CalibrationUnits")).strip("\x00 ")
    if page.is_svs:
        microns = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", page.description)
        if microns:
            yield float(microns[1]), float(microns[1]), "um"
    if resolution is None:
        return
    x, y = (numerator / denominator if denominator else 0.0 for numerator, denominator in resolution[:2])
    if not x or not y:
        return
    unit = str((tiff.imagej_metadata or {}).get("unit", "")) if tiff.is_imagej else ""
    unit = re.sub(r"\\u00b5", "µ", unit, flags=re.IGNORECASE)
    if unit != "cm":  # ImageJ writes cm when it converts the dots per inch of other programs
        yield 1 / x, 1 / y, unit
    per_cm = {3: 1.0, 2: 1 / 2.54}.get(resolution[2], 0.0)
    if min(x, y) * per_cm > _OPTICAL:
        yield 1 / (x * per_cm), 1 / (y * per_cm), "cm"


def _ome_pixel_size(xml: str | None) -> Iterator[tuple[float, float, str]]:
    try:
        (pixels, *_) = [e for e in ElementTree.fromstring(xml or "").iter() if e.tag.endswith("}Pixels")]
        x, y = (
            float(pixels.attrib[f"PhysicalSize{axis}"]) * UNITS[pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        )
    except (ElementTree.ParseError, ValueError, KeyError):
        return
    yield x, y, "um"
