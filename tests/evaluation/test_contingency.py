"""The joint histogram: counts by hand, both ways of counting, and refused input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import contingency
from pffnet_d2.evaluation.contingency import ContingencyTable


def as_dict(table: ContingencyTable) -> dict[tuple[int, int], int]:
    pairs = zip(table.gt_ids[table.gt_index], table.pred_ids[table.pred_index], table.intersections, strict=True)
    return {(int(g), int(p)): int(n) for g, p, n in pairs}


def test_counts_by_hand() -> None:
    gt = np.array([[1, 1, 0, 7], [1, 1, 0, 7], [0, 0, 0, 7]])
    pred = np.array([[0, 3, 3, 3], [9, 9, 0, 3], [0, 0, 0, 0]])
    table = ContingencyTable.from_labels(gt, pred)
    assert table.gt_ids.tolist() == [1, 7]
    assert table.pred_ids.tolist() == [3, 9]
    assert table.gt_areas.tolist() == [4, 3]
    assert table.pred_areas.tolist() == [4, 2]
    assert as_dict(table) == {(1, 3): 1, (1, 9): 2, (7, 3): 2}
    assert table.iou.tolist() == [1 / 7, 2 / 4, 2 / 5]
    assert table.dice.tolist() == [2 / 8, 4 / 6, 4 / 7]
    assert table.swapped().gt_areas.tolist() == [4, 2]
    assert as_dict(table.swapped()) == {(3, 1): 1, (9, 1): 2, (3, 7): 2}
    assert table.swapped().gt_index.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]
)
def test_every_integer_type_counts_alike(dtype: type) -> None:
    gt: np.ndarray = np.array([[0, 1, 1], [0, 0, 1]], dtype=dtype)
    pred = np.array([[1, 1, 0], [0, 0, 1]], dtype=np.int64)
    table = ContingencyTable.from_labels(gt, pred)
    assert as_dict(table) == {(1, 1): 2}
    assert (table.gt_areas.tolist(), table.pred_areas.tolist()) == ([3], [3])


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (4, 6)])
def test_nothing_on_either_side(shape: tuple[int, int]) -> None:
    table = ContingencyTable.from_labels(np.zeros(shape, np.int32), np.zeros(shape, np.int32))
    assert (table.n_gt, table.n_pred, len(table.intersections)) == (0, 0, 0)


def test_no_background_and_ids_that_fill_64_bits() -> None:
    top = np.iinfo(np.uint64).max
    gt = np.array([[top, top, 5]], dtype=np.uint64)
    pred = np.array([[2**62, 3, 3]], dtype=np.int64)
    assert as_dict(ContingencyTable.from_labels(gt, pred)) == {(5, 3): 1, (int(top), 3): 1, (int(top), 2**62): 1}


def test_a_hundred_thousand_objects() -> None:
    # A dense table would have 10^10 cells.
    gt = np.arange(1, 100_001).reshape(250, 400)
    table = ContingencyTable.from_labels(gt, np.roll(gt, 1, axis=1))
    assert (table.n_gt, table.n_pred, len(table.intersections)) == (100_000, 100_000, 100_000)
    assert (table.gt_areas == 1).all()


maps = hnp.array_shapes(min_dims=2, max_dims=2, max_side=7).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.int64, shape, elements=st.integers(0, 5))] * 2)
)


@given(maps, st.integers(1, 10**6))
def test_dense_and_sorted_counts_agree_with_masks(pair: tuple[np.ndarray, np.ndarray], gap: int) -> None:
    gt, pred = pair[0] * gap, pair[1]
    expected = {
        (int(g), int(p)): int(((gt == g) & (pred == p)).sum())
        for g in np.unique(gt)
        for p in np.unique(pred)
        if g and p and ((gt == g) & (pred == p)).any()
    }
    for limit in (0, contingency.MAX_DENSE_CELLS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contingency, "MAX_DENSE_CELLS", limit)
            table = ContingencyTable.from_labels(gt, pred)
        assert as_dict(table) == expected
        assert table.gt_areas.tolist() == [int((gt == g).sum()) for g in np.unique(gt) if g]
        assert table.pred_areas.tolist() == [int((pred == p).sum()) for p in np.unique(pred) if p]
        order = np.lexsort((table.pred_index, table.gt_index))
        assert (order == np.arange(len(order))).all()


@pytest.mark.parametrize(
    ("gt", "pred", "message"),
    [
        (np.zeros((4, 5), int), np.zeros((5, 4), int), r"truth \(4, 5\) and prediction \(5, 4\) differ in shape"),
        (np.zeros((4, 5)), np.zeros((4, 5), int), "truth is of float64"),
        (np.zeros((4, 5), int), np.zeros((4, 5), complex), "prediction is of complex128"),
        (np.zeros((4, 5), int), np.full((4, 5), -1), "prediction has the negative id -1"),
        (np.zeros((4, 5, 3), int), np.zeros((4, 5, 3), int), r"truth has shape \(4, 5, 3\)"),
        (np.zeros(4, int), np.zeros(4, int), r"truth has shape \(4,\)"),
    ],
)
def test_arrays_that_are_not_a_pair_of_label_maps_are_refused_in_one_line(
    gt: np.ndarray, pred: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        ContingencyTable.from_labels(gt, pred)
    assert "\n" not in str(error.value)
