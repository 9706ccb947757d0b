"""Conversion between label maps, masks and COCO annotations.

Annotations contain run lengths, not polygons. Run lengths are lossless (a traced polygon shrinks nuclei) and may have
several parts. Configs that train on them set INPUT.MASK_FORMAT "bitmask".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import scipy
from numpy.typing import NDArray

from pffnet_d2.errors import InputError

from .compose import contiguous
from .instance_mask import InstanceMask
from .rle import RLE, Runs, decode, encode, encode_masks, runs_of_label_map

CATEGORY_ID = 1
# The object on top where objects overlap: the smaller one, or the one that comes first in the publisher's file.
OVERLAPS = ("smaller", "first")
PREPARE_AGAIN = "prepare the data set again"


def label_map_to_annotations(
    label_map: NDArray[np.int32], image_id: int = 1, first_id: int = 1
) -> list[dict[str, Any]]:
    """Make COCO annotations, one per object in the order of the labels. Their ids count up from ``first_id``.

    Args:
        label_map: (H, W) integers, 0 background. Labels may have gaps and several parts.

    Returns:
        dicts with id, image_id, category_id 1, iscrowd 0, area (pixels), bbox [x, y, w, h] (pixels, the extent of the
        mask) and segmentation {"size": [H, W], "counts": str}, byte for byte the same as ``pycocotools.mask.encode``
        returns for each mask.
    """
    runs, labels = runs_of_label_map(label_map)
    windows = scipy.ndimage.find_objects(label_map)
    areas = np.bincount(runs.owner, weights=runs.length, minlength=len(labels)).astype(np.int64)
    segmentations = encode(runs, len(labels), *label_map.shape)
    annotations = []
    for i, (label, area, segmentation) in enumerate(zip(labels.tolist(), areas.tolist(), segmentations, strict=True)):
        rows, columns = windows[label - 1]
        bbox = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        annotations.append(_annotation(first_id + i, image_id, area, bbox, segmentation))
    return annotations


def masks_to_annotations(
    masks: Sequence[InstanceMask],
    height: int,
    width: int,
    image_id: int = 1,
    first_id: int = 1,
    overlap: str = "smaller",
) -> list[dict[str, Any]]:
    """Do the same as ``label_map_to_annotations`` for objects that may overlap, each complete, in the order given.

    Args:
        masks: the masks of an image of ``height`` x ``width`` pixels.
        overlap: one of ``OVERLAPS``. "first" gives each annotation a ``z_order``, the first mask the highest;
            ``paint`` and the functions built on it follow it. "smaller" needs no ``z_order``.

    Raises:
        InputError: a mask extends beyond the image, or is empty.
    """
    for each in masks:
        if not each.inside(height, width):
            raise InputError(
                f"a region at row {each.y0}, column {each.x0} leaves the image of {height} x {width} pixels"
            )
    annotations = []
    for i, (each, segmentation) in enumerate(zip(masks, encode_masks(masks, height, width), strict=True)):
        tight = InstanceMask.of(each.mask, each.y0, each.x0)
        if not tight.mask.size:
            raise InputError(f"the region at row {each.y0}, column {each.x0} has no pixels")
        bbox = [tight.x0, tight.y0, tight.mask.shape[1], tight.mask.shape[0]]
        annotation = _annotation(first_id + i, image_id, tight.area, bbox, segmentation)
        annotations.append(annotation | ({"z_order": len(masks) - i} if overlap == "first" else {}))
    return annotations


def _annotation(id: int, image_id: int, area: int, bbox: list[int], segmentation: RLE) -> dict[str, Any]:
    return {
        "id": id,
        "image_id": image_id,
        "category_id": CATEGORY_ID,
        "iscrowd": 0,
        "area": area,
        "bbox": bbox,
        "segmentation": segmentation,
    }


def masks_to_label_map(
    masks: Sequence[InstanceMask], height: int, width: int, overlap: str = "smaller"
) -> NDArray[np.int32]:
    """Make a (H, W) int32 label map of objects that may overlap. Ids follow the order of the masks; completely hidden
    objects get no id.

    Args:
        overlap: "smaller": the smaller mask is on top, or the later of equally large ones; "first": the first mask is.
    """
    painted = np.zeros((height, width), np.int32)
    last_to_first = range(len(masks) - 1, -1, -1)
    for i in last_to_first if overlap == "first" else sorted(range(len(masks)), key=lambda i: -masks[i].area):
        painted[masks[i].window][masks[i].mask] = i + 1
    return contiguous(painted)


def annotations_to_label_map(annotations: Sequence[dict[str, Any]], height: int, width: int) -> NDArray[np.int32]:
    """Make a (H, W) int32 label map, ids in the order of the annotations.

    Where masks overlap, the one with the higher ``z_order`` is on top (see ``paint``). Without that key the smaller one
    is on top (the later of equally large ones), so that as few objects as possible are hidden. An object without a
    visible pixel gets no id, so that ids are 1..n without gaps.

    Raises:
        InputError: a mask has another size or cannot be decoded; the error names the annotation.
    """
    return contiguous(paint(annotations, height, width)[0])


def paint(
    annotations: Sequence[dict[str, Any]], height: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Make a label map in which id i + 1 is always annotation i. Returns it and the areas of the complete masks.

    Unlike in ``annotations_to_label_map``, the ids of hidden annotations are missing.

    Where masks overlap, the annotation with the higher ``z_order`` (a whole number, 0 if missing) is on top; of equal
    ones the smaller, of equally large ones the later. The areas sum to the painted pixels exactly when no two masks
    overlap.
    """
    runs = _runs(annotations, height, width)
    areas = np.bincount(runs.owner, weights=runs.length, minlength=len(annotations)).astype(np.int64)
    # Low and large first; runs of equal owners stay in order.
    order = np.lexsort((-areas[runs.owner], _z_orders(annotations)[runs.owner]))
    runs = Runs(runs.start[order], runs.length[order], runs.owner[order])
    flat = np.zeros(height * width, np.int32)
    flat[runs.pixels()] = np.repeat(
        runs.owner + 1, runs.length
    )  # a pixel that occurs several times keeps the last value
    return np.ascontiguousarray(flat.reshape(width, height).T), areas


def _z_orders(annotations: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    for annotation in annotations:
        if type(annotation.get("z_order", 0)) is not int or abs(annotation.get("z_order", 0)) >= 1 << 31:
            raise InputError(f"{_name(annotation)}: its z_order is not a whole number; {PREPARE_AGAIN}")
    return np.array([annotation.get("z_order", 0) for annotation in annotations], np.int64)


def paint_layers(annotations: Sequence[dict[str, Any]], height: int, width: int) -> list[NDArray[np.int32]]:
    """Make label maps that together show every annotation completely, annotation i as i + 1.

    Without overlaps there is one map, otherwise as many as there are masks on top of each other. There is at least one
    map, even without annotations.
    """
    layers: list[NDArray[np.int32]] = []
    owners = np.arange(len(annotations))
    while True:
        painted, areas = paint([annotations[i] for i in owners.tolist()], height, width)
        if not layers and areas.sum() == np.count_nonzero(painted):  # nothing overlaps
            return [painted]
        whole = np.bincount(painted.ravel(), minlength=len(owners) + 1)[1:] == areas
        layers.append(np.append(0, np.where(whole, owners + 1, 0)).astype(np.int32)[painted])
        owners = owners[~whole]  # fewer each time, because those on top are complete
        if not owners.size:
            return layers


def annotations_to_masks(
    annotations: Sequence[dict[str, Any]], height: int, width: int, *, remedy: str = PREPARE_AGAIN
) -> list[InstanceMask]:
    """Return the complete mask of every object in its smallest window, in the order of the annotations. Objects without
    pixels are skipped.

    Raises:
        InputError: a mask has another size or cannot be decoded; the error names the annotation and the ``remedy``.
    """
    runs = _runs(annotations, height, width, remedy)
    areas = np.bincount(runs.owner, runs.length, len(annotations)).astype(np.int64)
    masks = []
    for own in np.split(runs.pixels(), np.cumsum(areas)[:-1]):
        if own.size:
            columns, rows = np.divmod(own, height)
            x0, y0 = int(columns.min()), int(rows.min())
            mask = np.zeros((rows.max() - y0 + 1, columns.max() - x0 + 1), np.bool_)
            mask[rows - y0, columns - x0] = True
            masks.append(InstanceMask(y0, x0, mask))
    return masks


def _runs(annotations: Sequence[dict[str, Any]], height: int, width: int, remedy: str = PREPARE_AGAIN) -> Runs:
    """Return the runs of the masks. The owner of a run is the index of its annotation."""
    if not annotations:
        none = np.zeros(0, np.int64)
        return Runs(none, none, none)
    runs, broken = decode([_compressed(each, height, width, remedy) for each in annotations], height * width)
    if broken.any():
        name = _name(annotations[int(np.argmax(broken))])
        raise InputError(f"{name}: its run lengths do not fill {height} x {width} pixels; {remedy}")
    return runs


def _compressed(annotation: dict[str, Any], height: int, width: int, remedy: str) -> bytes:
    """Return the run-length string of an annotation given as run lengths (compressed or not) or polygons."""
    try:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        size, counts = list(segmentation["size"]), segmentation["counts"]
        if isinstance(counts, list):
            counts = mask_util.frPyObjects(segmentation, *size)["counts"]
        string: bytes = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except Exception as error:  # pycocotools raises bare exceptions
        raise InputError(
            f"{_name(annotation)}: its segmentation is neither run lengths nor polygons; {remedy}"
        ) from error
    if size != [height, width]:
        raise InputError(
            f"{_name(annotation)}: its mask is for {size[0]} x {size[1]} pixels, the image has {height} x {width}; "
            f"{remedy}"
        )
    if not string:
        raise InputError(f"{_name(annotation)}: its run lengths are empty; {remedy}")
    return string


def _name(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation.get('id', '?')} of image {annotation.get('image_id', '?')}"
