"""One module per publisher, all with the contract of ``record.Reader``. A module in this folder with a function
``records`` is a reader, known by its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from pffnet_d2.data.readers.record import Reader, Record
from pffnet_d2.errors import InputError

READERS: dict[str, Reader] = {
    info.name: cast(Reader, module)
    for info in pkgutil.iter_modules(__path__)
    if hasattr(module := importlib.import_module(f"{__name__}.{info.name}"), "records")
}


def schemes(name: str) -> dict[str, tuple[str, ...]]:
    """The split schemes of a reader with their splits, the default first; a reader without schemes has one, ""."""
    reader = READERS[name]
    found: dict[str, tuple[str, ...]] = getattr(reader, "SCHEMES", {"": reader.SPLITS})
    return found


def options(name: str) -> dict[str, tuple[Any, str]]:
    """The default and the help of each option of a reader."""
    found: dict[str, tuple[Any, str]] = getattr(READERS[name], "OPTIONS", {})
    return found


def folder_name(scheme: str, split: str, default: str) -> str:
    """The name of a prepared split's folder; the ``default`` scheme is not named in it."""
    return split if scheme == default else f"{scheme}_{split}"


@dataclass(frozen=True)
class PublishedFiles:
    """A publisher's files with the arguments of the reader that a user chose for them.

    Attributes:
        name: of the reader.
        root: the folder of the files.
        scheme: of the splits.
        options: all options with their values.
        chosen: the names of the options that were given.
    """

    name: str
    root: Path
    scheme: str
    options: dict[str, Any]
    chosen: tuple[str, ...]

    @property
    def given(self) -> dict[str, Any]:
        """The keywords of the reader."""
        given = {key: self.options[key] for key in self.chosen}
        return given if self.scheme == self.default_scheme else {**given, "scheme": self.scheme}

    @property
    def default_scheme(self) -> str:
        return next(iter(schemes(self.name)))

    def folder_name(self, split: str) -> str:
        """The name of a split's folder once it is prepared."""
        return folder_name(self.scheme, split, self.default_scheme)

    def splits(self) -> tuple[str, ...]:
        """Those for which there are files."""
        return READERS[self.name].splits(self.root, **self.given)

    def records(self, split: str) -> Iterator[Record]:
        """Those of a split, in the publisher's order."""
        return READERS[self.name].records(self.root, split, **self.given)

    def first_records(self, split: str, count: int | None) -> Iterator[Record]:
        """The first ``count`` records, or all, with the report group that the reader gives to all images of the split
        where it does."""
        group = getattr(READERS[self.name], "REPORT_GROUPS", {}).get(split)
        records = islice(self.records(split), count)
        return records if group is None else (replace(record, report_group=group) for record in records)


def published_files(name: str, root: Path, scheme: str | None, given: Mapping[str, str]) -> PublishedFiles:
    """
    Args:
        name: of the reader.
        root: the folder of the publisher's files.
        scheme: of the splits; None takes the reader's default.
        given: options, values as text.

    Raises:
        InputError: the reader has no such scheme or option, or the option no such value.
    """
    return PublishedFiles(name, root, _scheme(name, scheme), _option_values(name, given), tuple(given))


def _scheme(name: str, scheme: str | None) -> str:
    known = schemes(name)
    if scheme is not None and scheme not in known:
        choice = f"choose one of {', '.join(known)}" if len(known) > 1 else "it has none, leave --scheme out"
        raise InputError(f"unknown split scheme {scheme!r} of {name}; {choice}")
    return scheme or next(iter(known))


def _option_values(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """All options of a reader: the given ones in the type of their default, the others at their default."""
    known = options(name)
    values = {key: default for key, (default, _) in known.items()}
    for key, text in given.items():
        if key not in known:
            choice = f"choose from {', '.join(known)}" if known else "it has none"
            raise InputError(f"unknown option {key!r} of {name}; {choice}")
        kind = type(known[key][0])
        try:
            values[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            wanted = "true or false" if kind is bool else {int: "a whole number", float: "a number"}[kind]
            raise InputError(f"option {key}={text} of {name}: give {wanted}") from error
    return values
