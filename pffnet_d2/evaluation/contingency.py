"""The joint histogram of two label maps, from which every overlap metric is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pffnet_d2.errors import InputError

# The joint histogram is counted in a dense table of up to this many cells (128 MiB of int64); larger ones by sorting.
MAX_DENSE_CELLS = 2**24


@dataclass(frozen=True, eq=False)
class ContingencyTable:
    """Areas of the objects of a truth and of a prediction, and the areas they share.

    Objects are numbered 0..G-1 and 0..P-1 in the order of their ids; background (id 0) is not an object.

    Attributes:
        gt_ids: (G,) the ids in the truth, ascending, gaps allowed.
        pred_ids: (P,) the ids in the prediction, ascending, gaps allowed.
        gt_areas: (G,) int64, pixels, all positive.
        pred_areas: (P,) int64, pixels, all positive.
        gt_index: (K,) int64, the truth of each overlapping pair; pairs are sorted by truth, then prediction.
        pred_index: (K,) int64, the prediction of each overlapping pair.
        intersections: (K,) int64, pixels shared by each pair, all positive.
    """

    gt_ids: NDArray[np.integer]
    pred_ids: NDArray[np.integer]
    gt_areas: NDArray[np.int64]
    pred_areas: NDArray[np.int64]
    gt_index: NDArray[np.int64]
    pred_index: NDArray[np.int64]
    intersections: NDArray[np.int64]

    @classmethod
    def from_labels(cls, gt: ArrayLike, pred: ArrayLike) -> ContingencyTable:
        """Count two (H, W) label maps of one image: any integer dtype (or a bool mask), 0 background, gaps allowed.

        >>> table = ContingencyTable.from_labels([[1, 1, 0], [1, 0, 7]], [[2, 2, 2], [0, 0, 0]])
        >>> table.gt_areas.tolist(), table.pred_areas.tolist(), table.intersections.tolist(), table.iou.tolist()
        ([3, 1], [3], [2], [0.5])

        Raises:
            InputError: a map is not 2-D, not of integers or has a negative id, or the two shapes differ.
        """
        gt, pred = _label_map(gt, "truth"), _label_map(pred, "prediction")
        if gt.shape != pred.shape:
            raise InputError(
                f"truth {gt.shape} and prediction {pred.shape} differ in shape: compare label maps of one image"
            )
        gt, pred = gt.ravel(), pred.ravel()
        columns = int(pred.max(initial=0)) + 1
        cells = (int(gt.max(initial=0)) + 1) * columns
        if cells <= MAX_DENSE_CELLS:
            key = gt.astype(np.int64)
            key *= columns
            key += pred.astype(np.int64, copy=False)
            histogram = np.bincount(key, minlength=cells)
            key = np.flatnonzero(histogram)
            counts = histogram[key]
            gt_cell, pred_cell = np.divmod(key, columns)
        else:
            gt_cell, pred_cell, counts = _count_by_sorting(gt, pred)

        gt_ids, gt_areas, gt_index = _margin(gt_cell, counts)
        pred_ids, pred_areas, pred_index = _margin(pred_cell, counts)
        pair = (gt_index >= 0) & (pred_index >= 0)
        return cls(gt_ids, pred_ids, gt_areas, pred_areas, gt_index[pair], pred_index[pair], counts[pair])

    @property
    def n_gt(self) -> int:
        """G, the number of objects in the truth."""
        return len(self.gt_areas)

    @property
    def n_pred(self) -> int:
        """P, the number of objects in the prediction."""
        return len(self.pred_areas)

    @cached_property
    def unions(self) -> NDArray[np.int64]:
        """(K,) pixels in the union of each overlapping pair."""
        return self.gt_areas[self.gt_index] + self.pred_areas[self.pred_index] - self.intersections

    @cached_property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union of each overlapping pair, in (0, 1]."""
        return self.intersections / self.unions

    @cached_property
    def dice(self) -> NDArray[np.float64]:
        """(K,) Dice coefficient of each overlapping pair, in (0, 1]."""
        return 2 * self.intersections / (self.gt_areas[self.gt_index] + self.pred_areas[self.pred_index])

    def swapped(self) -> ContingencyTable:
        """Return the table with truth and prediction exchanged."""
        order = np.lexsort((self.gt_index, self.pred_index))
        return ContingencyTable(
            gt_ids=self.pred_ids,
            pred_ids=self.gt_ids,
            gt_areas=self.pred_areas,
            pred_areas=self.gt_areas,
            gt_index=self.pred_index[order],
            pred_index=self.gt_index[order],
            intersections=self.intersections[order],
        )


def _label_map(labels: ArrayLike, name: str) -> NDArray[np.integer]:
    array = np.asarray(labels)
    if array.ndim != 2:
        raise InputError(f"{name} has shape {array.shape}: a label map is 2-D (height, width)")
    if array.dtype.kind not in "biu":
        raise InputError(
            f"{name} is of {array.dtype}: a label map contains integers; convert it, for example with astype('int32')"
        )
    if array.dtype.kind == "i" and array.min(initial=0) < 0:
        raise InputError(f"{name} has the negative id {array.min()}: ids are 0 for background and positive for objects")
    return array


def _count_by_sorting(
    gt: NDArray[np.integer], pred: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.int64]]:
    """Return the occupied cells (truth id, prediction id, pixels) in ascending order, for ids of any size."""
    # Neighbouring pixels mostly have the same pair of ids, so runs of equal pairs are sorted instead of pixels.
    first = np.ones(len(gt), dtype=bool)
    first[1:] = (gt[1:] != gt[:-1]) | (pred[1:] != pred[:-1])
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=len(gt))
    # The ids are renumbered first, because a product of two 64-bit ids may not fit into 64 bits.
    gt_ids, gt_run = np.unique(gt[starts], return_inverse=True)
    pred_ids, pred_run = np.unique(pred[starts], return_inverse=True)
    key, run = np.unique(gt_run * np.int64(len(pred_ids)) + pred_run, return_inverse=True)
    counts = np.bincount(run, weights=lengths).astype(np.int64)  # exact: float64 represents integers up to 2**53
    gt_cell, pred_cell = np.divmod(key, len(pred_ids))
    return gt_ids[gt_cell], pred_ids[pred_cell], counts


def _margin(
    cell_id: NDArray[np.integer], counts: NDArray[np.int64]
) -> tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids without background, their areas, and the index of each cell's object (-1 for background)."""
    ids, index = np.unique(cell_id, return_inverse=True)
    areas = np.bincount(index, weights=counts, minlength=len(ids)).astype(np.int64)
    if len(ids) and ids[0] == 0:
        return ids[1:], areas[1:], index - 1
    return ids, areas, index
