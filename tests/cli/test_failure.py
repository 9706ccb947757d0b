"""failure.py: what ends a command is one line; bugs keep their traceback."""

from __future__ import annotations

import errno
import logging
import sys
import warnings

import pytest

from pffnet_d2.cli import failure
from pffnet_d2.cli import main as cli
from pffnet_d2.cli.failure import command_line


def test_bugs_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        failure.tell(ZeroDivisionError())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("Unable to allocate 451. GiB"), "not enough memory"),
        (OSError(errno.EROFS, "Read-only file system", "out"), "out: Read-only file system; change its permissions"),
    ],
)
def test_commands_end_in_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "parse", fail)
    assert cli.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pffnet: error: {says}")


def test_a_broken_pipe_that_is_not_ours_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "parse", fail)
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("pffnet: error: Broken pipe; ")


def test_the_command_line_undoes_what_it_sets() -> None:
    handle, level = logging.Handler.handleError, logging.getLogger("torch.utils.cpp_extension").level
    errors = sys.stdout.errors
    filters = list(warnings.filters)
    with command_line():
        assert logging.Handler.handleError is not handle
        with warnings.catch_warnings(record=True) as heard:
            warnings.warn("for programmers", UserWarning, stacklevel=1)
        assert not heard
    assert logging.Handler.handleError is handle
    assert logging.getLogger("torch.utils.cpp_extension").level == level
    assert sys.stdout.errors == errors
    assert warnings.filters == filters
