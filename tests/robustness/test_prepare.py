"""``pffnet prepare`` and bad input."""

from __future__ import annotations

from collections.abc import Callable

from tests.robustness.case import Case, by_name

CASES = [
    Case("unknown data set", "prepare no-such --out root", ("no-such", "bbbc039", "phantoms")),
    Case("option without value", "prepare own --option group", ("--option group", "KEY=VALUE")),
]


@by_name(CASES)
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)
