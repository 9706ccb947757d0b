"""One bad input and what the user gets: a row of the tables in this folder, and how a row is run."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pffnet_d2.cli.main import main


def nothing(_: Path) -> None:
    """No file is needed."""


@dataclass(frozen=True)
class Case:
    """A command that must fail in one line.

    Attributes:
        name: what is wrong, in a few words; the test's id.
        command: what is typed after ``pffnet``, quoted as in a shell, in a folder that holds only what ``inputs``
            wrote. ``{run}`` stands for the folder of a trained tiny model (config.yaml, model_final.pth).
        says: what the one line on stderr must name: file, fault, remedy.
        inputs: writes the files that the command reads into the folder it gets.
        code: the exit code.
        leaves: what the command may leave in the folder beside its inputs, as fnmatch patterns of paths relative to
            the folder ("results/*", which covers folders below); nothing else may appear.
    """

    name: str
    command: str
    says: tuple[str, ...]
    inputs: Callable[[Path], None] = nothing
    code: int = 2
    leaves: tuple[str, ...] = ()


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    """Runs a test once for each case."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def files_below(folder: Path) -> set[Path]:
    """Every file below a folder, relative to it."""
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def run_case(case: Case, folder: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Run a case in ``folder``, the current one, and check its exit code, its one line and what it left."""
    case.inputs(folder)
    before = files_below(folder)
    capfd.readouterr()
    try:
        code = main(shlex.split(case.command.replace("{run}", str(run))))
    except SystemExit as error:  # argparse
        code = int(error.code or 0)
    said = capfd.readouterr().err
    # Usage may take several lines; those after the first are indented.
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("usage:", " "))]
    assert code == case.code, said
    assert len(lines) == 1, said
    assert lines[0].startswith("pffnet"), said
    assert "error: " in lines[0], said
    for part in case.says:
        assert part in lines[0], said
    new = {str(path) for path in files_below(folder) - before}
    assert not {path for path in new if not any(fnmatch(path, pattern) for pattern in case.leaves)}
