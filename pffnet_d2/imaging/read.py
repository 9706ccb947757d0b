"""Reads a file with an image or a label image as an array of the file's own depth."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.tiff import TIFF_MAGIC, damage_named, decode_tiff

MAX_PIXELS = 1 << 27  # 11,585 x 11,585; larger images are refused before their pixels are read
# Pillow's modes that numpy reads as grey, RGB or RGBA, and those that are converted to RGB first.
_AS_ARRAY = ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N", "1", "P")
_AS_RGB = ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "PA")


def decode_image(data: bytes, name: str, *, palette: bool = True) -> npt.NDArray[Any]:
    """Decode PNG, TIFF, JPEG, ... in the file's own depth: (H, W) or (H, W, C), channels in the order RGBA.

    Args:
        data: content of the file.
        name: of the file, for messages.
        palette: convert palettes to RGB. If False, return the stored numbers: (H, W) indices of a palette, and TIFF
            values whose 0 is white are not inverted.

    Raises:
        InputError: naming ``name``: it is truncated, damaged, not an image, or a stack; it has more bits than can be
            read, or more than MAX_PIXELS pixels.
    """
    if data[:4] in TIFF_MAGIC:
        return decode_tiff(data, name, MAX_PIXELS, as_stored=not palette)
    with open_image(data, name) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # MPO: a camera's image with its preview
            raise InputError(f"{name}: contains a stack of {frames} planes; save one plane as grey or RGB")
        return pixels_of(image, data, name, palette=palette)


def decode_label_image(data: bytes, name: str) -> npt.NDArray[Any]:
    """Decode the ids of a label image: (H, W) numbers as stored, or indices if there is a palette.

    Equal channels, as in a grey image saved as RGB, are read as one channel, and an opaque alpha channel is ignored.

    Args:
        data: content of the file.
        name: of the file, for messages.

    Raises:
        InputError: naming ``name``: see ``decode_image``; the channels differ; a TIFF contains other images too.
    """
    labels = decode_image(data, name, palette=False)
    if labels.ndim == 3 and labels.shape[2] in (2, 4) and labels.dtype.kind == "u":
        opaque = (labels[..., -1] == np.iinfo(labels.dtype).max).all()
        labels = labels[..., :-1] if opaque else labels
    if labels.ndim == 3 and labels.shape[2] in (1, 3) and (labels == labels[..., :1]).all():
        labels = labels[..., 0]
    if labels.ndim != 2:
        raise InputError(
            f"{name}: shows labels in colours or with transparency and is not a label image; use the label image "
            "unchanged (one channel or a palette, never converted to RGB)"
        )
    return labels


@contextmanager
def open_image(data: bytes, name: str) -> Iterator[Image.Image]:
    """Open an image with Pillow. If damage is found inside the block, an InputError names the file; Pillow's warnings
    about it are suppressed.

    Raises:
        InputError: naming ``name``: it is truncated, damaged or not an image, or has more than MAX_PIXELS pixels.
    """
    with damage_named(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.height * image.width > MAX_PIXELS:
                    raise InputError(f"{name}: {image.height} x {image.width} pixels are {_TOO_LARGE}")
                yield image
        except Image.DecompressionBombError as error:  # Pillow's own limit, which is above ours
            raise InputError(f"{name}: {_TOO_LARGE}") from error


def pixels_of(image: Image.Image, data: bytes, name: str, *, palette: bool = True) -> npt.NDArray[Any]:
    """The pixels of a file that Pillow open_image, in the file's own depth.

    Args:
        image: the file as open_image.
        data: its content.
        name: of the file, for messages.
        palette: as for ``decode_image``.

    Raises:
        InputError: the colours cannot be converted to RGB; a format other than PNG has more than 8 bits per channel,
            which Pillow would cut to 8.
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
                f"{name}: has more than 8 bits per channel, which cannot be read from {image.format} files; save it "
                "as PNG or TIFF"
            )
        return _deep_png(data, name)
    return pixels


def _bits(form: str | None, data: bytes) -> int:
    """Bits per sample of a file in one of the formats that allow more than 8; 8 for other formats."""
    if form == "PNG":
        return data[24]
    if form == "JPEG2000":  # the header of the codestream contains the depth minus 1, that of channel 1 first
        start = data.find(b"\xff\x4f\xff\x51")
        return (data[start + 42] & 0x7F) + 1 if start >= 0 else 8
    if form == "PPM":
        words = b" ".join(line.partition(b"#")[0] for line in data[:4096].splitlines()).split(maxsplit=4)
        return 16 if words[0] in (b"P5", b"P6") and int(words[3]) > 255 else 8
    if form == "SGI":
        return 8 * data[3]
    if form == "AVIF":  # a bit in the third byte of av1C marks more than 8
        start = data.find(b"av1C")
        return 10 if start >= 0 and data[start + 6] & 0x40 else 8
    return 8


def _deep_png(data: bytes, name: str) -> npt.NDArray[np.uint16]:
    """A PNG of 16 bits and several channels, which Pillow would cut to 8 bits: (H, W, 2 to 4), grey with alpha or RGB.

    Read the file with Pillow first, because OpenCV prints messages about damage.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"{name}: a PNG of 16 bits in colour needs OpenCV (pip install opencv-python-headless); or save it as TIFF"
        ) from error
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("OpenCV cannot read it")
    colour_type = data[25]
    channels = {4: [0, 3], 6: [2, 1, 0, 3]}.get(colour_type, [2, 1, 0])
    return np.ascontiguousarray(decoded[..., channels])


_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels; cut it into smaller images"


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises InputError naming it if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def read_image(path: str | Path) -> npt.NDArray[Any]:
    """``decode_image`` of a file."""
    return decode_image(read_bytes(Path(path)), str(path))


def read_label_image(path: str | Path) -> npt.NDArray[Any]:
    """``decode_label_image`` of a file."""
    return decode_label_image(read_bytes(Path(path)), str(path))
