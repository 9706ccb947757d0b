"""Reading microscopy images of any depth, and the normalisation to the 8-bit RGB that the models take.

The same code runs when a data set is prepared and at prediction, and the prepared json names the normalisation, so that
both see the same grey values.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.tiff import TIFF_MAGIC, damage_named, decode_tiff

MAX_PIXELS = 1 << 27  # 11,585 x 11,585; more is refused unread
# Pillow's modes that numpy takes as grey, RGB or RGBA, or that are converted to RGB.
_AS_ARRAY = ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N", "1", "P")
_AS_RGB = ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "PA")


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
    """Decode PNG, TIFF, JPEG, ... without changing the depth: (H, W) or (H, W, C), channels in the order RGBA.

    Args:
        data: content of the file.
        name: of the file, for messages.
        palette: expand palettes to RGB, as an image is meant; without, the (H, W) indices, as a label image is meant.

    Raises:
        InputError: naming ``name``, when it is truncated, damaged, no image, a stack, deeper than can be read, or has
            more than MAX_PIXELS pixels.
    """
    if data[:4] in TIFF_MAGIC:
        return decode_tiff(data, name, MAX_PIXELS, as_stored=not palette)
    with opened(data, name) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a camera's, with its preview
            raise InputError(f"{name}: holds a stack of {frames} planes; save one plane as grey or RGB")
        return pixels_of(image, data, name, palette=palette)


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """An image as Pillow opens it. Damage that is met in the block raises an InputError that names it, and Pillow's
    warnings, which would say the same again, are dropped.

    Raises:
        InputError: naming ``name``: truncated, damaged, no image, or more than MAX_PIXELS pixels.
    """
    with damage_named(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.height * image.width > MAX_PIXELS:
                    raise InputError(f"{name}: {image.height} x {image.width} pixels are {_TOO_LARGE}")
                yield image
        except Image.DecompressionBombError as error:  # Pillow's bound, above ours
            raise InputError(f"{name}: {_TOO_LARGE}") from error


def pixels_of(image: Image.Image, data: bytes, name: str, *, palette: bool = True) -> npt.NDArray[Any]:
    """The pixels of the file ``data`` that Pillow opened, in the file's own depth; see ``decode_image``.

    Raises:
        InputError: colours of another kind than RGB; more than 8 bits a channel, which Pillow cuts, in another form
            than PNG.
    """
    if image.mode not in (*_AS_ARRAY, *_AS_RGB):
        raise InputError(f"{name}: Pillow's mode {image.mode} is not supported; save it as grey or RGB")
    if image.mode in _AS_RGB or (image.mode == "P" and palette):
        pixels = np.array(image.convert("RGB"))
    else:
        pixels = np.array(image.convert("L") if image.mode == "1" else image)
    if pixels.dtype == np.uint8 and image.mode != "P" and _bits(image.format, data) > 8:
        if image.format != "PNG":
            raise InputError(
                f"{name}: has more than 8 bits a channel, which of {image.format} files cannot be read; save it as "
                "PNG or TIFF"
            )
        return _deep_png(data)
    return pixels


def _bits(form: str | None, data: bytes) -> int:
    """Bits of a sample in a file of a form that may hold more than 8; else 8."""
    if form == "PNG":
        return data[24]
    if form == "JPEG2000":  # the depth less 1 is in the codestream's header, of which the first channel tells
        start = data.find(b"\xff\x4f\xff\x51")
        return (data[start + 42] & 0x7F) + 1 if start >= 0 else 8
    if form == "PPM":
        words = b" ".join(line.partition(b"#")[0] for line in data[:4096].splitlines()).split(maxsplit=4)
        return 16 if words[0] in (b"P5", b"P6") and int(words[3]) > 255 else 8
    if form == "SGI":
        return 8 * data[3]
    if form == "AVIF":  # av1C: the bit of the third byte says more than 8
        start = data.find(b"av1C")
        return 10 if start >= 0 and data[start + 6] & 0x40 else 8
    return 8


def _deep_png(data: bytes) -> npt.NDArray[np.uint16]:
    """A PNG of 16 bits and several channels, which Pillow cuts to 8 bits: (H, W, 2 to 4) grey and alpha, RGB(A).

    OpenCV prints what it finds wrong; so Pillow must have read the file before.
    """
    import cv2

    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("OpenCV cannot read it")
    colour_type = data[25]
    channels = {4: [0, 3], 6: [2, 1, 0, 3]}.get(colour_type, [2, 1, 0])
    return np.ascontiguousarray(decoded[..., channels])


_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels; cut it into smaller images"


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises InputError naming the file when there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def read_image(path: str | Path) -> npt.NDArray[Any]:
    """``decode_image`` of a file."""
    return decode_image(read_bytes(Path(path)), str(path))
