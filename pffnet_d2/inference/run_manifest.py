"""The manifest of a run on a cluster: which images are done, by which model, options and bytes.

``OUT/manifest.jsonl`` holds one line of JSON for each run that began and each image that is done. Lines are only added,
by the one process that collects results. The last line about an image counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from pffnet_d2.atomic_write import locked
from pffnet_d2.env import VERSION
from pffnet_d2.errors import InputError
from pffnet_d2.inference.options import ImageOptions
from pffnet_d2.inference.summary import Outcome
from pffnet_d2.model_zoo.find import sha256

NAME = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """An image that is done. ``pffnet predict`` skips it while all of this is as it was."""

    run: str  # the key of its run
    name: str  # of its results
    image: str  # SHA-256 of the bytes of the image
    results: dict[str, str]  # SHA-256 of the bytes of each result, by file name
    outcome: dict[str, Any]  # fields of Outcome, without the index

    def is_current(self, run: str, image: str, target: Path) -> bool:
        """Whether the image, the run and the results are those of the entry."""
        return (
            bool(image)
            and (self.run, self.image) == (run, image)
            and all(self.results[file] == digest_of(target.with_name(file)) for file in self.results)
        )

    def outcome_of(self, index: int) -> Outcome:
        known = {field.name for field in fields(Outcome)}
        given = {key: value for key, value in self.outcome.items() if key in known}
        return Outcome(**{**given, "index": index, "capped": tuple(given.get("capped", ()))})


def entry(run: str, name: str, image: str, target: Path, outcome: Outcome, files: Sequence[str]) -> Entry:
    """The entry of an image whose results are written."""
    results = {file: digest_of(target.with_name(file)) for file in files}
    return Entry(run, name, image, results, {key: value for key, value in asdict(outcome).items() if key != "index"})


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and bytes of all files of a folder; "" if it cannot be read."""
    try:
        if not path.is_dir():
            return sha256(path)
        found = hashlib.sha256()
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            found.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
        return found.hexdigest()
    except OSError:
        return ""


def description(model: str, options: ImageOptions, normalisation: Mapping[str, Any]) -> dict[str, Any]:
    """What the results of a run depend on, apart from the images.

    Args:
        model: a digest of its weights and config.
        options: how images are read and written; a later release may add fields.
        normalisation: that of the model, or the one that was asked for.
    """
    asked = {field.name: repr(getattr(options, field.name)) for field in fields(ImageOptions)}
    return {"release": VERSION, "model": model, "normalisation": dict(normalisation), "options": asked}


def key_of(described: Mapping[str, Any]) -> str:
    """A digest that tells runs apart."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


class RunManifest:
    """The manifest, open for adding."""

    def __init__(self, file: IO[str], done: dict[str, Entry]) -> None:
        self._file, self.done = file, done

    def begin(self, described: Mapping[str, Any]) -> None:
        """Notes what a run depends on."""
        self._write({"run": key_of(described), **described})

    def add(self, done: Entry) -> None:
        """Notes an image. The line is on the disk when this returns."""
        self._write(asdict(done))

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def run_manifest(out: Path) -> Iterator[RunManifest]:
    """The manifest of a folder of results. Only one run at a time may add to it.

    Raises:
        InputError: it cannot be read or written, or another run holds it.
    """
    path = out / NAME
    with locked(path):
        try:
            done, end = _read(path)
            with open(path, "a", encoding="utf-8", newline="") as file:
                file.truncate(end)
                yield RunManifest(file, done)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another --out") from error


def _read(path: Path) -> tuple[dict[str, Entry], int]:
    """The entries by name, and where the last complete line ends: a kill may leave a part of one."""
    done: dict[str, Entry] = {}
    end = 0
    if not path.exists():
        return done, end
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            with suppress(ValueError, TypeError, KeyError):
                found = json.loads(line)
                if "image" in found:
                    done[found["name"]] = Entry(**found)
    return done, end
