"""Reads one plane of any microscopy file, with the size of its pixels, for prediction.

``read.decode_image`` reads the plain images of data sets. A microscopy file may contain several images, several
channels, a stack, palettes, 32-bit or floating-point values and metadata; the user chooses one of its planes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging import vendor
from pffnet_d2.imaging.axes import check_choice, choice, reduce_axes
from pffnet_d2.imaging.ome_zarr import ZarrImage, ZarrPlane, is_zarr
from pffnet_d2.imaging.read import MAX_PIXELS, open_image, pixels_of, read_bytes
from pffnet_d2.imaging.scene import Scene, Selection, Sliceable, scene_number
from pffnet_d2.imaging.tiff import (
    TIFF_MAGIC,
    TiffPlane,
    checked_page,
    damage_named,
    one_colour,
    series_of,
    shape_of,
    stack_axes_of,
    whole_tiff,
)

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
    channels: NDArray[Any] | None = None  # (H, W, n), all channels of the same plane, if they were asked for
    channel_names: tuple[str, ...] = ()  # n


def read_microscopy_image(
    path: str | Path, *, plane: Mapping[str, int] | int | None = None, channels: Sequence[int | str] | None = None
) -> MicroscopyImage:
    """Read TIFF (plain, OME, ImageJ), OME-Zarr, PNG, JPEG, BMP, ... of 8, 16 or 32-bit integers or floating-point
    values, and the formats of ``vendor``.

    Args:
        path: the file.
        plane, channels: as for ``scene.Selection``.

    Raises:
        InputError: naming the file: it is unreadable, truncated or empty; it is a stack or has several channels, and no
            choice was made (the message says how to choose); an index is out of range; values are not finite; it has
            more than MAX_PIXELS pixels.
    """
    return read_selection(path, Selection(plane=plane, channels=channels))


def read_selection(path: str | Path, selection: Selection, *, every_channel: bool = False) -> MicroscopyImage:
    """Like ``read_microscopy_image``, for any selection; with ``every_channel``, also all channels of its plane."""
    with open_selection(Path(path), selection, every_channel=every_channel) as image:
        height, width = image.pixels.shape[:2]
        if height * width > MAX_PIXELS:
            raise InputError(
                f"{path}: {height} x {width} pixels are more than {MAX_PIXELS:,}; "
                "predict it in tiles (--tile 1024), or cut it"
            )
        channels = image.channels
        return replace(
            image,
            pixels=sound(image.pixels[:, :], str(path)),
            channels=None if channels is None else sound(channels[:, :], str(path)),
        )


@contextmanager
def open_selection(path: Path, selection: Selection, *, every_channel: bool = False) -> Iterator[MicroscopyImage]:
    """Open a file inside the block; the pixels, and with ``every_channel`` the channels, are read when they are sliced.

    Raises:
        InputError: as for ``read_microscopy_image``. Slicing raises it if a tile or strip cannot be decoded.
    """
    if selection.channels is not None and len(selection.channels) not in (1, 3):
        listed = ",".join(map(str, selection.channels))
        raise InputError(f"channels {listed}: give one (grey) or three (red, green, blue)")
    if selection.project not in (None, "max"):
        raise InputError(f"--project {selection.project}: the only projection is max")
    with open_scene(path, selection.scene, selection.level) as scene:
        pixels: Any = scene.chosen(selection)
        yield MicroscopyImage(
            pixels,
            scene.pixel_size,
            scene.resolution,
            channels=scene.every_channel(selection) if every_channel else None,  # type: ignore[arg-type]
            channel_names=tuple(scene.names_of_channels(selection)) if every_channel else (),
        )


@contextmanager
def open_scene(path: Path, scene: int | str | None = None, level: float | None = None) -> Iterator[Scene]:
    """Open one image of a file inside the block. See ``scene.Selection`` for ``scene`` and ``level``.

    Raises:
        InputError: naming the file: it cannot be read; there is no such image or level.
    """
    with ExitStack() as files:
        # Only errors while opening are damage of the file; the block may raise any others.
        if is_zarr(path):
            opened = _zarr_scene(path, scene, level)
        elif is_tiff(path):
            with damage_named(path):
                tiff = files.enter_context(whole_tiff(path))
                opened = _tiff_scene(tiff, str(path), scene, level)
        elif vendor.reads(path):
            opened = files.enter_context(vendor.open_scene(path, scene, level))
        else:
            opened = _picture(path, scene, level)
        yield opened


def scene_names(path: Path) -> list[str]:
    """The names of the images of a file; some may be empty. Raises InputError naming the file if it cannot be read."""
    if is_zarr(path):
        return [""]
    if is_tiff(path):
        with damage_named(path), whole_tiff(path) as tiff:
            return [series.name for series in series_of(tiff, thumbnails=not tiff.is_ome)]
    return vendor.scene_names(path)


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


def _tiff_scene(tiff: tifffile.TiffFile, name: str, scene: int | str | None, level: float | None) -> Scene:
    # All images of an OME-TIFF are described, so small ones are no thumbnails if the user wants to choose.
    images = series_of(tiff, thumbnails=scene is None or not tiff.is_ome)
    number = scene_number(scene, [series.name for series in images], name, [shape_of(series) for series in images])
    series = images[number]
    place = tiff.series.index(series)
    size, resolution = _scale_of(tiff, place)
    if level is not None:
        series, size = _level(series, size, level, name)
    page = checked_page(series, name)

    def open_plane(plane: Mapping[str, int] | int | None, channels: Sequence[int] | None) -> Sliceable:
        with damage_named(name):
            return TiffPlane(tiff, name, plane, channels, series=series)

    return Scene(
        name,
        stack_axes_of(series, page),
        one_colour(page, name),
        open_plane,
        _ome_channel_names(tiff.ome_metadata, place) if tiff.is_ome else (),
        size,
        resolution if level is None else None,
    )


def _level(series: Any, size: tuple[float, float] | None, wanted: float, name: str) -> tuple[Any, tuple[float, float]]:
    """The level of a pyramid whose pixels are closest in size to ``wanted`` micrometres, with that size."""
    if size is None:
        raise InputError(f"{name}: does not state the size of its pixels, which --level needs; leave --level out")
    widths = [level.shape[level.axes.index("X")] for level in series.levels]
    sides = [(size[0] * widths[0] / width, size[1] * widths[0] / width) for width in widths]
    closest = min(range(len(widths)), key=lambda i: abs(math.log(sides[i][1] / wanted)))
    return series.levels[closest], sides[closest]


def _zarr_scene(path: Path, scene: int | str | None, level: float | None) -> Scene:
    scene_number(scene, [""], str(path), [""])
    image = ZarrImage(path, level)

    def open_plane(plane: Mapping[str, int] | int | None, channels: Sequence[int] | None) -> Sliceable:
        return ZarrPlane(image, plane, channels)

    return Scene(str(path), image.long_axes, False, open_plane, image.channel_names, image.pixel_size)


def _picture(path: Path, scene: int | str | None, level: float | None) -> Scene:
    """A file that Pillow reads. Several frames are a stack."""
    data, name = read_bytes(path), str(path)
    vendor.check_ending(path, data)
    with open_image(data, name) as image:
        frames, bands = getattr(image, "n_frames", 1), 3 if image.mode in ("P", "PA") else len(image.getbands())
    scene_number(scene, [""], name, [""])
    if level is not None:
        raise InputError(f"{path}: is no pyramid; leave --level out")

    def open_plane(plane: Mapping[str, int] | int | None, channels: Sequence[int] | None) -> Sliceable:
        with open_image(data, name) as image:
            if frames > 1:
                check_choice({"I": frames}, name, plane, None, True)
                image.seek(choice({"I": frames}, name, plane)["I"])
                plane = None
            pixels = pixels_of(image, data, name)
        return reduce_axes(pixels, "YXS"[: pixels.ndim], name, plane, channels, True)

    return Scene(name, {axis: n for axis, n in {"I": frames, "S": bands}.items() if n > 1}, True, open_plane)


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


def _scale_of(tiff: tifffile.TiffFile, number: int) -> tuple[tuple[float, float] | None, tuple[Any, Any, int] | None]:
    """The pixel size that a TIFF states of one of its series, and the resolution tags of the series."""
    tags: Any = tiff.series[number].keyframe.tags
    found = [tags.get(key) for key in ("XResolution", "YResolution", "ResolutionUnit")]
    resolution = None
    if found[0] is not None and found[1] is not None:
        resolution = (found[0].value, found[1].value, int(found[2].value) if found[2] is not None else 2)
    for x, y, unit in _pixel_sizes(tiff, number, resolution):
        if unit in UNITS and all(_SMALLEST < side * UNITS[unit] < math.inf for side in (x, y)):
            return (y * UNITS[unit], x * UNITS[unit]), resolution
    return None, resolution


def _pixel_sizes(
    tiff: tifffile.TiffFile, number: int, resolution: tuple[Any, Any, int] | None
) -> Iterator[tuple[float, float, str]]:
    """Width, height and unit of a pixel as each kind of metadata in the file states them, the most reliable first.
    Many programs write 72 dots per inch if they do not know the size."""
    page = tiff.series[number].keyframe
    if tiff.is_ome:
        yield from _ome_pixel_size(tiff.ome_metadata, number)
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


def _ome_pixel_size(xml: str | None, number: int) -> Iterator[tuple[float, float, str]]:
    try:
        pixels = _ome_pixels(xml, number)
        x, y = (
            float(pixels.attrib[f"PhysicalSize{axis}"]) * UNITS[pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        )
    except (ElementTree.ParseError, ValueError, LookupError):
        return
    yield x, y, "um"


def _ome_channel_names(xml: str | None, number: int) -> tuple[str, ...]:
    """The names of the channels of an image; () unless all have one. RGB channels, of several samples, have none."""
    try:
        channels = [e for e in _ome_pixels(xml, number) if e.tag.endswith("}Channel")]
    except (ElementTree.ParseError, LookupError):
        return ()
    names = tuple(channel.attrib.get("Name", "").strip() for channel in channels)
    samples = any(channel.attrib.get("SamplesPerPixel", "1") != "1" for channel in channels)
    return names if all(names) and not samples else ()


def _ome_pixels(xml: str | None, number: int) -> ElementTree.Element:
    """The Pixels of an image in the XML of an OME-TIFF."""
    return [e for e in ElementTree.fromstring(xml or "").iter() if e.tag.endswith("}Pixels")][number]
