"""What became of each true object: found, merged with a neighbour, split, found in part or missed; by size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.scores import write_table

FATES = ("found", "merged", "split", "in_part", "missed")
CSV = "label_map_errors.csv"
FIRST_AREA = 50  # pixels; upper end of the first size class, each of the following is twice as wide
TOUCHED = 0.1  # fraction of a true object on which predictions must lie so that it is not missed


class Fates(NamedTuple):
    """The objects of an image.

    Attributes:
        areas: (G,) int64, pixels of each true object.
        fates: (G,) int64, index into ``FATES``.
        ious: (G,) float64, the largest intersection over union with a prediction, in [0, 1].
        false_areas: (F,) int64, pixels of each predicted object that is none of the truth.
    """

    areas: NDArray[np.int64]
    fates: NDArray[np.int64]
    ious: NDArray[np.float64]
    false_areas: NDArray[np.int64]


def fates_of(table: ContingencyTable) -> Fates:
    """Sort the objects of a truth by what a prediction made of them. The first that applies counts:

    - found: the intersection over union with a predicted object is above 0.5, as for PQ;
    - merged: more than half of it lies in a predicted object that holds more than half of another true object too;
    - split: at least two predicted objects lie in it with more than half of their pixels;
    - in_part: predicted objects lie on at least a tenth of it;
    - missed.

    A predicted object is false if it is not the match of a found one and less than half of it lies on true objects.
    """
    found, matched = np.zeros(table.n_gt, bool), np.zeros(table.n_pred, bool)
    match = table.iou > 0.5
    found[table.gt_index[match]] = True
    matched[table.pred_index[match]] = True
    ious = np.zeros(table.n_gt)
    np.maximum.at(ious, table.gt_index, table.iou)

    swallowed = 2 * table.intersections > table.gt_areas[table.gt_index]
    swallows = np.bincount(table.pred_index[swallowed], minlength=table.n_pred)
    merged = np.zeros(table.n_gt, bool)
    merged[table.gt_index[swallowed]] = swallows[table.pred_index[swallowed]] > 1
    inside = 2 * table.intersections > table.pred_areas[table.pred_index]
    split = np.bincount(table.gt_index[inside], minlength=table.n_gt) > 1
    covered = np.bincount(table.gt_index, table.intersections, minlength=table.n_gt)
    in_part = covered >= TOUCHED * table.gt_areas
    fates = np.select([found, merged, split, in_part], range(4), default=4).astype(np.int64)

    on_truth = np.bincount(table.pred_index, table.intersections, minlength=table.n_pred)
    false = ~matched & (2 * on_truth < table.pred_areas)
    return Fates(table.gt_areas, fates, ious, table.pred_areas[false])


def by_size(images: Sequence[Fates]) -> list[dict[str, Any]]:
    """Count over images: a row for each size class that has objects, and one for all.

    Returns:
        Rows with ``area_from`` and ``area_below`` (pixels; None in the last row), ``truths``, a count for each of
        ``FATES``, ``false`` (classed by the area of the predicted object) and ``mean_iou`` of the found (None if
        there are none).
    """
    areas, fates, ious, false_areas = (
        np.concatenate([getattr(image, field) for image in images] or [np.zeros(0)]) for field in Fates._fields
    )
    largest = max(areas.max(initial=0), false_areas.max(initial=0))
    ends = [FIRST_AREA]
    while ends[-1] <= largest:
        ends.append(2 * ends[-1])
    rows: list[dict[str, Any]] = []
    for low, high in [*zip([0, *ends], ends, strict=False), (None, None)]:
        here = (areas >= (low or 0)) & (areas < (high or np.inf))
        false = (false_areas >= (low or 0)) & (false_areas < (high or np.inf))
        if high and not here.any() and not false.any():
            continue
        counts = np.bincount(fates[here].astype(np.int64), minlength=len(FATES)).tolist()
        found = here & (fates == 0)
        rows.append(
            {"area_from": low, "area_below": high, "truths": int(here.sum())}
            | dict(zip(FATES, counts, strict=True))
            | {"false": int(false.sum()), "mean_iou": round(float(ious[found].mean()), 4) if found.any() else None}
        )
    return rows


def write_errors(folder: Path, images: Sequence[Fates]) -> None:
    """Write the rows of :func:`by_size` to label_map_errors.csv in a folder that exists, whole or not at all."""
    rows = by_size(images)
    write_table(folder / CSV, list(rows[0]), rows)


def in_words(images: Sequence[Fates]) -> str:
    """One line for the user."""
    total = by_size(images)[-1]
    return (
        f"{total['found']} of {total['truths']} objects found (IoU above 0.5), {total['merged']} merged, "
        f"{total['split']} split, {total['in_part']} found in part, {total['missed']} missed; {total['false']} false"
    )
