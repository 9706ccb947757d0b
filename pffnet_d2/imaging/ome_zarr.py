"""Reads OME-Zarr images window by window: NGFF up to 0.4 in Zarr 2 and 0.5 in Zarr 3.

Format: https://ngff.openmicroscopy.org/0.4 and https://ngff.openmicroscopy.org/0.5 (multiscales, axes, units).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.scene import ArrayPlane, long_axes

# Factors that convert the units of NGFF's axes to micrometres.
UNITS = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
# NGFF 0.1 and 0.2 do not name axes: there are always these five.
_OLDEST_AXES = "TCZYX"
_METADATA = {"zarr.json", ".zattrs", ".zgroup", ".zarray", ".zmetadata"}
# A level of a pyramid is chosen if its pixels are at most this many times larger or smaller than the size asked for.
_NEAR = 1.5


@dataclass(frozen=True)
class Level:
    """One resolution of an image."""

    path: str  # below the image's folder
    pixel_size: tuple[float, float] | None  # height and width in micrometres, if the file states it


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder in which Zarr keeps a group or an array."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs", ".zarray"))


class ZarrImage:
    """One resolution of an OME-Zarr image with all its planes.

    Attributes:
        long_axes: lengths of the axes longer than 1 other than Y and X.
        pixel_size: height and width in micrometres, if the image states it.
        channel_names: one per channel; empty if the image does not name them (``omero`` of NGFF).
    """

    def __init__(self, path: Path, level: float | None = None) -> None:
        """
        Args:
            path: the folder of the image.
            level: micrometres; of a pyramid whose levels state their pixel size, the level that is nearest. None
                chooses the full resolution.

        Raises:
            InputError: the zarr package is missing; the folder is not one image or is damaged; no level has nearly
                that pixel size.
        """
        self.name = str(path)
        with _damage_named(self.name):
            self.root, image = _image_of(path)
            axes = _axes_of(image)
            chosen = _level_for(_levels_of(image, axes), level, self.name)
            self.folder, self.pixel_size = self.root / chosen.path, chosen.pixel_size
            self.array: Any = _zarr(self.name).open_array(str(self.folder), mode="r")
            named = _attributes(self.root).get("omero", {}).get("channels", ())
            labels = tuple(str(channel.get("label", "")) for channel in named)
        self.axes = "".join(name for name, _ in axes)
        if len(self.axes) != len(self.array.shape) or not {"Y", "X"} <= set(self.axes):
            raise InputError(
                f"{path}: its axes {self.axes} of {self.array.shape} are not understood; save it as T, C, Z, Y, X"
            )
        sizes = dict(zip(self.axes, map(int, self.array.shape), strict=True))
        self.long_axes = long_axes(sizes)
        self.channel_names = labels if all(labels) and len(labels) == sizes.get("C", 1) else ()

    def files(self) -> list[Path]:
        """The metadata of the image and all files of the level that is read, sorted."""
        metadata = [self.root / name for name in _METADATA if (self.root / name).is_file()]
        return sorted({*metadata, *(path for path in self.folder.rglob("*") if path.is_file())})

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the names and bytes of ``files``."""
        found = hashlib.sha256()
        for path in self.files():
            data = path.read_bytes()
            found.update(f"{path.relative_to(self.root)} {len(data)}\n".encode())
            found.update(data)
        return found.hexdigest()


class ZarrPlane(ArrayPlane):
    """One plane of an OME-Zarr image; ``plane[y0:y1, x0:x1]`` reads the chunks of a window.

    Chunks that are not in the folder read as the array's fill value, as Zarr defines it: writers leave out chunks of
    background.
    """

    def __init__(
        self,
        image: ZarrImage,
        plane: Mapping[str, int] | int | None = None,
        channels: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            image: the image.
            plane, channels: as for ``scene.Selection``, channels by number.

        Raises:
            InputError: ``plane`` and ``channels`` do not choose one plane.
        """
        super().__init__(image.array, image.axes, image.name, plane, channels, rgb=False)
        self.image = image

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        with _damage_named(self.image.name):
            return super().__getitem__(key)


def _image_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the only image below ``path``, and its ``multiscales`` entry.

    Raises:
        InputError: there is none, or there are several.
    """
    attributes = _attributes(path)
    if "multiscales" in attributes:
        image: dict[str, Any] = attributes["multiscales"][0]
        return path, image
    if "plate" in attributes or "well" in attributes:
        raise InputError(
            f"{path}: is a plate of several images; name one, such as {path}/A/1/0, or quote a pattern: '{path}/*/*/*'"
        )
    # bioformats2raw writes a folder per image, numbered from 0.
    series = sorted(below for below in path.iterdir() if is_zarr(below) and "multiscales" in _attributes(below))
    if len(series) > 1:
        raise InputError(f"{path}: contains {len(series)} images; name one, such as {series[0]}")
    if not series:
        raise InputError(f"{path}: is Zarr but not an OME-Zarr image (no multiscales); convert it, or give its image")
    return _image_of(series[0])


def _attributes(path: Path) -> dict[str, Any]:
    """The attributes of a group: those of Zarr 2, or those below "ome" in Zarr 3."""
    for name in ("zarr.json", ".zattrs"):
        file = path / name
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            attributes = found.get("attributes", {}) if name == "zarr.json" else found
            ome: dict[str, Any] = attributes.get("ome", attributes)
            return ome
    return {}


def _axes_of(image: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """Name and micrometres per unit (None if unknown) of each axis."""
    named = image.get("axes", list(_OLDEST_AXES))
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in named]
    return [(str(axis["name"]).upper(), UNITS.get(str(axis.get("unit")))) for axis in axes]


def _levels_of(image: Mapping[str, Any], axes: Sequence[tuple[str, float | None]]) -> list[Level]:
    shared = _scale_of(image, len(axes))
    levels = []
    for dataset in image["datasets"]:
        scale = [own * all_levels for own, all_levels in zip(_scale_of(dataset, len(axes)), shared, strict=True)]
        sides = {name: side * unit for (name, unit), side in zip(axes, scale, strict=True) if unit is not None}
        known = all(0 < sides.get(axis, 0) < math.inf for axis in "YX")
        levels.append(Level(str(dataset["path"]), (sides["Y"], sides["X"]) if known else None))
    return levels


def _scale_of(entry: Mapping[str, Any], axes: int) -> list[float]:
    for transform in entry.get("coordinateTransformations", ()):
        if transform["type"] == "scale":
            return [float(factor) for factor in transform["scale"]]
    return [1.0] * axes


def _level_for(levels: Sequence[Level], wanted: float | None, name: str) -> Level:
    """The level whose pixels have nearly that size. Raises InputError if there is none."""
    sizes = {level: math.sqrt(math.prod(level.pixel_size)) for level in levels if level.pixel_size}
    if wanted is None or len(levels) == 1 or len(sizes) < len(levels):
        return levels[0]
    nearest = min(levels, key=lambda level: abs(math.log(sizes[level] / wanted)))
    if not 1 / _NEAR <= sizes[nearest] / wanted <= _NEAR:
        listed = ", ".join(f"{size:g}" for size in sizes.values())
        raise InputError(
            f"{name}: no level with pixels of {wanted:g} micrometres; it has {listed}: choose one of them (--level)"
        )
    return nearest


def _zarr(name: str) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise InputError(f"{name}: OME-Zarr needs the zarr package; type: pip install 'pffnet_d2[ome-zarr]'") from error
    return zarr


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Turn what zarr and its codecs raise on damaged files inside the block into an InputError that names the image."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or "a file of it is missing"
        raise InputError(f"{name}: cannot be read ({reason}); check the path, or copy it again") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise InputError(f"{name}: cannot be read as OME-Zarr; it is damaged or incomplete: copy it again") from error
