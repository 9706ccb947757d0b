"""Dividing the images of a data set into K folds for cross-validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pffnet_d2.data.readers.record import Record
from pffnet_d2.errors import InputError


def check_folds(folds: int | None, seed: int | None) -> None:
    """Raises InputError for numbers that no division has."""
    if folds is not None and folds < 2:
        raise InputError(f"--folds {folds}: give at least 2")
    if seed is not None and seed < 0:
        raise InputError(f"--seed {seed}: give 0 or a larger whole number")


def fold_of(records: Sequence[Record], folds: int, seed: int) -> dict[str, int]:
    """The fold, 0 to ``folds`` - 1, of every image id.

    Groups stay whole; an image without a group is a group of its own. The groups are taken in an order drawn from
    ``seed``, and each goes to the fold that has the fewest images so far. The order of the records does not matter.

    Raises:
        InputError: fewer groups than folds, or fewer than two folds.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        groups[(record.split_group, "") if record.split_group else ("", record.image_id)].append(record.image_id)
    if not 2 <= folds <= len(groups):
        raise InputError(f"--folds {folds}: give 2 to {len(groups)}, the number of images or groups of them")
    keys = sorted(groups)
    fold: dict[str, int] = {}
    sizes = [0] * folds
    for k in np.random.default_rng(seed).permutation(len(keys)):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(groups[keys[k]])
        fold.update(dict.fromkeys(groups[keys[k]], smallest))
    return fold


def divide(records: Sequence[Record], folds: int, seed: int) -> list[dict[str, list[Record]]]:
    """Of each fold i the splits ``fold<i>of<K>_train``, the records outside it, and ``fold<i>of<K>_val``, those in it.

    Raises:
        InputError: as ``fold_of``.
    """
    fold = fold_of(records, folds, seed)
    return [
        {
            f"fold{i}of{folds}_train": [record for record in records if fold[record.image_id] != i],
            f"fold{i}of{folds}_val": [record for record in records if fold[record.image_id] == i],
        }
        for i in range(folds)
    ]
