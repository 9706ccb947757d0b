"""The folder of tiles beside the results of a large image. It keeps the prediction of each tile until the results are
complete, so that an interrupted run resumes."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.atomic_write import locked, move, whole_file, write_text
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import Exporter
from pffnet_d2.inference.seams import Seam
from pffnet_d2.inference.stitch import View

_MANIFEST = "manifest.json"
_SEAM = ("boxes", "area", "cut", "above", "left", "below", "right")  # arrays of a Seam


class Findings(Protocol):
    """What was found in a tile. ``predictor.Prediction`` follows this protocol."""

    @property
    def label_map(self) -> NDArray[np.int32]: ...
    @property
    def scores(self) -> Mapping[str, NDArray[Any]]: ...
    @property
    def capped(self) -> Sequence[str]: ...


class TileFolder:
    """Stores tiles by their index, and a manifest that tells which run they belong to."""

    def __init__(self, out: Path, name: str) -> None:
        """
        Args:
            out: folder for the results.
            name: of the results, a path below ``out`` without a file extension.
        """
        self.out, self.name, self.target = out, name, out / name
        self.path = self.target.with_name(f"{self.target.name}.tiles")

    def alone(self) -> AbstractContextManager[None]:
        """The lock of these results. Raises InputError if another run holds it, or the folder cannot be written to."""
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.unwritable(error) from error
        return locked(self.target)

    # --- The manifest ------------------------------------------------------------------------------------------------

    def resumes(self, asked: Mapping[str, Any]) -> bool:
        """Whether the folder has a manifest of the same run, described by ``asked``. If not, creates the folder.

        Raises:
            InputError: the folder belongs to another run, contains other files, or cannot be written to.
        """
        file = self.path / _MANIFEST
        if not file.exists():
            self._make()
            return False
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            differ = [key for key in asked if before["asked"].get(key) != asked[key]]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{self.path}: its manifest.json cannot be read; remove the folder") from error
        if differ:
            raise InputError(
                f"{self.path}: contains tiles of another run ({', '.join(differ)} differ); "
                "remove it or choose another --out"
            )
        return True

    def _make(self) -> None:
        try:
            if self.path.exists() and any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise InputError(f"{self.path}: is not a folder of tiles; remove it or choose another --out")
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise self.unwritable(error) from error

    def write_manifest(self, asked: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
        write_text(self.path / _MANIFEST, json.dumps({"asked": asked, "decided": decided}, indent=1))

    def decided(self) -> dict[str, Any]:
        """The choices of the process that began the run."""
        decided: dict[str, Any] = json.loads((self.path / _MANIFEST).read_text(encoding="utf-8"))["decided"]
        return decided

    # --- Tiles -------------------------------------------------------------------------------------------------------

    def keep(self, index: int, found: Findings, seam: Seam | None = None) -> None:
        """Writes what was found in a tile, and its seam if that is given. Raises InputError if it cannot be written."""
        labels = found.label_map
        small = labels.max(initial=0) < 2**16
        arrays: dict[str, Any] = {f"score_{name}": column for name, column in found.scores.items()}
        arrays |= {"labels": labels.astype(np.uint16) if small else labels, "capped": np.array(found.capped, dtype=str)}
        for name in _SEAM if seam else ():
            arrays[f"seam_{name}"] = getattr(seam, name)
        with whole_file(self._file(index), "wb") as file:
            np.savez_compressed(file, **arrays)

    def kept(self, index: int) -> tuple[View, list[str]]:
        """What was found in a tile, and the caps that were reached in it."""
        with np.load(self._file(index), allow_pickle=False) as kept:
            scores = {key.removeprefix("score_"): kept[key] for key in kept.files if key.startswith("score_")}
            return View(kept["labels"], scores), kept["capped"].tolist()

    def kept_caps(self, index: int) -> list[str]:
        """The caps that were reached in a tile."""
        with np.load(self._file(index), allow_pickle=False) as kept:
            reached: list[str] = kept["capped"].tolist()
        return reached

    def kept_seam(self, index: int) -> Seam | None:
        """The seam of a tile, without reading its inside; None if the tile was kept without one."""
        with np.load(self._file(index), allow_pickle=False) as kept:
            if "seam_boxes" not in kept.files:
                return None
            scores = {key.removeprefix("score_"): kept[key] for key in kept.files if key.startswith("score_")}
            return Seam(scores=scores, **{name: kept[f"seam_{name}"] for name in _SEAM})

    def has(self, index: int) -> bool:
        """Whether the file of a tile exists and can be read. A crash of the machine may leave a partial file."""
        if not self._file(index).exists():
            return False
        try:
            self.kept(index)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return False
        return True

    def _file(self, index: int) -> Path:
        return self.path / f"{index:08d}.npz"

    # --- Results -----------------------------------------------------------------------------------------------------

    def results(self, exporters: Iterable[Exporter]) -> dict[str, Path]:
        """The path at which the file of each format is written before it moves to its place beside the folder."""
        return {exporter.name: self.path / (self.target.name + exporter.ending) for exporter in exporters}

    def check_results(self, exporters: Iterable[Exporter]) -> None:
        """Raises InputError if the name of a result is too long or is the name of a folder that it may not replace.
        Call it before predicting, which may take hours."""
        for exporter in exporters:
            path = self.path / (self.target.name + exporter.ending)
            write_text(path, "")
            path.unlink()
            place = self.target.with_name(path.name)
            if not exporter.replaces(place):
                raise InputError(f"{place}: cannot be written (Is a directory); remove it")

    def publish(self, made: Mapping[str, Path]) -> dict[str, Path]:
        """Moves the results to their places, removes the folder and returns the places."""
        places = {name: self.target.with_name(path.name) for name, path in made.items()}
        try:
            for name, path in made.items():
                move(path, places[name])
        except OSError as error:
            raise self.unwritable(error) from error
        self.remove()
        return places

    def remove(self) -> None:
        """Removes the folder. The manifest goes last, so that a run can resume if this is interrupted."""
        try:
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != _MANIFEST:
                    path.unlink()
            shutil.rmtree(self.path)
        except OSError as error:
            raise self.unwritable(error) from error

    def remove_empty(self) -> None:
        with suppress(OSError):
            self.path.rmdir()

    def unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.out}: cannot be written to ({error.strerror or error}); choose another --out")
