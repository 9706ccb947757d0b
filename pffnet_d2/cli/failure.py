"""Whatever ends a command, told in one line: a user's mistake, or a machine that is full, protected or interrupted.

Code below the command line raises :class:`~pffnet_d2.errors.InputError` where it knows more than the system's message
says. Errors that are neither are bugs, and keep their traceback.
"""

from __future__ import annotations

import builtins
import errno
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

from pffnet_d2.errors import InputError, NonFiniteLoss

INTERRUPTED, BROKEN_PIPE = 130, 141  # as a shell reports SIGINT and SIGPIPE
# Of what ends a command in one line.
EXIT_CODES: dict[type[Exception], int] = {InputError: 2, NonFiniteLoss: 1, OSError: 2, MemoryError: 2}

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
REMEDIES = {
    **dict.fromkeys(FULL, "free some space, or choose another folder"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or choose another path"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file is where a folder is needed: move it, or choose another"),
    errno.EISDIR: "a folder is where a file is needed: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or use fewer workers",
    errno.EIO: "check the disk or the network it is on",
}
# What torch says, in a RuntimeError, of memory that it did not get.
NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|worker .*killed by signal", re.IGNORECASE
)
TORCH_FILE = "inline_container"  # of torch.save, whose own error hides that of the file
KILLED = "ProcessExitedException"  # of torch, of a rank that a signal ended


def one_line(error: BaseException) -> str | None:
    """What a user is told of an error; None where it is a bug."""
    error = _original(error)
    said = " ".join(str(error).split("\n")).strip()
    if isinstance(error, InputError | NonFiniteLoss):
        return said
    if isinstance(error, OSError):
        named = isinstance(error.filename, str | bytes)
        place = f"{os.fsdecode(error.filename)}: " if named else ""
        remedy = REMEDIES.get(error.errno or 0, "check the path" if named else "try again")
        return f"{place}{error.strerror or said or type(error).__name__}; {remedy}"
    if isinstance(error, UnicodeEncodeError):
        return f"{ascii(error.object)[:200]}: holds a name that is no UTF-8, which results cannot hold; rename the file"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(said)):
        reason = re.split(r"(?<=[a-z])\. ", re.sub(r"^\[enforce fail.*?\] .*?\. ", "", said))[0]
        return (
            f"not enough memory{f' ({reason})' if reason else ''}; give smaller images or batches "
            "(SOLVER.IMS_PER_BATCH, --batch), tiles (--tile) or fewer processes, or close other programs"
        )
    if type(error).__name__ == KILLED:
        return f"{said}; if the system ended it for want of memory, use fewer processes or smaller batches"
    return None


def _original(error: BaseException) -> BaseException:
    """The error itself; that of another process (a data loader's worker, another rank), which arrives with its
    traceback as text, is taken from the text."""
    text = str(error)
    if TORCH_FILE in text and isinstance(error.__context__, OSError):
        return error.__context__
    if "Traceback (most recent call last)" not in text:
        return error
    for kind, said in reversed(re.findall(r"^([\w.]+): (.*)$", text, re.MULTILINE)):
        name = kind.rpartition(".")[2]
        for own in (InputError, NonFiniteLoss):
            if kind == f"{own.__module__}.{own.__qualname__}":
                return own(said)
        builtin = getattr(builtins, name, None)
        if isinstance(builtin, type) and issubclass(builtin, OSError):
            found = re.fullmatch(r"\[Errno (\d+)\] (.*?)(?:: '(.*)')?", said)
            return OSError(int(found[1]), found[2], found[3]) if found else OSError(said)
        if name.endswith("MemoryError") or (builtin is RuntimeError and NO_MEMORY.search(said)):
            return MemoryError(said)
    return error


def exit_code(error: BaseException) -> int:
    """Of an error that :func:`one_line` has a line for."""
    error = _original(error)
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 2)


def tell(error: Exception) -> int:
    """Print the line of an error on stderr; its exit code. A reader that closed our pipe hears nothing more.

    Raises:
        the error itself, where it is a bug.
    """
    # Otherwise what is still buffered fails once more while the interpreter ends, with a traceback.
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
    """Within, output is that of a command: characters that stdout's encoding lacks are written as \\u2013, a log that
    cannot be written is an error instead of a traceback a message, and libraries' warnings to programmers are left out
    unless they were asked for (``python -W``, PYTHONWARNINGS)."""
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


def hide_traceback(record: logging.LogRecord) -> bool:
    """Filter for loggers that log a traceback of whatever ends them: not of what is told in one line."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or one_line(error) is None


def flush(stream: TextIO | None) -> None:
    """Write out what is buffered; nothing for a stream that the process was started without."""
    if stream is not None:
        stream.flush()


def _silence_if_broken(stream: TextIO | None) -> OSError | None:
    """Why a stream cannot be written to; nothing more is written to it then. None where it can."""
    try:
        flush(stream)
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
        return error
    return None


def _reader_is_gone(stream: TextIO | None) -> bool:
    """Of a pipe that is not buffered (python -u), whose flush says nothing."""
    if stream is None or not hasattr(select, "poll"):
        return False
    waiting = select.poll()
    with suppress(OSError):  # no file stands behind it
        waiting.register(stream.fileno(), 0)
    return any(events & select.POLLERR for _, events in waiting.poll(0))


_handle_error = logging.Handler.handleError


def _raise_system_errors(handler: logging.Handler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        raise error
    _handle_error(handler, record)
