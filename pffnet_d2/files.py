"""Files that are either whole or not there."""

from __future__ import annotations

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
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(beside, mode, **options) as file:
            yield file
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file (UTF-8, line ends as given), whole or not there. Raises InputError as :func:`whole_file`."""
    with whole_file(path, encoding="utf-8", newline="") as file:
        file.write(text)
