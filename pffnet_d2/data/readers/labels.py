"""Label arrays in the encodings that several publishers share (checked ids, MATLAB files, text), and sizes of images
from their headers."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import skimage

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import MAX_PIXELS, open_image
from pffnet_d2.masks.compose import contiguous


def label_map(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.int32]:
    """A plane of ids as a label map: (H, W) int32, 0 background, ids 1..n in the order of the given ones.

    Raises:
        InputError: naming ``name``: the array has another shape, or values that are not whole numbers from 0.
    """
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name}: an array of shape {array.shape} is not a label image; give one plane of ids")
    if array.dtype.kind not in "buif":
        raise InputError(f"{name}: values of type {array.dtype} are not labels; save whole numbers from 0 on")
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.rint(array))).all():
        raise InputError(f"{name}: labels that are no whole numbers; save the ids themselves, not scaled or resized")
    if array.dtype.kind in "if" and array.min() < 0:
        raise InputError(f"{name}: negative labels; 0 is the background and objects are numbered from 1 on")
    return contiguous(array)


def parts_of_one_id(labels: npt.NDArray[Any]) -> int:
    """The number of separate (8-connected) parts of a plane with a single id; 0 where there are several ids or none.
    More than one part suggests a mask of all objects, saved in place of their labels."""
    top = labels.max(initial=0)
    if not top or ((labels != 0) & (labels != top)).any():
        return 0
    return int(skimage.measure.label(labels != 0, connectivity=2, return_num=True)[1])


def components(foreground: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """The label map of a mask of all objects: each 8-connected part is an object."""
    return np.asarray(skimage.measure.label(foreground, connectivity=2), np.int32)


def decode_mat(data: bytes, name: str, key: str) -> npt.NDArray[np.int32]:
    """The label map in the variable ``key`` of a MATLAB file (version 7 or older).

    Raises:
        InputError: naming ``name``: the file is damaged or lacks the variable, or its values are no ids.
    """
    try:
        variables = scipy.io.loadmat(io.BytesIO(data), variable_names=[key])
    except Exception as error:  # scipy raises almost any exception on a damaged file
        raise InputError(f"{name}: cannot be read as a MATLAB file of version 7 or older; fetch it again") from error
    if key not in variables:
        raise InputError(f"{name}: holds no {key}; use the label file of the download unchanged")
    return label_map(np.asarray(variables[key]), name)


def text_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) from the first line of a text mask, ``width height``. Raises InputError naming ``name``."""
    header = re.match(rb"\s*(\d{1,6})[ \t]+(\d{1,6})[ \t]*\r?\n", data)
    if not header:
        raise InputError(f"{name}: its first line is not `width height`; use the publisher's mask unchanged")
    width, height = int(header[1]), int(header[2])
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(f"{name}: {height} x {width} pixels are none or more than {MAX_PIXELS:,}; fetch it again")
    return height, width


def decode_text(data: bytes, name: str) -> npt.NDArray[np.int32]:
    """The label map of a text mask: ``width height``, then one id per line, row by row.

    Raises:
        InputError: naming ``name``: a bad first line, a wrong number of values, or values that are no ids.
    """
    height, width = text_size(data, name)
    try:
        values = np.loadtxt(io.BytesIO(data), skiprows=1, ndmin=1)
    except ValueError as error:
        raise InputError(f"{name}: has a line that is not one number; use the publisher's mask unchanged") from error
    if values.size != height * width:
        raise InputError(
            f"{name}: {values.size} values for the {height} x {width} pixels of its first line; "
            "it is truncated or damaged, fetch it again"
        )
    return label_map(values.reshape(height, width), name)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width), from the header alone. Raises InputError naming ``name``."""
    with open_image(data, name) as image:
        return image.height, image.width
