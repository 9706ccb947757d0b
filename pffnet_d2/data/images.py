"""Reading microscopy images of any depth, and the normalisation to the 8-bit RGB that the models take.

The same code runs when a data set is prepared and at prediction, and the prepared json names the normalisation, so that
both see the same grey values.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from pffnet_d2.errors import InputError

# Its warnings repeat what the InputError says; they still reach whoever configures logging.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

MAX_PIXELS = 1 << 27  # 11,585 x 11,585; more is refused unread
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# What Pillow and tifffile raise on damaged files; Pillow's PNG reader raises SyntaxError for a broken chunk.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    EOFError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Normalisation:
    """How grey values become 8 bit.

    - "as_is": 8-bit images stay as they are.
    - "percentile": from the image's own percentile ``low`` (to 0) to ``high`` (to 255), both taken over all channels so
      that colours keep their ratio; percentiles instead of extremes so that a few hot pixels do not darken the rest.
      The range is at least ``minimum_range`` grey values, so that an image of nothing but noise stays dark instead of
      being stretched into a picture.
    - "auto": "as_is" for 8-bit images, "percentile" for deeper ones, without a minimum range for those of floats, whose
      unit is unknown.
    - "stretch": as "auto", but 8-bit images from their percentiles too, at least 24 grey values apart.

    With ``invert`` dark becomes bright: 0 and 255, and so the two percentiles, change places.
    """

    name: str
    low: float = 0.0
    high: float = 100.0
    minimum_range: float = 0.0
    invert: bool = False

    def info(self) -> dict[str, Any]:
        """The json form kept in a prepared data set; ``Normalisation(**info)`` reads it back."""
        info = asdict(self)
        if not self.invert:  # which data sets prepared before did not say
            del info["invert"]
        return info


AS_IS = Normalisation("as_is")
# Percentiles of Caicedo et al., Cytometry A 95(9), 2019. The range of BBBC039 (12 bit), measured on its 150 training
# and validation fields: 39 to 52 grey values in the three empty fields, 661 or more in all others (median 1228). At 512
# no field with nuclei is changed and the noise of an empty one stays below a tenth of the scale.
PERCENTILE_16_BIT = Normalisation("percentile", 0.1, 99.9, 512.0)
# The range of DSB2018's 318 fluorescence images at hand: 26 to 252 grey values, median 67.
PERCENTILE_8_BIT = Normalisation("percentile", 0.1, 99.9, 24.0)
AUTO = replace(PERCENTILE_16_BIT, name="auto")
STRETCH = replace(PERCENTILE_16_BIT, name="stretch")
BY_DEPTH = {each.name: each for each in (AUTO, STRETCH)}  # what depends on the image's depth


def normalisation_of(image: npt.NDArray[Any], given: Normalisation = AUTO) -> Normalisation:
    """What "auto" and "stretch" mean for an image; another is returned as it is."""
    if given.name not in BY_DEPTH:
        return given
    if image.dtype == np.uint8 and given.name == STRETCH.name:
        return replace(PERCENTILE_8_BIT, invert=given.invert)
    if image.dtype in (np.uint8, np.bool_):
        return replace(AS_IS, invert=given.invert)
    return replace(given, name="percentile", minimum_range=given.minimum_range if image.dtype.kind in "ui" else 0.0)


def to_rgb8(
    image: npt.NDArray[Any], normalisation: Normalisation, limits: tuple[float, float] | None = None
) -> npt.NDArray[np.uint8]:
    """(H, W), (H, W, 1 to 4) of any depth to (H, W, 3) uint8 RGB. An alpha channel is dropped, grey is repeated.

    Args:
        image: the pixels.
        normalisation: how they become 8 bit.
        limits: the two percentiles where they are not this image's own: of the larger one that it is cut from.

    Raises:
        InputError: another shape; values that are not finite; "as_is" asked for an image that is not 8 bit.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or 0 in image.shape:
        raise InputError(f"an image of shape {image.shape} is neither grey nor RGB(A); give a single plane")
    image = image[:, :, : 1 if image.shape[2] < 3 else 3]
    normalisation = normalisation_of(image, normalisation)
    if normalisation.name == "percentile":
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise InputError("the image has values that are not finite; replace them first")
        low, high = limits or np.percentile(image, (normalisation.low, normalisation.high))
        scale = 255 / max(high - low, normalisation.minimum_range, np.finfo(np.float32).tiny)
        # 32-bit floating values cannot tell large 32-bit integers apart.
        real: Any = np.float64 if image.dtype.kind in "ui" and image.dtype.itemsize > 2 else np.float32
        above = real(high) - image.astype(real) if normalisation.invert else image.astype(real) - real(low)
        return _as_rgb(np.clip(np.rint(above * real(scale)), 0, 255).astype(np.uint8))
    if normalisation.name != "as_is":
        raise InputError(f"unknown normalisation {normalisation.name!r}; use as_is, percentile, auto or stretch")
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    elif image.dtype != np.uint8:
        raise InputError(f"a {image.dtype} image is not 8 bit; use the percentile normalisation")
    return _as_rgb(~image if normalisation.invert else image)


def _as_rgb(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy (H, W, 3) of (H, W, 1) or (H, W, 3)."""
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))


def decode_image(data: bytes, name: str, *, palette: bool = True) -> npt.NDArray[Any]:
    """Decode PNG, TIFF, JPEG, ... without changing the depth: (H, W) or (H, W, C).

    Args:
        data: content of the file.
        name: of the file, for messages.
        palette: expand palettes to RGB, as an image is meant; without, the (H, W) indices, as a label image is meant.

    Raises:
        InputError: naming ``name``, when it is truncated, damaged, no image, or has more than MAX_PIXELS pixels.
    """
    try:
        if data[:4] in TIFF_MAGIC:
            return _decode_tiff(data, name)
        if data[:8] == PNG_MAGIC:  # before Pillow, which warns of its own bound
            width, height = struct.unpack(">II", data[16:24])
            _check_pixels(height, width, name)
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(image.height, image.width, name)
            if image.mode == "1" or (image.mode == "P" and palette):
                return np.array(image.convert("RGB" if image.mode == "P" else "L"))
            return np.array(image)
    except InputError:  # is a ValueError too
        raise
    except Image.DecompressionBombError as error:  # Pillow's bound, above ours
        raise InputError(f"{name}: {_TOO_LARGE}") from error
    except DAMAGE as error:
        raise InputError(
            f"{name}: cannot be read as an image; it is truncated, damaged or of another kind: fetch it again"
        ) from error


_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels; cut it into smaller images"


def _check_pixels(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(f"{name}: {height} x {width} pixels are {_TOO_LARGE}")


def _decode_tiff(data: bytes, name: str) -> npt.NDArray[Any]:
    """tifffile keeps every depth; what it needs imagecodecs for (LZW) is left to Pillow, which reads that in 8 bit."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        _check_pixels(page.imagelength, page.imagewidth, name)
        planes = len(tiff.series[0].pages)
        if planes > 1:
            raise InputError(f"{name}: holds a stack of {planes} planes; save one plane as grey or RGB")
        if page.compression in (1, 8, 32946, 32773):  # none, deflate twice, PackBits
            array = np.asarray(page.asarray())
            planar = array.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
            return np.moveaxis(array, 0, -1) if planar else array
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image)


def contiguous(labels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """The same objects with ids 1..n in the order of their labels, int32. Labels are whole numbers >= 0, 0 the
    background."""
    values = np.unique(labels)
    values = values[values != 0]
    if len(values) == 0 or values[-1] == len(values):
        return np.ascontiguousarray(labels, np.int32)
    ids = np.searchsorted(values, labels).astype(np.int32) + np.int32(1)
    return np.where(labels != 0, ids, np.int32(0))


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises InputError naming the file when there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def read_image(path: str | Path) -> npt.NDArray[Any]:
    """``decode_image`` of a file."""
    return decode_image(read_bytes(Path(path)), str(path))
