"""Writes files and folders whole or not at all, by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any

import portalocker

from pffnet_d2.errors import InputError

# Seconds that the writer of a short file waits for another writer of the same file.
_PATIENCE = 60.0


@contextmanager
def whole_file(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """``open`` for a file that appears at ``path`` only if the block ends without an error.

    The file is first written to ``.NAME.partial`` in the same folder. The name is always the same, so that the next
    writer replaces a file that a killed process left behind. A second writer of the same file waits for the first.

    Raises:
        InputError: the file cannot be written: the folder is missing or protected, the disk is full, or another process
            has been writing it for a minute.
    """
    if path.exists() and not path.is_file():  # a device would be replaced by the file
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise InputError(f"{path}: cannot be written (it is {what}); name a file")
    with locked(path, wait=_PATIENCE):
        beside = _partial(path)
        try:
            with open(beside, mode, **options) as file:
                yield file
            os.replace(beside, path)
        except OSError as error:
            raise _unwritable(path, error) from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Check, before a long computation, that its results can be written to a folder. The folder need not exist yet.

    Raises:
        InputError: the folder cannot be created or written to.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{there}: a file is where a folder for results is needed; move it, or choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there}: no permission to write into this folder; choose another one")


def read_json(path: Path) -> Any:
    """Read a json file (UTF-8).

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply to be read; give the file as it was written") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged, or not JSON; give the file as it was written") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8, line ends as given), whole or not at all. Raises InputError as :func:`whole_file`."""
    with whole_file(path, encoding="utf-8", newline="") as file:
        file.write(text)


@contextmanager
def work_folder(path: Path, wait: float = 0.0) -> Iterator[Path]:
    """Make an empty folder ``.NAME.partial`` next to ``path``, for building a result that is then moved to ``path``.

    Only this process uses the folder. It is emptied first, in case a killed process left it behind, and removed when
    the block ends.

    Args:
        path: the path of the result; its folder must exist.
        wait: seconds to wait, as in :func:`locked`.

    Raises:
        InputError: the folder cannot be created, or another process is making the same result.
    """
    with locked(path, wait):
        folder = _partial(path)
        try:
            if folder.is_symlink() or folder.is_file():
                folder.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            yield folder
        except OSError as error:
            if error.filename is None:  # a full disk does not say where
                error.filename = str(path)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def move(made: Path, place: Path) -> None:
    """Move a complete file or folder to its place. It replaces the file or folder that is there.

    A kill between the steps that a folder takes leaves the earlier result behind in ``.NAME.before``.
    """
    if not place.is_dir() and not (made.is_dir() and place.exists()):
        os.replace(made, place)
        return
    before = place.with_name(f".{place.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    os.replace(place, before / place.name)
    os.replace(made, place)
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Let only one process, and only one of its threads, write ``path`` at a time.

    This is a lock of the operating system on the file ``.NAME.lock`` in the same folder. The lock ends with its
    process, even if that is killed, so a lock file that was left behind locks nothing. The file says who holds the lock
    and is removed with it. Nothing is locked if the file system does not support locks.

    Args:
        path: the path to write; it need not exist, but its folder must.
        wait: seconds to wait while another process holds the lock.

    Raises:
        InputError: another process holds the lock (the message names it), or the folder cannot be written to.
    """
    place = _lock_file(path)
    deadline = time.monotonic() + wait
    try:
        file = _acquired(place)
        while file is None and time.monotonic() < deadline:
            time.sleep(0.02)
            file = _acquired(place)
        holder = _holder(place) if file is None else ""
    except OSError as error:
        raise _unwritable(path, error) from error
    if file is None:
        raise InputError(f"{path}: {holder} is writing it; wait until that has ended, or choose another folder")
    with file:
        with suppress(OSError):  # on a full disk the file cannot say who holds the lock
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since},".encode())
        try:
            yield
        finally:
            with suppress(OSError):
                place.unlink()


def touched(path: Path) -> bool:
    """Return whether a process is writing ``path``, or a killed process left parts of it behind."""
    return _partial(path).exists() or _lock_file(path).exists()


def _acquired(place: Path) -> FileIO | None:
    """Return the lock file, emptied and locked, or None if another process holds it."""
    while True:
        file = open(place, "ab", buffering=0)  # noqa: SIM115 -- the holder of the lock closes it
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            file.close()
            return None
        except portalocker.LockException:
            pass  # the file system does not support locks
        # The previous holder may have removed the file between opening and locking. It then locks nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(place)):
                file.truncate(0)
                return file
        file.close()


def _holder(place: Path) -> str:
    """Return who holds a lock, according to its file. The lock may have been released meanwhile."""
    with suppress(OSError, UnicodeDecodeError):
        return place.read_text(encoding="utf-8").strip() or "another process"
    return "another process"


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder")
