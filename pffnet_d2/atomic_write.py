"""Files and folders that are either whole or not there, and that one process at a time makes."""

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

# Seconds that a writer of something short waits for another writer of the same file.
_PATIENCE = 60.0


@contextmanager
def whole_file(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """``open`` for a file that appears at ``path`` when the block ends well, and not at all otherwise.

    It is written to ``.NAME.partial`` beside its place. The name is always the same, so that the next writer of the
    file replaces what a killed process left there. Of two writers of one file the second waits for the first.

    Raises:
        InputError: it cannot be written: the folder is missing or protected, the disk is full; another process has
            been writing it for a minute.
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
    """To be called before long work whose results go into a folder, which may still have to be made.

    Raises:
        InputError: it cannot be made or written to.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{there}: a file is where a folder for results is needed; move it, or choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there}: no permission to write into this folder; choose another one")


def read_json(path: Path) -> Any:
    """The content of a json file (UTF-8).

    Raises:
        InputError: naming the file, when it cannot be read or is not JSON.
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
    """A text file (UTF-8, line ends as given), whole or not there. Raises InputError as :func:`whole_file`."""
    with whole_file(path, encoding="utf-8", newline="") as file:
        file.write(text)


@contextmanager
def work_folder(path: Path, wait: float = 0.0) -> Iterator[Path]:
    """An empty folder ``.NAME.partial`` beside ``path``, in which to make what then moves there.

    It is this process's alone, holds nothing that a killed process left, and is removed when the block ends.

    Args:
        path: of what is made; the folder that it lies in must exist.
        wait: seconds, as :func:`locked`.

    Raises:
        InputError: it cannot be made, or another process makes the same.
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


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[None]:
    """One process at a time, and one thread of it, makes what lies at ``path``.

    The lock is the operating system's, on the file ``.NAME.lock`` beside: it ends with its process, also when that is
    killed, so a lock file that was left behind locks nothing. The file says who holds the lock and is removed with it.
    Where the file system knows no locks, there is none.

    Args:
        path: what is made; it need not exist, the folder that it lies in must.
        wait: seconds to wait while another process holds the lock.

    Raises:
        InputError: another process holds the lock, and which one; the folder cannot be written to.
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
        with suppress(OSError):  # who holds it is said where the disk has room for it
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since},".encode())
        try:
            yield
        finally:
            with suppress(OSError):
                place.unlink()


def touched(path: Path) -> bool:
    """Whether a process makes what lies at ``path``, or one that was killed left something of it beside."""
    return _partial(path).exists() or _lock_file(path).exists()


def _acquired(place: Path) -> FileIO | None:
    """The lock file, emptied and locked; None where another holds it."""
    while True:
        file = open(place, "ab", buffering=0)  # noqa: SIM115 -- closed by who holds the lock
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            file.close()
            return None
        except portalocker.LockException:
            pass  # the file system has no locks
        # Whoever held it before may have removed it between the opening and the locking; then it guards nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(place)):
                file.truncate(0)
                return file
        file.close()


def _holder(place: Path) -> str:
    """Who holds a lock, as its file says; it may have been released meanwhile."""
    with suppress(OSError, UnicodeDecodeError):
        return place.read_text(encoding="utf-8").strip() or "another process"
    return "another process"


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder")
