"""Scoring label images in folders, of any tool: ``pffnet evaluate --truth DIR --prediction DIR``."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.data.coco import annotations_to_label_map
from pffnet_d2.data.images import DAMAGE, TIFF_MAGIC, decode_image, read_bytes
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.scores import Row, report_group, score

SUFFIXES = (".png", ".tif", ".tiff")


class Truth(NamedTuple):
    """The truth of an image: the file it is in, how to read it (H, W), and the image's group in reports."""

    file: Path
    read: Callable[[], NDArray[Any]]
    group: str = ""


def score_folders(truth: Path, prediction: Path) -> Iterator[Row]:
    """A row for every image; truth and prediction of one image have the same name.

    Args:
        truth: a folder of label images, or a prepared split (a folder with instances.json).
        prediction: a folder of label images: one (H, W) map of integers a file, PNG of 8 or 16 bit (of a palette, its
            indices) or TIFF of 8, 16 or 32 bit.

    Raises:
        InputError: naming the file: no label images, an image without its partner, one that cannot be read, is no label
            map (floats, negative ids, several planes) or has another size than its partner.
    """
    if (truth / "instances.json").is_file():
        truths = {name: Truth(truth / "instances.json", image.truth, image.group) for name, image in prepared(truth)}
    else:
        truths = {name: Truth(file, partial(read_label_image, file)) for name, file in _by_name(truth).items()}
    predictions = _by_name(prediction)
    for name in truths:
        if name not in predictions:
            raise InputError(
                f"{truths[name].file}: {prediction} has no label image {name}; every image needs its partner"
            )
    for name in predictions:
        if name not in truths:
            raise InputError(f"{predictions[name]}: {truth} has no label image {name}; every image needs its partner")
    for name, (file, read, group) in truths.items():
        labels = read(), read_label_image(predictions[name])
        try:
            row = score(name, *labels, group)
        except InputError as error:
            raise InputError(f"{file} and {predictions[name]}: {error}") from error
        yield row


class PreparedImage(NamedTuple):
    """An image of a prepared split: its file, how to read its truth (H, W), and its group in reports."""

    file: Path
    truth: Callable[[], NDArray[np.int32]]
    group: str


def prepared(folder: Path) -> Iterator[tuple[str, PreparedImage]]:
    """The images of a prepared split (images/ and instances.json) by their names without suffix.

    Raises:
        InputError: it is none.
    """
    file = folder / "instances.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in data["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        images = [
            (entry["id"], Path(entry["file_name"]), entry["height"], entry["width"], report_group(entry))
            for entry in data["images"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: no prepared data set; give a folder that `pffnet prepare` made") from error
    for image_id, name, height, width, group in images:
        truth = partial(annotations_to_label_map, annotations[image_id], height, width)
        yield name.stem, PreparedImage(folder / "images" / name, truth, group)


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
