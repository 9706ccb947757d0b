"""``parquet``: the table of measurements as Parquet. Of an image in tiles it is a folder of parts.

A part has the rows of whole groups of objects, in the order of their labels, until they are at least ``PART`` rows.
pandas, pyarrow, Dask and polars read such a folder as one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pffnet_d2.atomic_write import move, whole_file, work_folder
from pffnet_d2.inference.export import base
from pffnet_d2.inference.export.base import Add, Exporter, Part, SourceImage
from pffnet_d2.inference.export.csv_table import check_square, table_of

PART = 10_000  # rows


class Parquet(Exporter):
    """The columns of ``csv`` in full precision."""

    name = "parquet"
    ending = ".parquet"
    about = "measurements"
    streams = True
    in_parallel = True

    def require(self) -> None:
        base.required("pyarrow", self.name, "pffnet_d2[cluster]")

    def check(self, name: str, image: SourceImage) -> None:
        check_square(name, image.pixel_size)

    def replaces(self, place: Path) -> bool:
        return not place.is_dir() or not any(not is_part(path) for path in place.iterdir())

    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        check_square(str(path), image.pixel_size)
        return _one_file(path, image) if image.whole else _folder(path, image)


def is_part(path: Path) -> bool:
    return path.name.startswith(("part-", ".part-")) and path.is_file()


def part_file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def write_part(path: Path, image: SourceImage, parts: Iterable[Part]) -> None:
    """Write the rows of some parts of a label map to one file. Parts are taken one at a time: they hold pixels.

    Args:
        path: the file.
        image: their image.
        parts: none makes a table without rows.
    """
    tables = [table_of(part, image) for part in parts]
    nothing = Part(np.zeros((1, 1), np.int32))
    _write(path, tables or [table_of(nothing, image)])


def _write(path: Path, tables: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    # An image without objects has no columns of scores.
    names = max(tables, key=len)
    whole = {name: np.concatenate([table[name] for table in tables if name in table]) for name in names}
    kinds = {"i": np.int64, "u": np.int64, "f": np.float64}
    columns = {name: values.astype(kinds.get(values.dtype.kind, values.dtype)) for name, values in whole.items()}
    with whole_file(path, "wb") as file:
        parquet.write_table(pyarrow.table(columns), file, compression="zstd")


@contextmanager
def _one_file(path: Path, image: SourceImage) -> Iterator[Add]:
    parts: list[Part] = []
    yield parts.append
    write_part(path, image, parts)


@contextmanager
def _folder(path: Path, image: SourceImage) -> Iterator[Add]:
    with work_folder(path) as folder:
        made = folder / path.name
        made.mkdir()
        waiting: list[dict[str, Any]] = []
        written = 0

        def add(part: Part) -> None:
            nonlocal waiting, written
            waiting.append(table_of(part, image))
            if sum(len(table["label"]) for table in waiting) >= PART:
                _write(part_file(made, written), waiting)
                waiting, written = [], written + 1

        yield add
        if waiting:
            _write(part_file(made, written), waiting)
        elif not written:
            write_part(part_file(made, 0), image, [])
        move(made, path)
