"""Means, population standard deviations and paired tests of per-image scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


class Summary(NamedTuple):
    """Mean and population standard deviation (ddof 0, as in the papers) of the values that are numbers.

    Attributes:
        mean, std: NaN if no value is a number.
        images: the number of values that are numbers.
        left_out: the number of values that are NaN.
    """

    mean: float
    std: float
    images: int
    left_out: int


class PairedTests(NamedTuple):
    """One-tailed p-values for "the first is better", and the number of pairs (images where both are numbers)."""

    t: float
    wilcoxon: float
    pairs: int


def summarise(values: ArrayLike) -> Summary:
    """Summarise one score per image."""
    scores = np.asarray(values, dtype=np.float64)
    numbers = scores[~np.isnan(scores)]
    left_out = len(scores) - len(numbers)
    if not len(numbers):
        return Summary(float("nan"), float("nan"), 0, left_out)
    return Summary(float(numbers.mean()), float(numbers.std()), len(numbers), left_out)


def paired_tests(ours: ArrayLike, theirs: ArrayLike, *, lower_is_better: bool = False) -> PairedTests:
    """Test whether the first method is better on the same images: one-tailed paired t-test and Wilcoxon test.

    Args:
        ours, theirs: scores of the same images in the same order; images with a NaN are left out.
        lower_is_better: True for errors and distances.

    Returns:
        p-values; 1 if no image differs, NaN with fewer than two pairs.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    difference = difference[~np.isnan(difference)] * (-1 if lower_is_better else 1)
    pairs = len(difference)
    if pairs < 2:
        return PairedTests(float("nan"), float("nan"), pairs)
    if not difference.any():
        return PairedTests(1.0, 1.0, pairs)
    wilcoxon = float(stats.wilcoxon(difference, alternative="greater").pvalue)
    if np.ptp(difference) == 0:  # no spread: t is infinite
        return PairedTests(0.0 if difference[0] > 0 else 1.0, wilcoxon, pairs)
    return PairedTests(float(stats.ttest_1samp(difference, 0.0, alternative="greater").pvalue), wilcoxon, pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (Scandinavian Journal of Statistics 6, 1979) of the p-values of one family; NaN stays NaN.

    The k-th smallest of m is multiplied by m - k + 1, raised to the corrected value before it if that is larger, and
    limited to 1.
    """
    p: NDArray[np.float64] = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]  # NaN is sorted last
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]
