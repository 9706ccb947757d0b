"""What became of each true object: cases by hand, and a plain loop over objects."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.error_kinds import FATES, Fates, by_size, fates_of, in_words, write_errors


def of(truth: object, prediction: object) -> tuple[list[str], list[int]]:
    """The fate of each true object, and the areas of the false predictions."""
    fates = fates_of(ContingencyTable.from_labels(truth, prediction))
    return [FATES[i] for i in fates.fates], fates.false_areas.tolist()


@pytest.mark.parametrize(
    ("truth", "prediction", "fates", "false"),
    [
        ([1, 1, 1, 0], [0, 5, 5, 0], ["found"], []),
        ([1, 1, 0, 0], [0, 5, 0, 0], ["in_part"], []),  # an intersection over union of a half is no match
        ([1, 1, 2, 2], [5, 5, 5, 5], ["merged", "merged"], []),
        ([1, 1, 1, 2], [5, 5, 5, 5], ["found", "merged"], []),
        ([1, 1, 1, 1], [5, 5, 6, 6], ["split"], []),
        ([1, 1, 1, 1, 1], [5, 5, 5, 6, 6], ["found"], []),
        ([1, 1, 1, 1, 1], [0, 5, 0, 0, 0], ["in_part"], []),
        ([1] * 21, [5] * 2 + [0] * 19, ["missed"], []),
        ([1] * 20, [5] * 2 + [0] * 18, ["in_part"], []),
        ([1, 0, 0, 0], [5, 5, 5, 0], ["in_part"], [3]),  # less than half of the prediction is on an object
        ([1, 1, 0, 0], [0, 0, 5, 5], ["missed"], [2]),
        ([1, 1, 0, 0], [5, 5, 5, 5], ["in_part"], []),
        ([0, 0, 0, 0], [0, 5, 5, 6], [], [2, 1]),
        ([1, 2, 2, 2], [0, 0, 0, 0], ["missed", "missed"], []),
        ([0, 0, 0, 0], [0, 0, 0, 0], [], []),
    ],
)
def test_by_hand(truth: list[int], prediction: list[int], fates: list[str], false: list[int]) -> None:
    assert of([truth], [prediction]) == (fates, false)


def by_loop(truth: NDArray[np.int64], prediction: NDArray[np.int64]) -> tuple[list[str], list[int]]:
    """The definitions of the docstring, object by object."""
    truths = [truth == i for i in np.unique(truth) if i]
    predictions = [prediction == i for i in np.unique(prediction) if i]

    def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        return (a & b).sum() / (a | b).sum()

    fates = []
    for t in truths:
        holders = [p for p in predictions if (t & p).sum() > t.sum() / 2]
        pieces = [p for p in predictions if (t & p).sum() > p.sum() / 2]
        if any(iou(t, p) > 0.5 for p in predictions):
            fates.append("found")
        elif any(sum((u & p).sum() > u.sum() / 2 for u in truths) > 1 for p in holders):
            fates.append("merged")
        elif len(pieces) > 1:
            fates.append("split")
        else:
            fates.append("in_part" if (t & (prediction > 0)).sum() >= t.sum() / 10 else "missed")
    unmatched = [p for p in predictions if not any(iou(t, p) > 0.5 for t in truths)]
    return fates, [int(p.sum()) for p in unmatched if (p & (truth > 0)).sum() < p.sum() / 2]


maps = hnp.arrays(np.int64, (5, 7), elements=st.integers(0, 4))


@given(maps, maps)
def test_equals_the_loop(truth: NDArray[np.int64], prediction: NDArray[np.int64]) -> None:
    assert of(truth, prediction) == by_loop(truth, prediction)
    quality = metrics.panoptic_quality(truth, prediction)
    rows = by_size([fates_of(ContingencyTable.from_labels(truth, prediction))])
    assert rows[-1]["mean_iou"] == (round(quality.sq, 4) if rows[-1]["found"] else None)


def test_sizes() -> None:
    """Classes of 50, 100, 200 ... pixels; those without objects are left out."""
    first = Fates(np.array([49, 50, 450]), np.array([0, 4, 1]), np.array([0.8, 0, 0.4]), np.array([1000]))
    second = Fates(np.array([49]), np.array([0]), np.array([0.6]), np.zeros(0, np.int64))
    rows = by_size([first, second])
    assert [(row["area_from"], row["area_below"]) for row in rows] == [
        (0, 50),
        (50, 100),
        (400, 800),
        (800, 1600),
        (None, None),
    ]
    assert [row["truths"] for row in rows] == [2, 1, 1, 0, 4]
    assert [row["false"] for row in rows] == [0, 0, 0, 1, 1]
    assert [row["mean_iou"] for row in rows] == [0.7, None, None, None, 0.7]
    assert in_words([first, second]) == (
        "2 of 4 objects found (IoU above 0.5), 1 merged, 0 split, 0 found in part, 1 missed; 1 false"
    )


def test_file(tmp_path: Path) -> None:
    write_errors(tmp_path, [])
    (row,) = csv.DictReader((tmp_path / "label_map_errors.csv").open(newline=""))
    assert row["truths"] == row["false"] == "0"
    assert row["area_from"] == row["mean_iou"] == ""
