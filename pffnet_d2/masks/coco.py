"""Between label maps and COCO: annotations as run lengths, the json of a split, the semantic PNG.

Run lengths, not polygons: they are lossless (a traced polygon shrinks nuclei) and may have several parts.
Configurations that train on them set INPUT.MASK_FORMAT "bitmask".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
from PIL import Image
from scipy.ndimage import find_objects

from pffnet_d2.atomic_write import write_text
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import contiguous

CATEGORY_ID = 1
# What lies on top where objects overlap: the smaller one, or the one that the publisher's file names first.
OVERLAPS = ("smaller", "first")
PREPARE_AGAIN = "prepare the data set again"

Region = tuple[int, int, npt.NDArray[np.bool_]]
"""One whole object: row and column of the upper left pixel of its window, and the window's mask. The window lies inside
the image."""


def label_map_to_annotations(
    label_map: npt.NDArray[np.int32], image_id: int = 1, first_id: int = 1
) -> list[dict[str, Any]]:
    """COCO annotations, one an object in the order of the labels; ``first_id`` and on are their ids.

    Args:
        label_map: (H, W) integers, 0 background. Labels may have gaps and several parts.

    Returns:
        dicts with id, image_id, category_id 1, iscrowd 0, area (pixels), bbox [x, y, w, h] (pixels, the extent of the
        mask) and segmentation {"size": [H, W], "counts": str}, byte for byte what ``pycocotools.mask.encode`` gives for
        each mask.
    """
    height, width = label_map.shape
    windows = find_objects(label_map)
    areas = np.bincount(label_map.ravel(), minlength=len(windows) + 1)
    labels = [label for label, window in enumerate(windows, 1) if window is not None]
    runs = [{"counts": counts, "size": [height, width]} for counts in _run_lengths(label_map)]
    encoded = mask_util.frPyObjects(runs, height, width) if runs else []
    annotations = []
    for i, (label, rle) in enumerate(zip(labels, encoded, strict=True)):
        rows, columns = windows[label - 1]
        annotations.append(
            {
                "id": first_id + i,
                "image_id": image_id,
                "category_id": CATEGORY_ID,
                "iscrowd": 0,
                "area": int(areas[label]),
                "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
            }
        )
    return annotations


def regions_to_annotations(
    regions: Sequence[Region], height: int, width: int, image_id: int = 1, first_id: int = 1, overlap: str = "smaller"
) -> list[dict[str, Any]]:
    """Like ``label_map_to_annotations`` for objects that may overlap, each whole, in the order given.

    Args:
        regions: (y0, x0, mask (h, w) bool) with the window inside the image.
        overlap: of ``OVERLAPS``. "first" is kept as ``z_order`` of each annotation, which ``paint`` and all that is
            made of it follow: the first region has the highest. "smaller" needs none.

    Raises:
        InputError: a window outside the image, or an empty mask.
    """
    boxes = [_extent(region, height, width) for region in regions]
    runs = [{"counts": _window_counts(region, height, width), "size": [height, width]} for region in regions]
    encoded = mask_util.frPyObjects(runs, height, width) if runs else []
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": CATEGORY_ID,
            "iscrowd": 0,
            "area": int(np.count_nonzero(region[2])),
            "bbox": box,
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
            **({"z_order": len(regions) - i} if overlap == "first" else {}),
        }
        for i, (region, box, rle) in enumerate(zip(regions, boxes, encoded, strict=True))
    ]


def regions_to_label_map(
    regions: Sequence[Region], height: int, width: int, overlap: str = "smaller"
) -> npt.NDArray[np.int32]:
    """(H, W) int32 label map of objects that may overlap, ids in the order of the regions; those of which nothing is
    seen get no id.

    Args:
        overlap: "smaller": the smaller one is on top, of equal ones the later; "first": the first of the regions is.
    """
    painted = np.zeros((height, width), np.int32)
    bottom_up = (
        range(len(regions) - 1, -1, -1)
        if overlap == "first"
        else sorted(range(len(regions)), key=lambda i: -np.count_nonzero(regions[i][2]))
    )
    for i in bottom_up:
        y0, x0, mask = regions[i]
        painted[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]][mask] = i + 1
    return contiguous(painted)


def _extent(region: Region, height: int, width: int) -> list[int]:
    """x, y, width, height of the object in its window."""
    y0, x0, mask = region
    if not (0 <= y0 <= y0 + mask.shape[0] <= height and 0 <= x0 <= x0 + mask.shape[1] <= width):
        raise InputError(f"a region at row {y0}, column {x0} leaves the image of {height} x {width} pixels")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise InputError(f"the region at row {y0}, column {x0} has no pixels")
    return [
        x0 + int(columns[0]),
        y0 + int(rows[0]),
        int(columns[-1] - columns[0]) + 1,
        int(rows[-1] - rows[0]) + 1,
    ]


def _window_counts(region: Region, height: int, width: int) -> npt.NDArray[np.int64]:
    """COCO's uncompressed counts of the mask in its window, without filling the image."""
    y0, x0, mask = region
    steps = np.diff(np.pad(mask.T, ((0, 0), (1, 1))).astype(np.int8), axis=1)  # row of steps: a column of the mask
    column, row = np.nonzero(steps == 1)
    starts = (x0 + column) * height + y0 + row
    column, row = np.nonzero(steps == -1)
    ends = (x0 + column) * height + y0 + row
    joined = starts[1:] == ends[:-1]  # down to the last row and on from the first of the next column
    edges = np.stack([starts[np.append(True, ~joined)], ends[np.append(~joined, True)]], axis=1).ravel()
    if edges[-1] < height * width:
        edges = np.append(edges, height * width)
    return np.diff(edges, prepend=0)


def _run_lengths(label_map: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int64]]:
    """COCO's uncompressed counts (zeros, ones, zeros, ... down the columns) of every label, ascending, in one pass."""
    flat = label_map.ravel(order="F")
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    value = flat[starts]
    order = np.argsort(value, kind="stable")[np.count_nonzero(value == 0) :]  # background first, then label by label
    starts, ends, value = starts[order], ends[order], value[order]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = []
    for own in np.split(edges, 2 * np.flatnonzero(value[1:] != value[:-1]) + 2):
        if own.size and own[-1] < flat.size:
            own = np.append(own, flat.size)  # the zeros after the last run; COCO leaves them out where there are none
        if own.size:
            counts.append(np.diff(own, prepend=0))
    return counts


def annotations_to_label_map(annotations: Sequence[dict[str, Any]], height: int, width: int) -> npt.NDArray[np.int32]:
    """(H, W) int32 label map, ids in the order of the annotations.

    Where masks overlap the one of higher ``z_order`` is on top (see ``paint``); without that key the smaller one (of
    equal ones the later), which keeps every object seen that can be. One that nevertheless has no pixel left, or never
    had one, gets no id, so that ids are 1..n without gaps.

    Raises:
        InputError: naming the annotation whose mask is of another size or cannot be decoded.
    """
    painted, _ = paint(annotations, height, width)
    present = np.bincount(painted.ravel(), minlength=len(annotations) + 1) > 0
    present[0] = False
    if present.sum() == len(annotations):
        return painted
    return np.where(present, np.cumsum(present), 0).astype(np.int32)[painted]


def paint(
    annotations: Sequence[dict[str, Any]], height: int, width: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Like ``annotations_to_label_map``, but id i + 1 is always annotation i, so ids of hidden ones are missing; and
    the areas of the whole masks.

    Where masks overlap the annotation of higher ``z_order`` (a whole number, 0 where it has none) is on top, of equal
    ones the smaller, of equally large ones the later. The areas sum to the painted pixels exactly when no two masks
    overlap.
    """
    start, length, owner = _runs(annotations, height, width)
    areas = np.bincount(owner, weights=length, minlength=len(annotations)).astype(np.int64)
    # Low and large first; runs of equal owners stay in order.
    order = np.lexsort((-areas[owner], _z_orders(annotations)[owner]))
    start, length, owner = start[order], length[order], owner[order]
    pixels = np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())
    flat = np.zeros(height * width, np.int32)
    flat[pixels] = np.repeat(owner + 1, length)  # of repeated pixels the last value stays
    return np.ascontiguousarray(flat.reshape(width, height).T), areas


def _z_orders(annotations: Sequence[dict[str, Any]]) -> npt.NDArray[np.int64]:
    for annotation in annotations:
        if type(annotation.get("z_order", 0)) is not int or abs(annotation.get("z_order", 0)) >= 1 << 31:
            raise InputError(f"{_name(annotation)}: its z_order is no whole number; {PREPARE_AGAIN}")
    return np.array([annotation.get("z_order", 0) for annotation in annotations], np.int64)


def paint_layers(annotations: Sequence[dict[str, Any]], height: int, width: int) -> list[npt.NDArray[np.int32]]:
    """Label maps that together show every annotation whole, annotation i as i + 1: one where no masks overlap, else as
    many as lie on each other. At least one, also without annotations."""
    layers: list[npt.NDArray[np.int32]] = []
    owners = np.arange(len(annotations))
    while True:
        painted, areas = paint([annotations[i] for i in owners.tolist()], height, width)
        if not layers and areas.sum() == np.count_nonzero(painted):  # nothing overlaps
            return [painted]
        whole = np.bincount(painted.ravel(), minlength=len(owners) + 1)[1:] == areas
        layers.append(np.append(0, np.where(whole, owners + 1, 0)).astype(np.int32)[painted])
        owners = owners[~whole]  # fewer each time: what is on top is whole
        if not owners.size:
            return layers


def annotations_to_regions(
    annotations: Sequence[dict[str, Any]], height: int, width: int, *, remedy: str = PREPARE_AGAIN
) -> list[Region]:
    """Every object whole, in the order of the annotations; those without a pixel are left out.

    Raises:
        InputError: naming the annotation whose mask is of another size or cannot be decoded, and the ``remedy``.
    """
    start, length, owner = _runs(annotations, height, width, remedy)
    pixels = np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())
    regions: list[Region] = []
    for own in np.split(pixels, np.cumsum(np.bincount(owner, length, len(annotations)).astype(np.int64))[:-1]):
        if own.size:
            columns, rows = np.divmod(own, height)
            x0, y0 = columns.min(), rows.min()
            mask = np.zeros((rows.max() - y0 + 1, columns.max() - x0 + 1), np.bool_)
            mask[rows - y0, columns - x0] = True
            regions.append((int(y0), int(x0), mask))
    return regions


Runs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _runs(annotations: Sequence[dict[str, Any]], height: int, width: int, remedy: str = PREPARE_AGAIN) -> Runs:
    """Start (index into the column-major image), length and owner (index of the annotation) of every run of pixels of
    the masks.

    Decodes the strings of all annotations at once: pycocotools would fill a whole image for each object (133 nuclei of
    a 520 x 696 field: 40 ms against 2 ms). The string holds numbers of base-32 digits, lowest first, 48 added to each
    digit, 32 marking that more follow, 16 in the last one the sign; from the fourth number on they are differences to
    the number before the last (rleToString in pycocotools' maskApi.c).
    """
    if not annotations:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    strings = [_compressed(annotation, height, width, remedy) for annotation in annotations]
    digits = np.frombuffer(b"".join(strings), np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0
    string_ends = np.cumsum([len(string) for string in strings])
    broken = ~last[string_ends - 1]
    last[string_ends - 1] = True
    first = np.flatnonzero(np.append(True, last[:-1]))
    digit_count = np.diff(first, append=len(digits))
    place = np.arange(len(digits)) - np.repeat(first, digit_count)
    numbers = np.add.reduceat((digits & 31) << 5 * np.minimum(place, 10), first)
    numbers -= np.where(digits[last] & 16, 1 << 5 * np.minimum(digit_count, 10), 0)

    number_ends = np.cumsum(last)[string_ends - 1]
    number_starts = np.append(0, number_ends[:-1])
    for begin, end in zip(number_starts, number_ends, strict=True):
        for chain in (numbers[begin + 1 : end : 2], numbers[begin + 2 : end : 2]):
            np.cumsum(chain, out=chain)
    broken |= (np.add.reduceat(numbers, number_starts) != height * width) | (
        np.minimum.reduceat(numbers, number_starts) < 0
    )
    if broken.any():
        name = _name(annotations[int(np.argmax(broken))])
        raise InputError(f"{name}: its run lengths do not fill {height} x {width} pixels; {remedy}")
    owner = np.repeat(np.arange(len(strings)), number_ends - number_starts)
    ones = (np.arange(len(numbers)) - number_starts[owner]) % 2 == 1
    start = np.cumsum(numbers) - numbers - owner * (height * width)
    return start[ones], numbers[ones], owner[ones]


def _compressed(annotation: dict[str, Any], height: int, width: int, remedy: str) -> bytes:
    """The run-length string of an annotation given as run lengths (compressed or not) or polygons."""
    try:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        size, counts = list(segmentation["size"]), segmentation["counts"]
        if isinstance(counts, list):
            counts = mask_util.frPyObjects(segmentation, *size)["counts"]
        string: bytes = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except Exception as error:  # pycocotools raises bare ones
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


def write_semantic(path: Path, label_map: npt.NDArray[np.int32]) -> None:
    """The semantic truth: an 8-bit PNG, 0 background, 1 any object."""
    Image.fromarray((label_map > 0).astype(np.uint8)).save(path)


def write_coco(
    path: Path,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    info: dict[str, Any],
    category: str,
) -> None:
    """The json of a split with its one category (id 1), written beside its place and moved when whole."""
    data = {
        "info": info,
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": CATEGORY_ID, "name": category, "supercategory": category}],
    }
    write_text(path, json.dumps(data))
