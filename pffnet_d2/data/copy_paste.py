"""Objects of one training crop pasted onto another (Ghiasi et al., "Simple copy-paste is a strong data augmentation
method for instance segmentation", CVPR 2021): more objects, more of them touching, on more backgrounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PASTED = 0.5  # probability of each object of the other crop
LEAST_VISIBLE = 0.3  # objects of which less than this fraction stays visible are dropped


class Crop(NamedTuple):
    """An image and its truth.

    Attributes:
        image: (H, W, 3) uint8.
        semantic: (H, W) uint8, 0 background, 1 object, 255 ignored; None where there is no file of it.
        masks: (N, H, W).
        boxes: (N, 4) x0, y0, x1, y1, the extents of the masks in pixels.
        classes: (N,) int64.
    """

    image: npt.NDArray[np.uint8]
    semantic: npt.NDArray[np.uint8] | None
    masks: npt.NDArray[np.bool_]
    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]


def paste_objects(crop: Crop, other: Crop) -> Crop:
    """``crop`` with some of the objects of ``other`` on top, drawn from NumPy's global generator.

    Every object of ``other`` that does not touch its border is pasted with probability ``PASTED``, and keeps its place
    where the two are of one size; of different sizes, one is put on the other at random. The pixels that it covers are
    no longer those of any object below; objects that lose more than 1 - ``LEAST_VISIBLE`` of their pixels are dropped,
    what is left of them stays object in the semantic truth. Pasted objects come last. Both arguments stay as they are.
    """
    here, there = _overlap(crop.image.shape, other.image.shape)
    inside = other.masks[:, there[0], there[1]]
    cut = other.masks.sum(axis=(1, 2)) > inside.sum(axis=(1, 2))
    edge = np.concatenate([inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]], axis=1)
    whole = ~cut & ~edge.any(axis=1)
    drawn = np.random.random(len(whole)) < PASTED  # noqa: NPY002  (the loader seeds the global generator)
    chosen = whole & drawn
    pasted = np.zeros((int(chosen.sum()), *crop.image.shape[:2]), np.bool_)
    pasted[:, here[0], here[1]] = inside[chosen]
    covered = np.asarray(pasted.any(axis=0))

    image = crop.image.copy()
    image[covered] = other.image[there][covered[here]]
    semantic = None if crop.semantic is None else np.where(covered, np.uint8(1), crop.semantic)
    visible = crop.masks & ~covered
    kept = visible.sum(axis=(1, 2)) >= np.maximum(LEAST_VISIBLE * crop.masks.sum(axis=(1, 2)), 1)
    masks = np.concatenate([visible[kept], pasted])
    return Crop(image, semantic, masks, _extents(masks), np.concatenate([crop.classes[kept], other.classes[chosen]]))


def _extents(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Boxes of masks none of which is empty."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for axis, start, length in ((1, 0, masks.shape[2]), (2, 1, masks.shape[1])):
        filled = np.asarray(masks.any(axis=axis))
        boxes[:, start] = filled.argmax(axis=1)
        boxes[:, start + 2] = length - filled[:, ::-1].argmax(axis=1)
    return boxes


Window = tuple[slice, slice]


def _overlap(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[Window, Window]:
    """Windows of one size in two images, one of which they fill along each axis; where in the larger is random."""
    sides = []
    for length, length_other in zip(shape[:2], other[:2], strict=True):
        size = min(length, length_other)
        start = int(np.random.randint(abs(length - length_other) + 1))  # noqa: NPY002
        larger, smaller = slice(start, start + size), slice(0, size)
        sides.append((larger, smaller) if length > length_other else (smaller, larger))
    (rows, rows_other), (columns, columns_other) = sides
    return (rows, columns), (rows_other, columns_other)


class Partners:
    """Draws the image whose objects are pasted onto another: one of the same group, at random.

    Args:
        groups: of every image of the data set; any values that can be told apart.
    """

    def __init__(self, groups: list[Any]) -> None:
        members: dict[Any, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        self._members = [members[group] for group in groups]

    def __call__(self, index: int) -> int:
        """An index into the data set, from NumPy's global generator; it may be ``index`` itself."""
        own = self._members[index]
        return own[int(np.random.randint(len(own)))]  # noqa: NPY002
