"""Folds for cross-validation."""

from __future__ import annotations

import numpy as np
import pytest

from pffnet_d2.data.folds import check_folds, divide, fold_of
from pffnet_d2.data.readers.record import Record
from pffnet_d2.errors import InputError


def record(name: str, group: str = "") -> Record:
    return Record(name, read_image=lambda: np.zeros((6, 7), np.uint8), read_label_map=None, split_group=group)


def test_divide() -> None:
    """Each image is in val of one fold and in train of all others, in the order given."""
    some = [record(f"{i:02d}") for i in range(7)]
    parts = divide(some, 3, 0)
    fold = fold_of(some, 3, 0)
    for i, splits in enumerate(parts):
        assert list(splits) == [f"fold{i}of3_train", f"fold{i}of3_val"]
        train, val = splits.values()
        assert val == [each for each in some if fold[each.image_id] == i]
        assert train == [each for each in some if each not in val]


def test_numbers_that_divide_nothing() -> None:
    check_folds(None, None)
    check_folds(2, 0)
    with pytest.raises(InputError, match="--folds 1: give at least 2"):
        check_folds(1, 0)
    with pytest.raises(InputError, match="--seed -1: give 0 or"):
        check_folds(None, -1)


def test_fold_of() -> None:
    """Sizes differ by one at most without groups; the seed decides, the order of the records does not."""
    some = [record(f"{i:02d}") for i in range(11)]
    part = fold_of(some, 4, 0)
    assert sorted(np.bincount(list(part.values()))) == [2, 3, 3, 3]
    assert fold_of(some[::-1], 4, 0) == part
    assert len({tuple(fold_of(some, 4, seed)[r.image_id] for r in some) for seed in range(10)}) == 10
    grouped = [record(f"{i}", "one" if i < 6 else "") for i in range(9)]
    part = fold_of(grouped, 2, 3)
    assert len({part[str(i)] for i in range(6)}) == 1
    for folds in (0, 1, 5):
        with pytest.raises(InputError, match="give 2 to 4, the number of images or groups"):
            fold_of(grouped, folds, 0)
