"""How a row of the tables is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robustness.case import Case, run_case


@pytest.fixture
def check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_run: Path,
    capfd: pytest.CaptureFixture[str],
    leave_no_trace: None,
) -> Callable[[Case], None]:
    """Runs a case in an empty folder."""

    def run(case: Case) -> None:
        monkeypatch.chdir(tmp_path)
        run_case(case, tmp_path, tiny_run, capfd)

    return run
