"""The metrics of the papers and of the field, for label maps.

Every metric is ``f(gt, pred)`` on two (H, W) integer label maps of one image, truth first (0 background), or
``f(table)`` on their :class:`~pffnet_d2.evaluation.contingency.ContingencyTable`, which several metrics can share.
Label maps that cannot be compared raise :class:`~pffnet_d2.errors.InputError`.

All metrics treat empty maps in the same way. If truth and prediction are both empty, the score is 1 (a difference, a
distance and counts of errors are 0). If exactly one of them is empty, the score is 0 (a distance is NaN; summaries
leave it out and count it). The rule for equally good candidates is stated with each metric.

Several published rules are called AJI and differ by percentage points on the same prediction. This is why there are
four functions.
[P] is PFFNet (IEEE TIP 30, 2021), [V2] Cell R-CNN V2 (IJCAI 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching

from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.hausdorff import object_hausdorff as object_hausdorff  # one of the metrics
from pffnet_d2.masks.instance_mask import InstanceMask

Labels = ArrayLike | ContingencyTable

DSB_THRESHOLDS = (0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)


class PanopticQuality(NamedTuple):
    """PQ = DQ * SQ, and the counts behind it."""

    pq: float
    dq: float
    sq: float
    tp: int
    fp: int
    fn: int


class SplitsAndMerges(NamedTuple):
    """The number of truths split into several predictions, and of predictions that merge several truths."""

    splits: int
    merges: int


def _table(gt: Labels, pred: ArrayLike | None) -> ContingencyTable:
    if isinstance(gt, ContingencyTable):
        if pred is not None:
            raise TypeError("a contingency table includes the prediction: pass only the table, or two label maps")
        return gt
    if pred is None:
        raise TypeError("pass truth and prediction, or one contingency table")
    return ContingencyTable.from_labels(gt, pred)


def _empty_score(table: ContingencyTable) -> float | None:
    """Return 1 if both sides are empty, 0 if one side is empty, None if both have objects."""
    if table.n_gt and table.n_pred:
        return None
    return 0.0 if table.n_gt or table.n_pred else 1.0


# --- Aggregated Jaccard index ---------------------------------------------------------------------------------------


def aji(gt: Labels, pred: ArrayLike | None = None) -> float:
    """Aggregated Jaccard index (Kumar et al., IEEE TMI 36, 2017; [P] Eq. 7-8).

    sum |G_i ∩ P_i| / (sum |G_i ∪ P_i| + area of the unused predictions). In the order of their ids, each truth takes
    the unused prediction with the highest IoU (of equals the one with the lowest id). A truth without a prediction adds
    its own area to the denominator.

    >>> truth, prediction = [[1, 1, 0, 2], [1, 1, 0, 2]], [[1, 1, 0, 0], [1, 0, 0, 2]]
    >>> aji(truth, prediction)  # (3 + 1) / (4 + 2)
    0.6666666666666666
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    return _one_to_one_aji(table, _greedy_pairs(table)) if score is None else score


def aji_pffnet(gt: Labels, pred: ArrayLike | None = None) -> float:
    """AJI as the code released with [P] computes it (``agg_jc_index``), including its error; for comparison only.

    As :func:`aji`, but a truth that overlaps no unused prediction uses up the prediction with the lowest id (the most
    confident one), which a later truth then cannot take. Empty maps follow this module's rule; the release raises an
    error or returns NaN for them.
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    return _one_to_one_aji(table, _greedy_pairs(table, miss_takes_first=True)) if score is None else score


def aji_plus(gt: Labels, pred: ArrayLike | None = None) -> float:
    """AJI+ (HoVer-Net, Graham et al., Medical Image Analysis 58, 2019): AJI on the pairing with the highest total IoU.

    The pairing is one-to-one (Hungarian). Of pairings with equal total IoU, the one that shares most pixels is taken,
    so the value does not depend on the ids.
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    return _one_to_one_aji(table, _optimal_pairs(table)) if score is None else score


def aji_reuse(gt: Labels, pred: ArrayLike | None = None) -> float:
    """AJI as HoVer-Net's ``get_fast_aji`` computes it: several truths may take the same prediction.

    Each truth takes the prediction with the highest IoU (of equals the one with the lowest id), whether it was taken
    before or not. Truths without overlap and predictions that are never taken add their areas to the denominator.
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    if score is not None:
        return score
    best = _best_pair(table.gt_index, (table.iou,))
    intersection = table.intersections[best].sum()
    union = table.unions[best].sum()
    lone_gt = np.ones(table.n_gt, dtype=bool)
    lone_gt[table.gt_index[best]] = False
    lone_pred = np.ones(table.n_pred, dtype=bool)
    lone_pred[table.pred_index[best]] = False
    return float(intersection / (union + table.gt_areas[lone_gt].sum() + table.pred_areas[lone_pred].sum()))


def _one_to_one_aji(table: ContingencyTable, pairs: NDArray[np.intp]) -> float:
    # Every object is in at most one pair, so all unions and all unpaired areas sum to |G| + |P| - |paired|.
    paired = table.intersections[pairs].sum()
    return float(paired / (table.gt_areas.sum() + table.pred_areas.sum() - paired))


def _greedy_pairs(table: ContingencyTable, *, miss_takes_first: bool = False) -> NDArray[np.intp]:
    """Return pairs chosen for one truth after the other, each with the highest IoU among the unused predictions."""
    order = np.lexsort((table.pred_index, -table.iou, table.gt_index))
    candidates = iter(
        zip(table.gt_index[order].tolist(), table.pred_index[order].tolist(), order.tolist(), strict=True)
    )
    taken = [False] * table.n_pred
    chosen: list[int] = []
    candidate = next(candidates, None)
    for truth in range(table.n_gt):
        matched = False
        while candidate is not None and candidate[0] == truth:
            _, prediction, pair = candidate
            if not matched and not taken[prediction]:
                taken[prediction] = matched = True
                chosen.append(pair)
            candidate = next(candidates, None)
        if miss_takes_first and not matched:
            taken[0] = True
    return np.array(chosen, dtype=np.intp)


def _optimal_pairs(table: ContingencyTable) -> NDArray[np.intp]:
    """Return the pairs of the one-to-one assignment with the highest total IoU; of equal totals, most shared pixels."""
    n_gt, n_pred = table.n_gt, table.n_pred
    if not len(table.intersections):
        return np.empty(0, dtype=np.intp)
    # Too small to change an order that IoU decides.
    weight = table.iou + 1e-9 * table.intersections / table.intersections.sum()
    # Objects that are not linked through overlaps do not compete, so each connected group is solved by itself.
    edges = (np.ones(len(weight)), (table.gt_index, n_gt + table.pred_index))
    _, group_of = connected_components(csr_matrix(edges, shape=(n_gt + n_pred, n_gt + n_pred)), directed=False)
    groups = group_of.max() + 1
    truths = np.bincount(group_of[:n_gt], minlength=groups)
    predictions = np.bincount(group_of[n_gt:], minlength=groups)
    group = group_of[table.gt_index]
    star = (truths == 1) | (predictions == 1)  # one object against one or several: the best pair wins
    in_star = np.flatnonzero(star[group])
    chosen = [in_star[_best_pair(group[in_star], (weight[in_star],))]]
    rest = np.flatnonzero(~star[group])
    rest = rest[np.argsort(group[rest], kind="stable")]
    for pairs in np.split(rest, np.flatnonzero(np.diff(group[rest])) + 1):
        if not len(pairs):
            continue
        rows, row = np.unique(table.gt_index[pairs], return_inverse=True)
        columns, column = np.unique(table.pred_index[pairs], return_inverse=True)
        weights = np.zeros((len(rows), len(columns)))
        weights[row, column] = weight[pairs]
        pair_at = np.full(weights.shape, -1, dtype=np.intp)
        pair_at[row, column] = pairs
        assigned = pair_at[linear_sum_assignment(weights, maximize=True)]
        chosen.append(assigned[assigned >= 0])
    return np.concatenate(chosen)


def _best_pair(owner: NDArray[np.integer], keys: tuple[NDArray, ...]) -> NDArray[np.intp]:
    """Return each distinct owner's pair (its index) with the largest keys (first key first; of equals the first)."""
    order = np.lexsort((*(-key for key in reversed(keys)), owner))
    sorted_owner = owner[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = sorted_owner[1:] != sorted_owner[:-1]
    return order[first]


# --- Detection and panoptic quality ---------------------------------------------------------------------------------


def panoptic_quality(gt: Labels, pred: ArrayLike | None = None) -> PanopticQuality:
    """Panoptic quality (Kirillov et al., CVPR 2019; [P] Eq. 10) with its factors and counts.

    TP are the pairs with IoU > 0.5 (at most one per object), DQ = TP / (TP + FP/2 + FN/2), SQ is the mean IoU of the TP
    (0 without TP), PQ = DQ * SQ.

    >>> truth, prediction = [[1, 1, 0, 2], [1, 1, 0, 2]], [[1, 1, 0, 0], [1, 0, 0, 2]]
    >>> panoptic_quality(truth, prediction)  # IoU 3/4, which is a TP, and 1/2, which is none
    PanopticQuality(pq=0.375, dq=0.5, sq=0.75, tp=1, fp=1, fn=1)
    """
    table = _table(gt, pred)
    hits = table.iou[table.iou > 0.5]
    tp, fp, fn = len(hits), table.n_pred - len(hits), table.n_gt - len(hits)
    score = _empty_score(table)
    if score is not None:
        return PanopticQuality(score, score, score, tp, fp, fn)
    dq = tp / (tp + 0.5 * fp + 0.5 * fn)
    sq = float(hits.mean()) if tp else 0.0
    return PanopticQuality(dq * sq, dq, sq, tp, fp, fn)


def object_f1(gt: Labels, pred: ArrayLike | None = None) -> float:
    """Object-level F1 = 2TP / (2TP + FP + FN) ([P] Eq. 9; the rule of DCAN and the GlaS contest).

    A prediction belongs to the truth with which it shares most pixels (of equals the one of which it covers the largest
    part). It is a TP if it covers more than half of that truth.
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    if score is not None:
        return score
    covered = table.intersections / table.gt_areas[table.gt_index]
    belongs = _best_pair(table.pred_index, (table.intersections, covered))
    # Only one prediction can cover more than half of a truth, so no truth is counted twice.
    tp = int((covered[belongs] > 0.5).sum())
    return 2 * tp / (table.n_gt + table.n_pred)


def true_positives(gt: Labels, pred: ArrayLike | None = None, *, threshold: float = 0.5, strict: bool = False) -> int:
    """Return the largest number of pairs with IoU >= ``threshold`` (> with ``strict``), each object in at most one."""
    table = _table(gt, pred)
    hit = table.iou > threshold if strict else table.iou >= threshold
    if threshold > 0.5 or (strict and threshold == 0.5):
        return int(hit.sum())  # above 0.5 no object is in two pairs
    edges = (np.ones(hit.sum(), dtype=np.int8), (table.gt_index[hit], table.pred_index[hit]))
    matching = maximum_bipartite_matching(csr_matrix(edges, shape=(table.n_gt, table.n_pred)))
    return int((matching >= 0).sum())


def dsb_average_precision(gt: Labels, pred: ArrayLike | None = None, *, strict: bool = False) -> float:
    """Score of the 2018 Data Science Bowl: mean over IoU thresholds 0.50, 0.55 ... 0.95 of TP / (TP + FP + FN).

    Pairs with IoU >= threshold count (> with ``strict``, as the text of the contest says). StarDist and Cellpose call
    the terms of this mean "AP"; they are not areas under a precision-recall curve.
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    if score is not None:
        return score
    tp = np.array([true_positives(table, threshold=t, strict=strict) for t in DSB_THRESHOLDS])
    return float(np.mean(tp / (table.n_gt + table.n_pred - tp)))


def splits_and_merges(gt: Labels, pred: ArrayLike | None = None) -> SplitsAndMerges:
    """Count splits (truths with several predictions of IoU > 0.1) and merges (predictions with several such truths).

    The rule of Caicedo et al., Cytometry A 95, 2019 (BBBC039). It can miss an object split into more than nine parts.
    """
    table = _table(gt, pred)
    linked = table.iou > 0.1
    return SplitsAndMerges(
        splits=int((np.bincount(table.gt_index[linked]) > 1).sum()),
        merges=int((np.bincount(table.pred_index[linked]) > 1).sum()),
    )


# --- Dice of pixels and of objects ----------------------------------------------------------------------------------


def dice(gt: Labels, pred: ArrayLike | None = None) -> float:
    """Dice = 2|P ∩ G| / (|P| + |G|) of the two foregrounds ([P] Eq. 11; "pixel F1" in [V2]).

    >>> dice([[1, 1, 2]], [[0, 3, 3]])  # which object a pixel belongs to does not count
    0.8
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    if score is not None:
        return score
    return float(2 * table.intersections.sum() / (table.gt_areas.sum() + table.pred_areas.sum()))


def best_dice(gt: Labels, pred: ArrayLike | None = None) -> float:
    """BD(gt, pred), [P] Eq. 13: mean, over the objects of the FIRST map, of the highest Dice with one of the second.

    BD is not symmetric: objects of the second map without a match do not lower it. ``best_dice(pred, gt)``, or
    ``best_dice(table.swapped())``, is the other direction.
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    if score is not None:
        return score
    best = np.zeros(table.n_gt)
    np.maximum.at(best, table.gt_index, table.dice)
    return float(best.mean())


def symmetric_best_dice(gt: Labels, pred: ArrayLike | None = None) -> float:
    """SBD = min(BD(pred, gt), BD(gt, pred)) ([P] Eq. 12; CVPPP leaf segmentation challenge)."""
    table = _table(gt, pred)
    return min(best_dice(table), best_dice(table.swapped()))


def difference_in_count(gt: Labels, pred: ArrayLike | None = None) -> int:
    """DiC = number of predictions - number of truths (CVPPP); its absolute value is |DiC|."""
    table = _table(gt, pred)
    return table.n_pred - table.n_gt


def object_dice(gt: Labels, pred: ArrayLike | None = None) -> float:
    """Object Dice of the GlaS contest (Sirinukunwattana et al., Medical Image Analysis 35, 2017; [V2] Table 5).

    The mean of two sums, one over the truths and one over the predictions. Each term is the Dice of an object with the
    object of the other side that shares most pixels (of equals the one with the higher Dice; 0 without overlap),
    weighted by the object's share of the foreground of its side.
    """
    table = _table(gt, pred)
    score = _empty_score(table)
    if score is not None:
        return score

    def one_side(owner: NDArray[np.int64], areas: NDArray[np.int64]) -> float:
        best = _best_pair(owner, (table.intersections, table.dice))
        return float((areas[owner[best]] * table.dice[best]).sum() / areas.sum())

    return 0.5 * (one_side(table.gt_index, table.gt_areas) + one_side(table.pred_index, table.pred_areas))


# --- Metrics of a whole data set ------------------------------------------------------------------------------------


def voc_hits(iou: NDArray[np.float64], threshold: float, *, strict: bool = True) -> NDArray[np.bool_]:
    """Return which detections of an image are TP by the rule of Pascal VOC.

    A detection belongs to the truth with which it has the highest IoU (of equals the first). It is a TP if this IoU is
    above ``threshold`` and no better detection is already a TP of the same truth. Otherwise it is a FP, even if another
    truth is still free.

    Args:
        iou: (P, G), detections by descending score, truths.
        threshold: threshold of IoU.
        strict: False also counts an IoU of exactly ``threshold``.

    Returns:
        (P,) bool.
    """
    hits = np.zeros(len(iou), dtype=bool)
    if iou.size:
        highest = iou.max(axis=1)
        above = np.flatnonzero(highest > threshold if strict else highest >= threshold)
        _, first = np.unique(iou.argmax(axis=1)[above], return_index=True)
        hits[above[first]] = True
    return hits


def area_under_precision(
    hits: NDArray[np.bool_], scores: NDArray[np.float64], truths: int, *, eleven_point: bool = False
) -> float:
    """Average precision, as :func:`voc_average_precision`, of detections known to be TP or FP.

    Args:
        hits, scores: (P,), of all images together. Of equal scores the earlier comes first.
        truths: the number of truths in all images.
    """
    if not truths or not len(hits):
        return 0.0 if truths or len(hits) else 1.0
    tp = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = tp / np.arange(1, len(tp) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_point:
        first = np.searchsorted(10 * tp, np.arange(11) * truths)  # recall >= 0, 0.1 ... 1 in whole numbers
        return float(np.append(precision, 0.0)[first].mean())
    return float((np.diff(tp, prepend=0) * precision).sum() / truths)


def voc_average_precision(
    images: Iterable[tuple[ArrayLike, Sequence[InstanceMask], Sequence[float]]],
    *,
    threshold: float = 0.5,
    eleven_point: bool = False,
) -> float:
    """Average precision of scored masks over a whole data set by Pascal VOC (Everingham et al., IJCV 88, 2010).

    In each image :func:`voc_hits` distinguishes TP and FP. The detections of all images, by descending score, give
    precision and recall. The value is the area under the monotone precision (VOC 2010, "all-point"; the AP of
    object-guided instance segmentation, Yi et al., IEEE TMI 40, 2021), or with ``eleven_point`` the mean of the highest
    precision at recall >= 0, 0.1 ... 1 (VOC 2007). It is neither COCO's AP (101 points, limited detections) nor the DSB
    score.

    Args:
        images: for each image the truth, a label map (H, W), the masks inside it, which may overlap, and their scores.
            The images are read once, so that a generator keeps only one in memory.
        threshold: threshold of IoU; strict.

    Returns:
        A value in [0, 1]; 1 with neither truths nor masks, 0 with only one of them.

    Raises:
        InputError: the numbers of masks and scores differ, a score is NaN, or a mask does not lie inside its image.
    """
    scores, hits = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    truths = 0
    for number, (gt, masks, values) in enumerate(images):
        areas = ContingencyTable.from_labels(gt, gt)  # checks the label map
        labels = np.searchsorted(areas.gt_ids, np.asarray(gt)) + 1
        labels[np.asarray(gt) == 0] = 0
        truths += areas.n_gt
        value = np.asarray(values, dtype=np.float64)
        if len(masks) != len(value) or np.isnan(value).any():
            raise InputError(f"image {number}: {len(masks)} masks and {len(value)} scores; give each mask one number")
        order = np.argsort(-value, kind="stable")
        iou = np.zeros((len(order), areas.n_gt))
        for row, index in zip(iou, order.tolist(), strict=True):
            each = masks[index]
            if not each.inside(*labels.shape):
                raise InputError(f"image {number}: mask {index} does not lie inside its {labels.shape} pixels")
            shared = np.bincount(labels[each.window][each.mask], minlength=areas.n_gt + 1)
            row[:] = shared[1:] / np.maximum(areas.gt_areas + shared.sum() - shared[1:], 1)
        scores.append(value[order])
        hits.append(voc_hits(iou, threshold))
    return area_under_precision(np.concatenate(hits), np.concatenate(scores), truths, eleven_point=eleven_point)
