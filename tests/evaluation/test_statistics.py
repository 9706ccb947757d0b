"""Means, tests and corrections against examples computed by hand and published ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pffnet_d2.evaluation.statistics import holm, paired_tests, summarise


def test_values_that_are_not_numbers_are_left_out_and_counted() -> None:
    assert summarise([1.0, 3.0, float("nan")]) == (2.0, 1.0, 2, 1)  # population deviation: of 1 and 3 it is 1
    for values in ([], [float("nan")] * 3):
        mean, std, images, left_out = summarise(values)
        assert math.isnan(mean)
        assert math.isnan(std)
        assert (images, left_out) == (0, len(values))


def test_paired_tests_by_hand() -> None:
    ours, theirs = np.array([0.6, 0.7, 0.9, 0.8, float("nan")]), np.array([0.5, 0.5, 0.6, 0.4, 0.1])
    tests = paired_tests(ours, theirs)
    assert tests.pairs == 4
    # Differences .1 .2 .3 .4: t = .25 / (.1291 / 2) = 3.873 with 3 degrees of freedom; all 4 ranks positive: 1 / 2^4.
    assert tests.t == pytest.approx(stats.t.sf(0.25 / (np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2), 3))
    assert tests.t == pytest.approx(0.0152, abs=1e-4)
    assert tests.wilcoxon == pytest.approx(1 / 16)
    assert paired_tests(theirs, ours).wilcoxon == 1
    assert paired_tests(theirs, ours).t == pytest.approx(1 - tests.t)
    assert paired_tests(theirs, ours, lower_is_better=True) == tests


@pytest.mark.filterwarnings("error")
def test_paired_tests_at_the_edges() -> None:
    assert paired_tests([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]) == (1.0, 1.0, 3)
    assert paired_tests([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).t == 0
    assert paired_tests([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]).t == 1
    assert all(math.isnan(p) for p in paired_tests([1.0], [0.0])[:2])
    assert paired_tests([], []).pairs == 0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with_nan = holm([0.02, float("nan"), 0.01])
    assert with_nan[0] == pytest.approx(0.02)
    assert math.isnan(with_nan[1])
    assert with_nan[2] == pytest.approx(0.02)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_corrects_upwards_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
