"""Commands in processes of their own that start in milliseconds: copies of one that has imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CLOSED = -1  # as stdout: none at all


@dataclass(frozen=True)
class Done:
    """How a command ended. ``stdout`` is empty where it was led elsewhere."""

    code: int
    stdout: str
    stderr: str


def start(
    arguments: list[str],
    folder: Path,
    *,
    stdout: int | None = None,
    encoding: str = "utf-8",
    file_size: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> multiprocessing.process.BaseProcess:
    """Start ``pffnet`` with arguments.

    Args:
        arguments: what is typed after ``pffnet``.
        folder: the current one of the process, where its ``.stdout`` and ``.stderr`` are kept.
        stdout: file descriptor; CLOSED; None keeps what is written.
        encoding: of stdout.
        file_size: bytes beyond which a write to a file fails, as on a full disk.
        variables: of the environment, besides the inherited ones.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pffnet_d2.cli", "pffnet_d2.engine", "pffnet_d2.evaluation.report"])
    sent = None
    if stdout not in (None, CLOSED):
        from multiprocessing.reduction import DupFd

        sent = DupFd(stdout)
    process = context.Process(
        target=_command,
        args=(arguments, str(folder), sent, stdout == CLOSED, encoding, file_size, dict(variables or {})),
    )
    process.start()
    return process


def run(arguments: list[str], folder: Path, **options: object) -> Done:
    """:func:`start`, and wait for the end."""
    process = start(arguments, folder, **options)  # type: ignore[arg-type]
    process.join(300)
    assert process.exitcode is not None, "still running"
    return done(process, folder)


def done(process: multiprocessing.process.BaseProcess, folder: Path) -> Done:
    """What an ended process left."""
    said = [(folder / name).read_bytes().decode("utf-8", "surrogateescape") for name in (".stdout", ".stderr")]
    return Done(process.exitcode or 0, *said)


def _command(
    arguments: list[str],
    folder: str,
    stdout: object,
    closed: bool,
    encoding: str,
    file_size: int | None,
    variables: dict[str, str],
) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    out, err = (os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in (".stdout", ".stderr"))
    os.dup2(err, 2)
    os.dup2(stdout.detach() if stdout else out, 1)  # type: ignore[attr-defined]
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    if closed:
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]  # as Python makes it
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    from pffnet_d2.cli.main import main

    code = main(arguments)
    with contextlib.suppress(AttributeError):
        sys.stdout.flush()  # as the interpreter does when it ends
    os._exit(code)
