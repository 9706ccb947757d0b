"""The object Hausdorff distance of two label maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from pffnet_d2.evaluation.contingency import ContingencyTable


def object_hausdorff(gt: ArrayLike, pred: ArrayLike) -> float:
    """Object Hausdorff distance of the GlaS contest, in pixels; 0 is best (as :func:`object_dice`; [V2] Table 5).

    The mean of two sums, one over the truths and one over the predictions. Each term is the Hausdorff distance from an
    object to its partner on the other side, weighted by the object's share of the foreground of its side. The partner
    is the object that shares most pixels (of equals, or without any overlap, the nearest object). H(A, B) is the
    largest distance from a pixel of either object to the nearest pixel of the other.

    If both maps are empty, the value is 0. If exactly one is empty, it is NaN.
    """
    table = ContingencyTable.from_labels(gt, pred)
    if not table.n_gt or not table.n_pred:
        return float("nan") if table.n_gt or table.n_pred else 0.0
    truths, predictions = _Shapes(np.asarray(gt), table.gt_ids), _Shapes(np.asarray(pred), table.pred_ids)
    found: dict[tuple[int, int], float] = {}

    def distance(own: _Shapes, index: int, partner: int) -> float:
        truth, prediction = (index, partner) if own is truths else (partner, index)
        if (truth, prediction) not in found:
            there, back = truths.reach(truth, prediction, predictions), predictions.reach(prediction, truth, truths)
            found[truth, prediction] = max(there, back)
        return found[truth, prediction]

    def one_side(own: _Shapes, other: _Shapes, owner: NDArray[np.int64], shared_with: NDArray[np.int64]) -> float:
        most = np.zeros(len(own.boxes), dtype=np.int64)
        np.maximum.at(most, owner, table.intersections)
        tied = table.intersections == most[owner]
        partners: list[list[int]] = [[] for _ in own.boxes]
        for index, best in zip(owner[tied].tolist(), shared_with[tied].tolist(), strict=True):
            partners[index].append(best)
        total = 0.0
        for index, candidates in enumerate(partners):
            nearest = min((distance(own, index, partner) for partner in candidates), default=np.inf)
            if not candidates:
                # The distance is at least the difference of the extents, so most objects need no exact distance.
                bounds = np.abs(other.boxes - own.boxes[index]).max(axis=1)
                for partner in np.argsort(bounds, kind="stable").tolist():
                    if bounds[partner] >= nearest:
                        break
                    nearest = min(nearest, distance(own, index, partner))
            total += len(own.pixels[index]) * nearest
        return total / sum(map(len, own.pixels))

    return 0.5 * (
        one_side(truths, predictions, table.gt_index, table.pred_index)
        + one_side(predictions, truths, table.pred_index, table.gt_index)
    )


class _Shapes:
    """The objects of a label map by their index in the table: pixels, outlines, extents."""

    def __init__(self, labels: NDArray[np.integer], ids: NDArray[np.integer]) -> None:
        self.index = np.where(labels > 0, np.searchsorted(ids, labels), -1)  # (H, W), -1 background
        padded = np.pad(self.index, 1, constant_values=-2)
        inner = np.ones(labels.shape, dtype=bool)
        for neighbour in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            inner &= neighbour == self.index
        self.pixels = self._grouped(self.index >= 0)
        # The pixel of an object that is nearest to a pixel outside is always on the outline.
        self.outlines = self._grouped((self.index >= 0) & ~inner)
        self.trees: dict[int, KDTree] = {}
        self.boxes = np.array([[*points.min(axis=0), *points.max(axis=0)] for points in self.outlines])

    def _grouped(self, mask: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
        points = np.argwhere(mask)
        owner = self.index[mask]
        order = np.argsort(owner, kind="stable")
        return np.split(points[order], np.flatnonzero(np.diff(owner[order])) + 1)

    def reach(self, own: int, partner: int, other: _Shapes) -> float:
        """Return the largest distance in pixels from a pixel of an object to an object of the other map."""
        points = self.pixels[own]
        outside = points[other.index[points[:, 0], points[:, 1]] != partner]
        if not len(outside):
            return 0.0
        if partner not in other.trees:
            other.trees[partner] = KDTree(other.outlines[partner])
        return float(other.trees[partner].query(outside)[0].max())
