"""Label images and label arrays as publishers and users write them, to the label map of a record; and the sizes of
images, read from their headers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import loadmat

from pffnet_d2.data.images import DAMAGE, TIFF_MAGIC, decode_image
from pffnet_d2.errors import InputError


def decode_labels(data: bytes, name: str) -> npt.NDArray[np.int32]:
    """The label map, (H, W) int32, ids 1..n, of a PNG or TIFF whose pixels are ids, in 1 to 32 bits or a palette.

    The index of a palette image is the id: every reader that expands the palette (OpenCV, imageio, ``convert``) turns
    ids into colours.

    Raises:
        InputError: naming ``name``, for a damaged file, a picture in colours, or values that are no ids.
    """
    if data[:4] in TIFF_MAGIC:
        return label_map(decode_image(data, name), name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            array = np.array(image)
    except DAMAGE as error:
        raise InputError(
            f"{name}: cannot be read as an image; it is truncated, damaged or of another kind: fetch it again"
        ) from error
    return label_map(array, name)


def label_map(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.int32]:
    """Any array of ids as a label map: (H, W) int32, 0 background, ids 1..n in the order of the given ones.

    Raises:
        InputError: naming ``name``, for an array of another shape or with values that are no whole numbers from 0 on.
    """
    if array.ndim == 3 and array.shape[2] in (3, 4):
        raise InputError(
            f"{name}: a picture of the labels in colours, not the labels; use the publisher's label image unchanged "
            "(one channel or a palette, no conversion to RGB)"
        )
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name}: an array of shape {array.shape} is no label image; give one plane of ids")
    if array.dtype.kind not in "buif":
        raise InputError(f"{name}: values of type {array.dtype} are no labels; save whole numbers from 0 on")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise InputError(f"{name}: labels must be whole numbers, but some have a fraction; save the ids, not a picture")
    if array.dtype.kind in "if" and array.min() < 0:
        raise InputError(f"{name}: negative labels; 0 is the background and objects are numbered from 1 on")
    if array.dtype.kind == "b" or (array.dtype.kind in "ui" and array.dtype.itemsize <= 2):
        present = np.bincount(array.ravel()) > 0  # several times faster than sorting
        present[0] = False
        return np.where(present, np.cumsum(present), 0).astype(np.int32)[array.astype(np.intp)]
    ids, inverse = np.unique(array, return_inverse=True)
    numbers = np.cumsum(ids > 0).astype(np.int32)  # 0 for the background, which may be absent
    return np.asarray(numbers[inverse].reshape(array.shape), np.int32)


def decode_mat(data: bytes, name: str, key: str) -> npt.NDArray[np.int32]:
    """The label map in the variable ``key`` of a MATLAB file (version 7 or older).

    Raises:
        InputError: naming ``name``, for a damaged file, one without the variable, or values that are no ids.
    """
    try:
        variables = loadmat(io.BytesIO(data), variable_names=[key])
    except Exception as error:  # scipy raises nearly everything on a damaged file
        raise InputError(f"{name}: cannot be read as a MATLAB file of version 7 or older; fetch it again") from error
    if key not in variables:
        raise InputError(f"{name}: holds no {key}; use the label file of the download unchanged")
    return label_map(np.asarray(variables[key]), name)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) from the header alone. Raises InputError naming ``name``."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except DAMAGE as error:
        raise InputError(
            f"{name}: cannot be read as an image; it is truncated, damaged or of another kind: fetch it again"
        ) from error
