"""Files that are neither TIFF nor pictures: numpy arrays, microscopes' own formats, and slides of pathology.

bioio (https://bioio-devs.github.io/bioio) reads the formats of microscopes by one package per vendor. Its names of axes
are those of OME: T, C, Z, Y, X, S. OpenSlide (https://openslide.org) reads slides. Both are optional.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.scene import ArrayPlane, Scene, long_axes, scene_number

# The package of bioio that reads files of an ending, and the extra of ours that installs it.
BIOIO = {".nd2": ("bioio_nd2", "formats"), ".lif": ("bioio_lif", "formats"), ".czi": ("bioio_czi", "czi")}
SLIDES = (".mrxs", ".vms", ".vmu", ".svslide", ".dcm")  # slides that OpenSlide reads, apart from TIFFs
ARRAY = ".npy"
# TIFFs whose ending does not say so.
TIFFS = (".lsm", ".stk", ".svs", ".ndpi", ".scn", ".bif", ".qptiff")
# Letters of the axes of an array other than the last two or three, from the innermost outwards.
_ARRAY_AXES = "IJKLMN"

READABLE = (
    "TIFF (.tif, .svs, .ndpi, .scn, ...), PNG, JPEG, BMP, GIF and .npy; with pip install 'pffnet_d2[formats]' ND2, LIF "
    "and what other readers of bioio add, with 'pffnet_d2[czi]' CZI, with 'pffnet_d2[slides]' .mrxs, .vms, .svslide "
    "and .dcm slides"
)

_Opener = Callable[[Path, "int | str | None", "float | None"], AbstractContextManager[Scene]]


def reads(path: Path) -> bool:
    """Whether this module reads a file, going by its ending; for unknown endings, whether a reader of bioio does."""
    return _opener_of(path) is not None


def open_scene(path: Path, scene: int | str | None, level: float | None) -> AbstractContextManager[Scene]:
    """Opens one image of a file inside the block.

    Raises:
        InputError: naming the file: a package is not installed; it cannot be read; there is no such image or level.
    """
    opener = _opener_of(path)
    assert opener is not None
    return opener(path, scene, level)


def check_ending(path: Path, data: bytes) -> None:
    """Raises InputError that names what can be read if Pillow knows neither the ending nor the content of a file."""
    ending = path.suffix.lower()
    if ending in Image.registered_extensions() or ending in ("", ".tif", ".tiff", *TIFFS):
        return
    known = any(accept is not None and accept(data[:16]) for _, accept in Image.OPEN.values())
    if not known:
        raise InputError(f"{path}: {ending} files cannot be read; what can: {READABLE}")


def scene_names(path: Path) -> list[str]:
    """The names of the images of a file; see ``microscopy.scene_names``."""
    if not reads(path) or _opener_of(path) is not _bioio:
        return [""]
    return list(_bioimage(path).scenes)


def _opener_of(path: Path) -> _Opener | None:
    ending = path.suffix.lower()
    if ending == ARRAY:
        return _array
    if ending in SLIDES:
        return _slide
    if ending in BIOIO or _other_reader(path):
        return _bioio
    return None


# --- numpy ----------------------------------------------------------------------------------------------------------


@contextmanager
def _array(path: Path, scene: int | str | None, level: float | None) -> Iterator[Scene]:
    """(H, W), or (H, W, C) of up to four channels, three or four of which are RGB(A); more axes before them are a
    stack. The array is not read but mapped."""
    name = str(path)
    _no_pyramid(name, level)
    scene_number(scene, [""], name, [""])
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(
            f"{path}: cannot be read as a numpy array of numbers; it is truncated, damaged or holds Python objects"
        ) from error
    if array.ndim < 2 or 0 in array.shape or array.ndim - 2 > len(_ARRAY_AXES):
        raise InputError(f"{path}: an array of shape {array.shape} is no image; save (H, W) or (H, W, C)")
    samples = array.ndim > 2 and array.shape[-1] <= 4
    outer = array.ndim - (3 if samples else 2)
    axes = _ARRAY_AXES[:outer][::-1] + ("YXS" if samples else "YX")
    yield _scene_of(array, axes, name, samples and array.shape[-1] > 2)


def _scene_of(array: Any, axes: str, name: str, rgb: bool, **known: Any) -> Scene:
    sizes = long_axes(dict(zip(axes, array.shape, strict=True)))
    return Scene(name, sizes, rgb, lambda plane, channels: ArrayPlane(array, axes, name, plane, channels, rgb), **known)


def _no_pyramid(name: str, level: float | None) -> None:
    if level is not None:
        raise InputError(f"{name}: is no pyramid; leave --level out")


# --- bioio ----------------------------------------------------------------------------------------------------------


@contextmanager
def _bioio(path: Path, scene: int | str | None, level: float | None) -> Iterator[Scene]:
    name = str(path)
    _no_pyramid(name, level)
    image = _bioimage(path)
    try:
        names = list(image.scenes)
        _check_scenes(path, len(names))
        number = scene_number(scene, names, name, names)
        image.set_scene(number)
        axes, array = str(image.dims.order), image.dask_data
        found = image.physical_pixel_sizes
        channels = tuple(str(channel) for channel in image.channel_names or ())
    except InputError:
        raise
    except Exception as error:  # each reader has its own ways to say that a file is damaged
        raise _unreadable(path, error) from error
    size = (float(found.Y), float(found.X)) if found.Y and found.X else None
    names_fit = len(channels) == dict(zip(axes, array.shape, strict=True)).get("C", 1)
    # bioio makes names such as "Channel:0:1" where the file has none.
    named = names_fit and not any(channel.startswith("Channel:") for channel in channels)
    yield _scene_of(array, axes, name, "S" in axes, channel_names=channels if named else (), pixel_size=size)


def _bioimage(path: Path) -> Any:
    """A file as bioio opens it. Raises InputError if a package is missing or the file cannot be read."""
    module, extra = BIOIO.get(path.suffix.lower(), ("bioio", "formats"))
    try:
        reader = importlib.import_module(module).Reader if path.suffix.lower() in BIOIO else None
        bioio = importlib.import_module("bioio")
    except ImportError as error:
        licence = " (its licence is the GPL)" if extra == "czi" else ""
        raise InputError(
            f"{path}: {path.suffix.lower()} files need {module.replace('_', '-')}{licence}; type: pip install "
            f"'pffnet_d2[{extra}]'"
        ) from error
    try:
        return bioio.BioImage(path, reader=reader)
    except Exception as error:
        raise _unreadable(path, error) from error


def _check_scenes(path: Path, described: int) -> None:
    """Raises InputError for a CZI with more images than its metadata describe, of which bioio shows only the first."""
    if path.suffix.lower() != ".czi":
        return
    with importlib.import_module("pylibCZIrw.czi").open_czi(str(path)) as file:
        count = len(file.scenes_bounding_rectangle)
    if count > described:
        raise InputError(
            f"{path}: contains {count} images, but its metadata describe {described}; save it again, each image by "
            "itself"
        )


def _unreadable(path: Path, error: Exception) -> InputError:
    said = (str(error).splitlines() or [""])[0][:120]
    return InputError(
        f"{path}: bioio cannot read it ({type(error).__name__}{f': {said}' if said else ''}); it is truncated, damaged "
        "or of another kind: fetch it again"
    )


def _other_reader(path: Path) -> bool:
    """Whether an installed reader of bioio is made for an ending that nothing else reads."""
    ending = path.suffix.lower()
    if not ending or ending in Image.registered_extensions() or ending in (".tif", ".tiff", *TIFFS):
        return False
    try:
        plugins = importlib.import_module("bioio.plugins")
    except ImportError:
        return False
    return any(
        path.name.lower().endswith(f".{known.lower().lstrip('.')}") for known in plugins.get_plugins(use_cache=True)
    )


# --- Slides ---------------------------------------------------------------------------------------------------------


@contextmanager
def _slide(path: Path, scene: int | str | None, level: float | None) -> Iterator[Scene]:
    name = str(path)
    scene_number(scene, [""], name, [""])
    try:
        openslide = importlib.import_module("openslide")
    except ImportError as error:
        raise InputError(
            f"{path}: {path.suffix.lower()} slides need openslide-python and openslide-bin; type: pip install "
            "'pffnet_d2[slides]'"
        ) from error
    try:
        slide = openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as a slide; it is truncated, damaged or of another kind, or the files beside it "
            "are missing"
        ) from error
    with slide:
        size = None
        if "openslide.mpp-x" in slide.properties and "openslide.mpp-y" in slide.properties:
            size = (float(slide.properties["openslide.mpp-y"]), float(slide.properties["openslide.mpp-x"]))
        number = 0
        if level is not None:
            if size is None:
                raise InputError(
                    f"{name}: does not state the size of its pixels, which --level needs; leave --level out"
                )
            sides = [size[1] * factor for factor in slide.level_downsamples]
            number = min(range(len(sides)), key=lambda i: abs(math.log(sides[i] / level)))
            size = (size[0] * slide.level_downsamples[number], sides[number])
        yield _scene_of(_SlideLevel(slide, number, name), "YXS", name, True, pixel_size=size)


class _SlideLevel:
    """One level of a slide as an array (H, W, 3) uint8. Places that were not scanned are white."""

    dtype = np.dtype(np.uint8)

    def __init__(self, slide: Any, level: int, name: str) -> None:
        width, height = slide.level_dimensions[level]
        self._slide, self._level, self._name, self.shape = slide, level, name, (height, width, 3)

    def __getitem__(self, key: tuple[slice, slice, Any]) -> NDArray[np.uint8]:
        (top, bottom, _), (left, right, _) = (part.indices(n) for part, n in zip(key[:2], self.shape, strict=False))
        factor = self._slide.level_downsamples[self._level]
        corner = (round(left * factor), round(top * factor))  # in pixels of the largest level
        try:
            region = self._slide.read_region(corner, self._level, (right - left, bottom - top))
        except Exception as error:
            raise InputError(f"{self._name}: a part of the slide cannot be read ({error}); fetch it again") from error
        white = Image.new("RGBA", region.size, "white")
        return np.asarray(Image.alpha_composite(white, region).convert("RGB"))[..., key[2]]
