"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pffnet_d2.errors import InputError


@contextmanager
def whole_file(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """``open`` for a file that appears at ``path`` when the block ends well, and not at all otherwise.

    Raises:
        InputError: it cannot be written: the folder is missing or protected, the disk is full.
    """
    if path.is_dir():
        raise InputError(f"{path}: cannot be written (it is a folder); name a file")
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(beside, mode, **options) as file:
            yield file
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
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
        InputError: naming the file, when it cannot be read or is no json.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply to be read; give the file as it was written") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged, or no json; give the file as it was written") from error


def write_text(path: Path, text: str) -> None:
    """A text file (UTF-8, line ends as given), whole or not there. Raises InputError as :func:`whole_file`."""
    with whole_file(path, encoding="utf-8", newline="") as file:
        file.write(text)
