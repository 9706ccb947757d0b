"""One large image: tiles predicted and kept one by one, stitched, and written as they are finished.

What was found in each tile is kept in a folder beside the results until these are whole, so that a run that was killed
resumes. Every process of a run takes its share of the tiles; the first stitches them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from detectron2.utils import comm
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from tqdm import tqdm

from pffnet_d2 import __version__
from pffnet_d2.atomic_write import locked, whole_file, write_text
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.lazy import Sliceable, digest, limits, open_micrograph, window
from pffnet_d2.imaging.microscopy import Micrograph
from pffnet_d2.imaging.read import AUTO, Normalisation, normalisation_of, to_rgb8
from pffnet_d2.inference import caps
from pffnet_d2.inference.export import Exporter, Part, SourceImage, choose
from pffnet_d2.inference.tiling import Box, Found, Tiles, View, overlap_for, stitch
from pffnet_d2.model_zoo.find import sha256

# Where objects are measured for overlap "auto": in the tile with most contrast of so many, for every 32 tiles one.
_CANDIDATES, _TILES_A_PROBE, _MOST_PROBES = 16, 32, 4
# Of as many tiles a corner of this side tells whether the model was made for the image.
_PART = 256
_MANIFEST = "manifest.json"

T = TypeVar("T")


class Findings(Protocol):
    """What was found in a tile; ``predictor.Prediction`` is one."""

    @property
    def label_map(self) -> NDArray[np.int32]: ...
    @property
    def scores(self) -> Mapping[str, NDArray[Any]]: ...
    @property
    def capped(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Model:
    """What predicts tiles."""

    predict: Callable[[list[NDArray[np.uint8]]], Sequence[Findings]]  # (h, w, 3) RGB, those of one size together
    identity: str  # differs where predictions may
    stride: int = 1  # sides of tiles are multiples of it, so that none is padded
    normalisation: Normalisation = AUTO
    doubt: Callable[[NDArray[np.uint8]], str] | None = None  # as ``Predictor.doubt``


@dataclass(frozen=True)
class Plan:
    """What is to be done with an image; see ``Predictor.predict_large``."""

    out: Path
    name: str  # of the results, a path below ``out`` without ending
    tile: int = 1024
    overlap: int | str = "auto"
    formats: Sequence[str] = ("label-tiff",)
    plane: Mapping[str, int] | int | None = None
    channels: Sequence[int] | None = None
    pixel_size: float | None = None
    batch: int = 1


@dataclass(frozen=True)
class LargePrediction:
    """What came of a large image. The label map itself is in ``files``."""

    shape: tuple[int, int]  # H, W
    objects: int
    files: dict[str, Path]  # by format
    tiles: int
    predicted: int  # of these tiles, now; the others were kept from a run that ended early
    tile: int
    overlap: int
    normalisation: Normalisation
    dtype: str  # of the pixels
    larger: list[tuple[int, Box]] = field(default_factory=list)  # id and box of objects larger than the overlap
    capped: list[Box] = field(default_factory=list)  # tiles in which a cap on proposals or detections was reached
    caps: tuple[str, ...] = ()  # these caps, as KEY VALUE of the config
    doubt: str = ""  # why the model was not made for such images, and what to do

    def warnings(self) -> list[str]:
        """For people: a model that was made for other images, objects that seams may have cut, tiles in which objects
        may be missing."""
        lines = [self.doubt] if self.doubt else []
        if self.larger:
            some = "; ".join(
                f"{label} (x {x0}, y {y0}, {x1 - x0} x {y1 - y0})" for label, (y0, x0, y1, x1) in self.larger[:10]
            )
            more = f"; and {len(self.larger) - 10} more" if len(self.larger) > 10 else ""
            lines.append(
                f"{len(self.larger)} objects are larger than the overlap of {self.overlap} pixels and may be cut where "
                f"tiles meet: {some}{more}; raise --overlap"
            )
        if self.capped:
            some = ", ".join(f"x {x0}, y {y0}" for y0, x0, _, _ in self.capped[:10])
            more = f", and {len(self.capped) - 10} more" if len(self.capped) > 10 else ""
            lines.append(f"in {len(self.capped)} tiles (at {some}{more}) {caps.warning(self.caps)}")
        return lines


def predict_large(model: Model, image: Sliceable | str | os.PathLike[str], plan: Plan) -> LargePrediction:
    """Predict an image in tiles and write what is found; every process of a distributed run must call it.

    Args:
        model: what predicts tiles.
        image: a file, or (H, W) or (H, W, C) that slices like an array.
        plan: how.

    Raises:
        InputError: the image cannot be read or has values that are not finite; tile, overlap and formats that cannot
            be; the results cannot be written; the folder of tiles belongs to another image, model or plan.
    """
    exporters = _exporters(plan.formats)
    check_tiles(plan.tile, plan.overlap, model.stride)
    if plan.batch < 1:
        raise InputError(f"batches of {plan.batch}: must be at least 1")
    with _opened(image, plan) as (micrograph, path):
        return _Run(model, micrograph, path, plan, exporters).go()


def check_tiles(tile: int, overlap: int | str, stride: int) -> None:
    """Raises InputError where tiles fit neither the network nor each other."""
    if tile < stride or tile % stride:
        raise InputError(
            f"tiles of {tile} pixels: the network works in steps of {stride} pixels; use a multiple of that, "
            f"such as {max(round(tile / stride), 8) * stride}"
        )
    if isinstance(overlap, int):
        Tiles((1, 1), tile, overlap)
    elif overlap != "auto":
        raise InputError(f"overlap {overlap}: give pixels, or auto")


@contextmanager
def _opened(image: Sliceable | str | os.PathLike[str], plan: Plan) -> Iterator[tuple[Micrograph, Path | None]]:
    """The image, and the file that it is read from."""
    if isinstance(image, (str, os.PathLike)):
        with open_micrograph(Path(image), plane=plan.plane, channels=plan.channels) as micrograph:
            yield micrograph, Path(image)
        return
    shape = tuple(image.shape)
    if not (len(shape) == 2 or (len(shape) == 3 and 1 <= shape[2] <= 4)) or 0 in shape:
        raise InputError(f"an image of shape {shape} is neither grey nor RGB(A); give a single plane")
    yield Micrograph(image), None  # type: ignore[arg-type]


@dataclass
class _Seen:
    """What is counted while tiles are stitched; see ``LargePrediction``."""

    objects: int = 0
    larger: list[tuple[int, Box]] = field(default_factory=list)
    capped: list[Box] = field(default_factory=list)
    caps: set[str] = field(default_factory=set)

    def add(self, found: Found, overlap: int, seams: NDArray[np.bool_]) -> None:
        """Finished objects; ``seams`` says in which directions, y and x, there are any."""
        self.objects += len(found.boxes)
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]) * seams
        for i in np.flatnonzero((sides > overlap).any(axis=1)).tolist():
            y0, x0, y1, x1 = found.boxes[i].tolist()
            self.larger.append((found.first + i, (y0, x0, y1, x1)))


class _Run:
    """An image and its plan, in one of the processes."""

    def __init__(
        self, model: Model, micrograph: Micrograph, path: Path | None, plan: Plan, exporters: Sequence[Exporter]
    ) -> None:
        self.model, self.plan, self.path = model, plan, path
        self.exporters = exporters
        self.name = str(path) if path else "the image"
        self.stamp = self._stamp()
        self.pixels: Sliceable = micrograph.pixels
        size = micrograph.pixel_size if plan.pixel_size is None else (plan.pixel_size, plan.pixel_size)
        probe = window(self.pixels, slice(0, 1), slice(0, 1), self.name)
        self.dtype = probe.dtype
        self.normalisation = normalisation_of(probe, model.normalisation)
        self.shape = (int(self.pixels.shape[0]), int(self.pixels.shape[1]))
        self.target = plan.out / plan.name
        self.folder = self.target.with_name(f"{self.target.name}.tiles")
        self.exported = SourceImage(
            path.name if path else self.name,
            self.shape,
            self._values,
            self._image,
            whole=False,
            pixel_size=size if size and size[0] else None,
            resolution=micrograph.resolution,
        )
        for exporter in self.exporters:
            exporter.check(self.name, self.exported)

    def go(self) -> LargePrediction:
        first = comm.get_rank() == 0
        with ExitStack() as held:

            def begin() -> None:
                held.enter_context(self._alone())
                self._begin()

            # The first process decides on limits and overlap; the others read what it wrote.
            _together(begin if first else lambda: None)
            _together(self._read_manifest)
            predicted = sum(_together(self._predict_share))
            results = _together(lambda: self._finish(predicted) if first else None)
        result = results[0]
        assert result is not None
        return result

    def _alone(self) -> AbstractContextManager[None]:
        """The lock of these results. Raises InputError where another run makes them, or nothing can be written."""
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return locked(self.target)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.plan.out}: cannot be written to ({error.strerror or error}); choose another --out")

    def _stamp(self) -> tuple[int, int] | None:
        """Size and time of the last change of the file, in nanoseconds."""
        if self.path is None:
            return None
        try:
            status = self.path.stat()
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror}); check the path") from error
        return status.st_size, status.st_mtime_ns

    # --- What is decided once ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Limits and overlap for all tiles, written down; those of a run that ended early, where it was the same."""
        asked = self._asked()
        file = self.folder / _MANIFEST
        if file.exists():
            try:
                before = json.loads(file.read_text(encoding="utf-8"))
                differ = [key for key in asked if before["asked"].get(key) != asked[key]]
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise InputError(f"{self.folder}: its manifest.json cannot be read; remove the folder") from error
            if differ:
                raise InputError(
                    f"{self.folder}: holds tiles of another run ({', '.join(differ)} differ); "
                    "remove it or choose another --out"
                )
            return
        try:
            if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise InputError(f"{self.folder}: is no folder of tiles; remove it or choose another --out")
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._check_results()
            self.limits = limits(self.pixels, self.normalisation, self.name)
            overlap = self._auto_overlap() if self.plan.overlap == "auto" else int(self.plan.overlap)
            self.tiles = Tiles(self.shape, self.plan.tile, overlap, self.model.stride)
            doubt = self._doubt()
        except BaseException:
            with suppress(OSError):
                self.folder.rmdir()
            raise
        decided = {"overlap": overlap, "limits": self.limits, "doubt": doubt}
        write_text(file, json.dumps({"asked": asked, "decided": decided}, indent=1))

    def _check_results(self) -> None:
        """Before hours of work: raises InputError where a result's name is too long, or is that of a folder."""
        for exporter in self.exporters:
            made = self.folder / (self.target.name + exporter.ending)
            write_text(made, "")
            made.unlink()
            if self.target.with_name(made.name).is_dir():
                raise InputError(f"{self.target.with_name(made.name)}: cannot be written (Is a directory); remove it")

    def _asked(self) -> dict[str, Any]:
        """How two runs are told apart: all that the contents of tiles depend on. Each key is a word for people."""
        plane = self.plan.plane
        return {
            "image": self._identity(),
            "plane": {axis: int(i) for axis, i in plane.items()} if isinstance(plane, Mapping) else plane,
            "channels": None if self.plan.channels is None else [int(channel) for channel in self.plan.channels],
            "release": __version__,
            "model": self.model.identity,
            "tile": self.plan.tile,
            "overlap": self.plan.overlap,
            "normalisation": self.normalisation.info(),
            "batch": self.plan.batch,
        }

    def _identity(self) -> list[Any]:
        """Size and digest of all bytes of a file, or shape, type and digest of all values of an array.

        Nothing less tells two versions of an image apart: a change of a few pixels may lie anywhere, and the time of
        the last change differs for a copy and can be the same after an edit. A digest reads the file once, at the speed
        of the disk, seconds where the network takes an hour. Afterwards the time of the last change is enough to tell
        that the file is still the same (``_finish``).
        """
        if self.path is None:
            return [list(map(int, self.pixels.shape)), str(self.dtype), digest(self.pixels, self.name)]
        assert self.stamp is not None
        try:
            return [self.stamp[0], sha256(self.path)]
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror}); check the path") from error

    def _auto_overlap(self) -> int:
        """From the objects in a few tiles with much contrast."""
        tiles = Tiles(self.shape, self.plan.tile, max(1, self.plan.tile // 8), self.model.stride).boxes()
        if len(tiles) == 1:
            return max(1, self.plan.tile // 8)
        spread = _spread(tiles)
        images = {box: self._image(box) for box in spread}
        best = sorted(spread, key=lambda box: (-float(images[box].std()), box))
        sides: list[int] = []
        for box in best[: min(max(len(tiles) // _TILES_A_PROBE, 1), _MOST_PROBES)]:
            (found,) = self.model.predict([images[box]])
            sides += _whole_sides(found.label_map)
        return overlap_for(sides, self.plan.tile)

    def _doubt(self) -> str:
        """Whether the model was made for such images, from parts of tiles all over it."""
        if self.model.doubt is None:
            return ""
        corners = [(y0, x0, min(y1, y0 + _PART), min(x1, x0 + _PART)) for y0, x0, y1, x1 in _spread(self.tiles.boxes())]
        parts = [self._image(box) for box in corners]
        return self.model.doubt(np.concatenate([part.reshape(-1, 1, 3) for part in parts]))

    def _read_manifest(self) -> None:
        decided = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))["decided"]
        self.limits = tuple(decided["limits"]) if decided["limits"] else None
        self.tiles = Tiles(self.shape, self.plan.tile, decided["overlap"], self.model.stride)
        self.boxes = self.tiles.boxes()
        self.doubt: str = decided.get("doubt", "")  # tiles of an earlier release have none

    def _image(self, box: Box) -> NDArray[np.uint8]:
        part = self._values(box)
        try:
            return to_rgb8(part, self.normalisation, self.limits)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error

    # --- Tiles -------------------------------------------------------------------------------------------------------

    def _tile_file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.npz"

    def _predict_share(self) -> int:
        """The tiles of this process that are not there yet; how many. Batches depend on nothing but the plan."""
        batches = [
            range(i, min(i + self.plan.batch, len(self.boxes))) for i in range(0, len(self.boxes), self.plan.batch)
        ]
        share = batches[comm.get_rank() :: comm.get_world_size()]
        missing = [batch for batch in share if not all(self._is_kept(i) for i in batch)]
        total = sum(len(batch) for batch in missing)
        # disable=None: only where stderr is a terminal
        with tqdm(
            total=total, unit="tile", disable=None if comm.get_rank() == 0 else True, dynamic_ncols=True
        ) as progress:
            for batch in missing:
                for i, found in zip(
                    batch, self.model.predict([self._image(self.boxes[i]) for i in batch]), strict=True
                ):
                    self._keep(i, found)
                progress.update(len(batch))
        return total

    def _is_kept(self, index: int) -> bool:
        if not self._tile_file(index).exists():
            return False
        try:
            self._kept(index)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return False  # what a crash of the machine left
        return True

    def _keep(self, index: int, found: Findings) -> None:
        labels = found.label_map
        small = labels.max(initial=0) < 2**16
        arrays: dict[str, Any] = {f"score_{name}": column for name, column in found.scores.items()}
        arrays |= {"labels": labels.astype(np.uint16) if small else labels, "capped": np.array(found.capped, dtype=str)}
        with whole_file(self._tile_file(index), "wb") as file:
            np.savez_compressed(file, **arrays)

    def _kept(self, index: int) -> tuple[View, list[str]]:
        with np.load(self._tile_file(index), allow_pickle=False) as kept:
            scores = {key.removeprefix("score_"): kept[key] for key in kept.files if key.startswith("score_")}
            return View(kept["labels"], scores), kept["capped"].tolist()

    # --- Results -----------------------------------------------------------------------------------------------------

    def _finish(self, predicted: int) -> LargePrediction:
        """All formats, or none of them; then the tiles are no longer needed."""
        made = {exporter.name: self.folder / (self.target.name + exporter.ending) for exporter in self.exporters}
        seen = _Seen()
        self._write(made, seen)
        try:
            if self._stamp() != self.stamp:
                self._remove_folder()
                raise InputError(f"{self.name}: was changed while it was predicted; predict it again")
            results = {}
            for name, path in made.items():
                results[name] = self.target.with_name(path.name)
                os.replace(path, results[name])
            self._remove_folder()
        except OSError as error:
            raise self._unwritable(error) from error
        return LargePrediction(
            self.shape,
            seen.objects,
            results,
            len(self.boxes),
            predicted,
            self.tiles.tile,
            self.tiles.overlap,
            self.normalisation,
            str(self.dtype),
            seen.larger,
            seen.capped,
            tuple(sorted(seen.caps)),
            self.doubt,
        )

    def _remove_folder(self) -> None:
        """The manifest last: what a kill leaves of a folder that is being removed can still be used with it."""
        for path in self.folder.iterdir():
            if path.name != _MANIFEST:
                path.unlink()
        shutil.rmtree(self.folder)

    def _write(self, made: Mapping[str, Path], seen: _Seen) -> None:
        """Stitch the tiles and write the results of all formats, counting what is for people to know."""
        # An image of one row or column of tiles is cut in one direction only, or not at all.
        seams = np.array([len(self.tiles.rows) > 1, len(self.tiles.columns) > 1])

        def view(index: int) -> View:
            found, reached = self._kept(index)
            if reached:
                seen.capped.append(self.boxes[index])
                seen.caps.update(reached)
            return found

        with ExitStack() as files:
            begun = [(e.by_rows, files.enter_context(e.begin(made[e.name], self.exported))) for e in self.exporters]

            def emit(found: Found) -> None:
                seen.add(found, self.tiles.overlap, seams)
                part = Part(found.labels, found.scores, found.first, found.origin)
                for by_rows, add in begun:
                    if not by_rows:
                        add(part)

            top = 0
            for rows in stitch(self.tiles, view, emit):
                for by_rows, add in begun:
                    if by_rows:
                        add(Part(rows, origin=(top, 0)))
                top += len(rows)

    def _values(self, box: Box) -> NDArray[Any]:
        """A window of the pixels of the file."""
        y0, x0, y1, x1 = box
        return window(self.pixels, slice(y0, y1), slice(x0, x1), self.name)


def _exporters(formats: Sequence[str]) -> tuple[Exporter, ...]:
    chosen = choose(formats, streaming=True)
    for collection in chosen.collections:
        raise InputError(f"format {collection.name} is one file of several images; use `pffnet predict`")
    return chosen.files


def _spread(tiles: list[Box]) -> list[Box]:
    """_CANDIDATES of the tiles, or all, from all over the image."""
    return [tiles[i] for i in sorted({len(tiles) * k // _CANDIDATES for k in range(_CANDIDATES)})]


def _whole_sides(label_map: NDArray[np.int32]) -> list[int]:
    """The longer sides of the objects that no border of the tile touches."""
    height, width = label_map.shape
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in filter(None, find_objects(label_map))]
    return [max(y1 - y0, x1 - x0) for y0, x0, y1, x1 in boxes if y0 and x0 and y1 < height and x1 < width]


def _together(step: Callable[[], T]) -> list[T]:
    """The results of all processes; an InputError in one of them is raised in all, so that none waits for ever."""
    result, error = None, ""
    try:
        result = step()
    except InputError as mistake:
        error = str(mistake)
    gathered = comm.all_gather((result, error))
    for _, said in gathered:
        if said:
            raise InputError(said)
    return [one for one, _ in gathered]
