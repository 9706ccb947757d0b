"""The errors that end a command with one line instead of a traceback, and the text of that line.

They are users' mistakes (:class:`InputError`), runs that diverged, and errors of the machine: a full disk, no
permission, not enough memory. All other errors are bugs and keep their traceback.
"""

from __future__ import annotations

import builtins
import errno
import logging
import os
import re


class InputError(ValueError):
    """A user's mistake, in one line: the file (or key), what is wrong with it, and what to do.

    Commands print the message without a traceback and exit with code 2.
    """


class NonFiniteLoss(FloatingPointError):
    """A loss became infinite or NaN. One line: which loss, of which images, what to try. Commands exit with code 1."""


class DeviceMemoryError(MemoryError):
    """The device of a network has too little memory for its input."""


_EXIT_CODES: dict[type[Exception], int] = {InputError: 2, NonFiniteLoss: 1, OSError: 2, MemoryError: 2}

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REMEDIES = {
    **dict.fromkeys(_FULL, "free some space, or choose another folder"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or choose another path"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file is where a folder is needed: move it, or choose another"),
    errno.EISDIR: "a folder is where a file is needed: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or use fewer workers",
    errno.EIO: "check the disk or the network it is on",
}
# The messages of torch's RuntimeErrors where memory could not be allocated.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|worker .*killed by signal", re.IGNORECASE
)
_TORCH_FILE = "inline_container"  # in errors of torch.save, which hide that of the file
_KILLED = "ProcessExitedException"  # of torch, where a signal ended a process


def one_line(error: BaseException) -> str | None:
    """The line that reports an error to the user; None where it is a bug."""
    error = original(error)
    said = " ".join(str(error).split("\n")).strip()
    if isinstance(error, InputError | NonFiniteLoss):
        return said
    if isinstance(error, OSError):
        named = isinstance(error.filename, str | bytes)
        place = f"{os.fsdecode(error.filename)}: " if named else ""
        remedy = _REMEDIES.get(error.errno or 0, "check the path" if named else "try again")
        return f"{place}{error.strerror or said or type(error).__name__}; {remedy}"
    if isinstance(error, UnicodeEncodeError):
        return f"{ascii(error.object)[:200]}: the name is not UTF-8, so results cannot contain it; rename the file"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(said)):
        reason = re.split(r"(?<=[a-z])\. ", re.sub(r"^\[enforce fail.*?\] .*?\. ", "", said))[0]
        return (
            f"not enough memory{f' ({reason})' if reason else ''}; give smaller images or batches "
            "(SOLVER.IMS_PER_BATCH, --batch), tiles (--tile) or fewer processes, or close other programs"
        )
    if type(error).__name__ == _KILLED:
        return f"{said}; if the system ended it because memory ran out, use fewer processes or smaller batches"
    return None


def original(error: BaseException) -> BaseException:
    """The error itself, or the error that it wraps.

    An error of another process (a worker of a data loader, another rank) arrives with its traceback as text. Errors
    that are reported in one line are created again from that text.
    """
    text = str(error)
    if _TORCH_FILE in text and isinstance(error.__context__, OSError):
        return error.__context__
    if "Traceback (most recent call last)" not in text:
        return error
    for kind, said in reversed(re.findall(r"^([\w.]+): (.*)$", text, re.MULTILINE)):
        name = kind.rpartition(".")[2]
        for own in (InputError, NonFiniteLoss):
            if kind in {f"{each.__module__}.{each.__qualname__}" for each in (own, *own.__subclasses__())}:
                return own(said)
        builtin = getattr(builtins, name, None)
        if isinstance(builtin, type) and issubclass(builtin, OSError):
            found = re.fullmatch(r"\[Errno (\d+)\] (.*?)(?:: '(.*)')?", said)
            return OSError(int(found[1]), found[2], found[3]) if found else OSError(said)
        if name.endswith("MemoryError") or (builtin is RuntimeError and _NO_MEMORY.search(said)):
            return MemoryError(said)
    return error


def exit_code(error: BaseException) -> int:
    """The exit code for an error that :func:`one_line` has a line for."""
    error = original(error)
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 2)


def hide_traceback(record: logging.LogRecord) -> bool:
    """Filter for loggers: leaves out the traceback of an error that is reported in one line."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or one_line(error) is None
