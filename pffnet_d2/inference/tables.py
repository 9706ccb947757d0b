"""One table of all images of a run, made of the table of each image, and a summary by folder and well."""

from __future__ import annotations

import csv
import importlib
import re
import statistics
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError

# Wells of plates of 96 and 384 in names: A01 to P24 between characters that are neither letters nor digits, and r01c01
# as Opera and Operetta write them. A1 is left out, because C1 is a channel in names that ImageJ writes.
_WELL = re.compile(r"(?<![A-Za-z0-9])([A-P])(0[1-9]|1[0-9]|2[0-4])(?![A-Za-z0-9])")
_OPERA = re.compile(r"(?<![A-Za-z0-9])r(0[1-9]|1[0-6])c(0[1-9]|1[0-9]|2[0-4])(?![0-9])")
ENDINGS = (".csv", ".parquet")
_GROUP = 2**14  # rows that are written to a Parquet file together


class ImageTable(NamedTuple):
    """The table of one image: what its column ``image`` says, the image file below the folder of results, the CSV."""

    image: str
    file: PurePosixPath
    table: Path


class _Writer(Protocol):
    def add(self, row: Mapping[str, str]) -> None: ...


def check_table(path: Path, well: str | None, out: Path) -> None:
    """Call it before prediction, which makes the folder ``out``.

    Raises:
        InputError: no table can be written to such a file, or ``well`` is no regular expression of one group.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--table {path}: the name must end with .csv or .parquet")
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)
    if not path.parent.is_dir() and path.parent.resolve() != out.resolve():
        raise InputError(f"--table {path}: there is no folder {path.parent}; make it first")
    try:
        groups = re.compile(well or "(.)").groups
    except re.error as error:
        raise InputError(
            f"--well {well}: no regular expression ({error}); write one, such as '_([A-P]\\d\\d)_'"
        ) from error
    if groups > 1:
        raise InputError(f"--well {well}: has {groups} groups; put the well into one")


def summary_path(table: Path) -> Path:
    """Where the summary of a table goes: all_summary.csv beside all.parquet."""
    return table.with_name(f"{table.stem}_summary.csv")


def write_tables(path: Path, tables: Sequence[ImageTable], *, well: str | None = None) -> None:
    """Write one table of all objects, in the order of the images and of their labels, and its summary.

    The columns are those of all images together, in the order in which they first appear; a cell is empty where an
    image lacks the column, as for areas of an image whose pixel size is unknown. Rows are copied one by one, so the
    memory needed does not grow with their number, apart from 8 bytes per value of which the summary gives a median.

    Args:
        path: .csv or .parquet.
        tables: of the images, with the column ``image``.
        well: see :func:`well_of`.

    Raises:
        InputError: pyarrow is not installed; a file cannot be read or written.
    """
    columns = _columns(tables)
    summary = _Summary(well)
    with _begun(path, columns) as writer:
        for image in tables:
            group = summary.group_of(image.file)
            with open(image.table, newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    writer.add(row)
                    group.add(row)
    summary.write(summary_path(path))


def well_of(file: PurePosixPath, pattern: str | None = None) -> str:
    """The well that the name of an image says; "" if it says none or several different ones.

    Args:
        file: the image.
        pattern: a regular expression whose group (or whole match) is the well; None finds A01 to P24 and r01c01.
    """
    if pattern is not None:
        match = re.search(pattern, file.as_posix())
        return (match[1] if match.re.groups else match[0]) or "" if match else ""
    found = {row + column for row, column in _WELL.findall(file.name)}
    found |= {chr(ord("A") + int(row) - 1) + column for row, column in _OPERA.findall(file.name)}
    return found.pop() if len(found) == 1 else ""


def _columns(tables: Sequence[ImageTable]) -> list[str]:
    columns: dict[str, None] = {}
    for image in tables:
        with open(image.table, newline="", encoding="utf-8") as file:
            columns |= dict.fromkeys(next(csv.reader(file), []))
    return list(columns)


# --- Writers --------------------------------------------------------------------------------------------------------


@contextmanager
def _begun(path: Path, columns: list[str]) -> Iterator[_Writer]:
    """A table that appears at ``path`` at the end of the block."""
    if path.suffix.lower() == ".csv":
        with whole_file(path, newline="", encoding="utf-8") as file:
            yield _Csv(file, columns)
        return
    pyarrow = _pyarrow(path)
    with whole_file(path, "wb") as file:
        writer = _Parquet(file, columns, pyarrow)
        yield writer
        writer.end()


class _Csv:
    def __init__(self, file: Any, columns: list[str]) -> None:
        self._writer = csv.DictWriter(file, columns, restval="")
        self._writer.writeheader()

    def add(self, row: Mapping[str, str]) -> None:
        self._writer.writerow(row)


class _Parquet:
    """Columns of numbers are of type double, ``label`` is an integer and ``image`` a string."""

    def __init__(self, file: Any, columns: list[str], pyarrow: Any) -> None:
        types = {"image": pyarrow.string(), "label": pyarrow.int64()}
        self._schema = pyarrow.schema([(column, types.get(column, pyarrow.float64())) for column in columns])
        self._pyarrow = pyarrow
        self._rows: list[dict[str, str | int | float | None]] = []
        self._writer = importlib.import_module("pyarrow.parquet").ParquetWriter(file, self._schema)

    def add(self, row: Mapping[str, str]) -> None:
        self._rows.append({key: _value(key, text) for key, text in row.items()})
        if len(self._rows) == _GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def end(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def _value(column: str, text: str) -> str | int | float | None:
    if column == "image":
        return text
    if not text:
        return None
    return int(text) if column == "label" else float(text)


def _pyarrow(path: Path) -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        remedy = "type: pip install 'pffnet_d2[tables]', or write .csv"
        raise InputError(f"--table {path}: needs pyarrow; {remedy}") from error


# --- Summary --------------------------------------------------------------------------------------------------------


class _Group:
    """The images of one folder and well. Medians are of areas and of mean grey values."""

    def __init__(self) -> None:
        self.images = self.objects = 0
        self.values: dict[str, array[float]] = {}

    def add(self, row: Mapping[str, str]) -> None:
        self.objects += 1
        for column, text in row.items():
            if text and column.startswith(("area_px2", "area_um2", "mean_", "corrected_mean_", "ring_mean_")):
                self.values.setdefault(column, array("d")).append(float(text))


class _Summary:
    def __init__(self, well: str | None) -> None:
        self._well = well
        self._groups: dict[tuple[str, str], _Group] = {}

    def group_of(self, file: PurePosixPath) -> _Group:
        """The group of an image, in which it is counted."""
        group = self._groups.setdefault((file.parent.as_posix(), well_of(file, self._well)), _Group())
        group.images += 1
        return group

    def write(self, path: Path) -> None:
        """One row per folder and well, sorted: numbers of images and objects, objects per image, medians over all
        objects."""
        medians = list(dict.fromkeys(column for group in self._groups.values() for column in group.values))
        with whole_file(path, newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            counts = ["folder", "well", "images", "objects", "objects_per_image"]
            writer.writerow([*counts, *(f"median_{column}" for column in medians)])
            for (folder, well), group in sorted(self._groups.items()):
                values = (group.values.get(column) for column in medians)
                writer.writerow(
                    [folder, well, group.images, group.objects, f"{group.objects / group.images:.6g}"]
                    + [f"{statistics.median(own):.6g}" if own else "" for own in values]
                )
