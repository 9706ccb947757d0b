"""Reporting in one line whatever ends a command, and the standard streams while it runs."""

from __future__ import annotations

import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

from pffnet_d2.errors import exit_code, one_line

INTERRUPTED, BROKEN_PIPE = 130, 141  # as a shell reports SIGINT and SIGPIPE


def tell(error: Exception) -> int:
    """Print the line of an error on stderr, unless the reader of our output has closed its pipe.

    Returns:
        The exit code.

    Raises:
        the error itself, where it is a bug.
    """
    # Otherwise writing what is still buffered fails again, with a traceback, while the interpreter exits.
    out, err = (_silence_if_broken(stream) for stream in (sys.stdout, sys.stderr))
    if isinstance(error, BrokenPipeError) and any(
        isinstance(found, BrokenPipeError) or _reader_is_gone(stream)
        for found, stream in ((out, sys.stdout), (err, sys.stderr))
    ):
        return BROKEN_PIPE
    line = one_line(error)
    if line is None:
        raise error
    if out is not None and isinstance(error, OSError) and error.filename is None and error.errno == out.errno:
        line = f"standard output: {line}"
    with suppress(OSError):
        print(f"pffnet: error: {line}", file=sys.stderr)
    return exit_code(error)


@contextmanager
def command_line() -> Iterator[None]:
    """Set up the output of a command, and restore it afterwards.

    Characters that the encoding of stdout lacks are written as \\u2013. A log that cannot be written raises an error,
    instead of printing a traceback for each message. Warnings that libraries address to programmers are left out,
    unless they are asked for (``python -W``, PYTHONWARNINGS).
    """
    stdout = sys.stdout
    before = stdout.errors if isinstance(stdout, TextIOWrapper) else None
    handle = logging.Handler.handleError
    torch_logger = logging.getLogger("torch.utils.cpp_extension")  # warns of a CUDA compiler without a device
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)
    if isinstance(stdout, TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")
    logging.Handler.handleError = _raise_system_errors  # type: ignore[assignment,method-assign]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", append=True)
            yield
    finally:
        torch_logger.setLevel(level)
        logging.Handler.handleError = handle  # type: ignore[method-assign]
        if isinstance(stdout, TextIOWrapper) and not stdout.closed:
            with suppress(OSError):  # it flushes
                stdout.reconfigure(errors=before)


def flush(stream: TextIO | None) -> None:
    """Write out what is buffered. A process may have been started without the stream."""
    if stream is not None:
        stream.flush()


def _silence_if_broken(stream: TextIO | None) -> OSError | None:
    """Why a stream cannot be written to, after which nothing more is written to it; None where it can."""
    try:
        flush(stream)
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
        return error
    return None


def _reader_is_gone(stream: TextIO | None) -> bool:
    """Whether the other end of a pipe is closed. Flushing does not tell where the pipe is not buffered (python -u)."""
    if stream is None or not hasattr(select, "poll"):
        return False
    waiting = select.poll()
    with suppress(OSError):  # a stream without a file
        waiting.register(stream.fileno(), 0)
    return any(events & select.POLLERR for _, events in waiting.poll(0))


_handle_error = logging.Handler.handleError


def _raise_system_errors(handler: logging.Handler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        raise error
    _handle_error(handler, record)
