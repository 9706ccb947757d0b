"""Scoring label images in folders, of any tool: ``pffnet evaluate --truth DIR --prediction DIR``."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.data.images import DAMAGE, TIFF_MAGIC, decode_image, read_bytes
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.scores import Row, score

SUFFIXES = (".png", ".tif", ".tiff")


def score_folders(truth: Path, prediction: Path) -> Iterator[Row]:
    """A row for every image, in the order of names; truth and prediction of one image have the same name.

    Args:
        truth, prediction: folders of label images, one (H, W) map of integers a file: PNG of 8 or 16 bit (of a palette,
            its indices) or TIFF of 8, 16 or 32 bit; either folder may hold either kind.

    Raises:
        InputError: naming the file: no label images, an image without its partner, one that cannot be read, is no label
            map (floats, negative ids, several planes) or has another size than its partner.
    """
    truths, predictions = _by_name(truth), _by_name(prediction)
    for here, there, folder in ((truths, predictions, prediction), (predictions, truths, truth)):
        for name in here:
            if name not in there:
                raise InputError(f"{here[name]}: {folder} has no label image {name}; every image needs its partner")
    for name, file in truths.items():
        try:
            row = score(name, read_label_image(file), read_label_image(predictions[name]))
        except InputError as error:
            if str(file) in str(error) or str(predictions[name]) in str(error):
                raise
            raise InputError(f"{file} and {predictions[name]}: {error}") from error
        yield row


def _by_name(folder: Path) -> dict[str, Path]:
    """The label images of a folder by their names without suffix, sorted."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one of label images")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            continue
        if file.stem in files:
            raise InputError(f"{file}: {files[file.stem].name} has the same name; keep one of the two")
        files[file.stem] = file
    if not files:
        raise InputError(f"{folder}: holds no label images ({', '.join(SUFFIXES)})")
    return files


def read_label_image(path: Path) -> NDArray[Any]:
    """(H, W) as stored, its integer type kept; of a palette the indices.

    Raises:
        InputError: naming the file, when it cannot be read or holds more than one plane.
    """
    data = read_bytes(path)
    try:
        if data[:4] in TIFF_MAGIC:
            with tifffile.TiffFile(io.BytesIO(data)) as tiff:
                shape = tiff.series[0].shape
                planes = len(tiff.pages) if len(shape) == 2 else shape
            if planes != 1:
                raise InputError(f"{path}: holds {planes} planes; a label image is 2-D (height, width)")
            labels = decode_image(data, str(path))
        else:
            with Image.open(io.BytesIO(data)) as image:
                labels = np.array(image)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read as an image; it is truncated, damaged or of another kind: make it again"
        ) from error
    if labels.ndim != 2:
        raise InputError(f"{path}: has shape {labels.shape}; a label image is 2-D (height, width), not in colours")
    return labels
