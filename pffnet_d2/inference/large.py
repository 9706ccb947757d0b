"""Predicts one large image in tiles, stitches the tiles and writes objects and rows as soon as they are finished.

The predictions of the tiles are kept in a folder until the results are complete, so that an interrupted run resumes.
Every process of a run predicts its share of the tiles, and the first process stitches them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from tqdm import tqdm

from pffnet_d2.env import VERSION
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.lazy import Sliceable
from pffnet_d2.imaging.normalisation import AUTO, Normalisation
from pffnet_d2.inference import caps
from pffnet_d2.inference.export import Exporter, Part
from pffnet_d2.inference.large_image import LargeImage, opened
from pffnet_d2.inference.modality import lost_contrast
from pffnet_d2.inference.options import ImageOptions
from pffnet_d2.inference.seams import seam_of
from pffnet_d2.inference.sources import label_of
from pffnet_d2.inference.stitch import FinishedObjects, View, stitch
from pffnet_d2.inference.tile_folder import Findings, TileFolder
from pffnet_d2.inference.tiling import Box, Tiles, overlap_for
from pffnet_d2.inference.tissue import background_tiles
from pffnet_d2.parallel import ranks

# For overlap "auto", objects are measured in the tiles of highest contrast among _CANDIDATES tiles: one tile for every
# 32 tiles of the image, at most _MOST_PROBES.
_CANDIDATES, _TILES_A_PROBE, _MOST_PROBES = 16, 32, 4
# Corners of this side in pixels, from _CANDIDATES tiles, tell whether the model was made for the image.
_CORNER = 256

T = TypeVar("T")

Progress = Callable[[int, int], object]
"""Called with the number of tiles that this process has predicted and the number that it predicts in all: before each
of the tiles that are measured for overlap "auto", before the first tile, and after each batch. An exception that it
raises ends the run; tiles that are predicted already are kept, as after an interruption."""


@dataclass(frozen=True)
class TileModel:
    """The model as :func:`predict_large` needs it."""

    predict: Callable[[list[NDArray[np.uint8]]], Sequence[Findings]]  # (h, w, 3) RGB images
    identity: str  # differs between models whose predictions may differ
    stride: int = 1  # sides of tiles are multiples of it, so that tiles are not padded
    normalisation: Normalisation = AUTO
    doubt: Callable[[NDArray[np.uint8]], str] = lambda rgb: ""  # as ``Predictor.doubt``
    resized: Callable[[int, int], str] = lambda height, width: ""  # a warning if the model resizes such tiles
    matched: str = ""  # how images are resized to the pixel size of training; empty if they are not
    precision: str = ""  # in which the network computes; empty if the model does not say
    # The model for an image, given the size of its pixels, and the side of tiles (``Predictor.for_pixels``).
    for_pixels: Callable[[tuple[float, float] | None, int], TileModel] | None = None


@dataclass(frozen=True)
class LargePrediction:
    """The result for a large image. The label map is in one of ``files``."""

    shape: tuple[int, int]  # H, W
    objects: int
    files: dict[str, Path]  # by format
    tiles: int
    predicted: int  # number of tiles predicted by this run; the others come from an interrupted run
    tile: int
    overlap: int
    normalisation: Normalisation
    dtype: str  # of the pixels
    larger: list[tuple[int, Box]] = field(default_factory=list)  # id and box of objects larger than the overlap
    capped: list[Box] = field(default_factory=list)  # tiles in which a cap on proposals or detections was reached
    caps: tuple[str, ...] = ()  # the caps that were reached, as KEY VALUE of the config
    doubt: str = ""  # why the model may not suit the image, and what to do
    resized: str = ""  # a warning that tiles are resized, with what to do
    skipped: int = 0  # number of tiles of background that were not predicted
    matched: str = ""  # as in ``TileModel``
    precision: str = ""  # likewise

    def warnings(self) -> list[str]:
        """Warnings for the user, one line each: the doubt and ``warnings_of_tiles``."""
        return [*([self.doubt] if self.doubt else []), *self.warnings_of_tiles()]

    def warnings_of_tiles(self) -> list[str]:
        """Warnings for the user: resized tiles, objects that seams may have cut, tiles where objects may be missing."""
        lines = [self.resized] if self.resized else []
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


def predict_large(
    model: TileModel,
    image: Sliceable | str | os.PathLike[str],
    out: Path,
    name: str,
    options: ImageOptions,
    progress: Progress = lambda done, total: None,
) -> LargePrediction:
    """Predict an image in tiles and write the results. Every process of a distributed run must call it.

    Args:
        model: predicts tiles.
        image: a file, or an object (H, W) or (H, W, C) that slices like an array.
        out: folder for the results.
        name: of the results, a path below ``out`` without a file extension.
        options: how to read, predict and write; ``tile`` must be set.
        progress: see ``Progress``.

    Raises:
        InputError: the image cannot be read or has values that are not finite; tiles do not fit the network or each
            other; the results cannot be written; the folder of tiles belongs to another image, model or options.
    """
    assert options.tile is not None
    for collection in options.exporters.collections:
        raise InputError(f"format {collection.name} is one file of several images; use `pffnet predict`")
    check_tiles(options.tile, options.overlap, model.stride)
    with opened(image, options, model.normalisation) as large_image:
        return Run(model, large_image, TileFolder(out, name), options, progress).go()


def check_tiles(tile: int, overlap: int | str, stride: int) -> None:
    """Raises InputError if the tile size does not suit the network, or the overlap does not suit the tile size."""
    if tile < stride or tile % stride:
        raise InputError(
            f"tiles of {tile} pixels: the network works in steps of {stride} pixels; use a multiple of that, "
            f"such as {max(round(tile / stride), 8) * stride}"
        )
    if isinstance(overlap, int):
        Tiles((1, 1), tile, overlap)


@dataclass
class Counted:
    """Counts made while tiles are stitched; see ``LargePrediction``."""

    objects: int = 0
    larger: list[tuple[int, Box]] = field(default_factory=list)
    capped: list[Box] = field(default_factory=list)
    caps: set[str] = field(default_factory=set)

    def add(self, finished: FinishedObjects, tiles: Tiles) -> None:
        self.objects += len(finished.boxes)
        self.add_larger(finished.first, finished.boxes, tiles)

    def add_larger(self, first: int, boxes: NDArray[np.int64], tiles: Tiles) -> None:
        """Notes those of the objects ``first``, ``first`` + 1, ... that are larger than the overlap."""
        for i in np.flatnonzero(larger_than_overlap(boxes, tiles)).tolist():
            y0, x0, y1, x1 = boxes[i].tolist()
            self.larger.append((first + i, (y0, x0, y1, x1)))


def larger_than_overlap(boxes: NDArray[np.integer], tiles: Tiles) -> NDArray[np.bool_]:
    """Which of the boxes (n, 4) seams may cut."""
    # An image with a single row or column of tiles is cut in one direction only, or not at all.
    seams = np.array([len(tiles.rows) > 1, len(tiles.columns) > 1])
    sides: NDArray[np.integer] = (boxes[:, 2:] - boxes[:, :2]) * seams
    return np.asarray((sides > tiles.overlap).any(axis=1))


class Run:
    """The prediction of one image, in one of the processes."""

    def __init__(
        self,
        model: TileModel,
        image: LargeImage,
        folder: TileFolder,
        options: ImageOptions,
        progress: Progress = lambda done, total: None,
    ) -> None:
        assert options.tile is not None
        self.image, self.folder, self.options = image, folder, options
        self.progress = progress
        self.tile = options.tile
        self.model = _for_pixels(model, image, options.scale_of(image.source.pixel_size), options.tile)
        self.exporters = options.exporters.files
        self.exported = image.exported(options, label_of(image.path, folder.name, options))
        self.keeps_seams = False  # for results that many processes write
        for exporter in self.exporters:
            exporter.check(image.name, self.exported)

    def go(self) -> LargePrediction:
        first = ranks.rank() == 0
        with ExitStack() as held:

            def begin() -> None:
                held.enter_context(self.folder.alone())
                self.begin()

            # The first process chooses limits and overlap. The others read them from the manifest.
            _together(begin if first else lambda: None)
            _together(self.read_decisions)
            predicted = sum(_together(self._predict_share))
            results = _together(lambda: self.finish(predicted) if first else None)
        result = results[0]
        assert result is not None
        return result

    # --- Choices made once per image ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Chooses the settings that all tiles share and writes them to the manifest, unless the run resumes."""
        asked = self._asked()
        if self.folder.resumes(asked):
            return
        try:
            self.folder.check_results(self.exporters)
            self.image.limits = self.image.measured_limits()
            overlap = self._auto_overlap() if self.options.overlap == "auto" else int(self.options.overlap)
            tiles = Tiles(self.image.shape, self.tile, overlap, self.model.stride)
            doubt = self._doubt(tiles)
            skipped = background_tiles(self.image.rgb, tiles) if self.options.tissue else []
        except BaseException:
            self.folder.remove_empty()
            raise
        decided = {"overlap": overlap, "limits": self.image.limits, "doubt": doubt, "skipped": skipped}
        self.folder.write_manifest(asked, decided)

    def _asked(self) -> dict[str, Any]:
        """Everything that the contents of tiles depend on, to tell runs apart. Error messages name the keys."""
        plane, channels = self.options.plane, self.options.channels
        return {
            "image": self.image.identity(),
            "plane": {axis: int(i) for axis, i in plane.items()} if isinstance(plane, Mapping) else plane,
            "channels": None if channels is None else [c if isinstance(c, str) else int(c) for c in channels],
            "scene": self.options.scene,
            "project": self.options.project,
            "level": self.options.level,
            "release": VERSION,
            "model": self.model.identity,
            "tile": self.tile,
            "overlap": self.options.overlap,
            "normalisation": self.image.normalisation.info(),
            "batch": self.options.batch,
            "tissue": self.options.tissue,
        }

    def _auto_overlap(self) -> int:
        """The overlap in pixels, from the objects in a few tiles of high contrast."""
        tiles = Tiles(self.image.shape, self.tile, max(1, self.tile // 8), self.model.stride).boxes()
        if len(tiles) == 1:
            return max(1, self.tile // 8)
        spread = _spread(tiles)
        images = {box: self.image.rgb(box) for box in spread}
        best = sorted(spread, key=lambda box: (-float(images[box].std()), box))
        sides: list[int] = []
        for box in best[: min(max(len(tiles) // _TILES_A_PROBE, 1), _MOST_PROBES)]:
            self.progress(0, len(tiles))
            (found,) = self.model.predict([images[box]])
            sides += _whole_sides(found.label_map)
        return overlap_for(sides, self.tile)

    def _doubt(self, tiles: Tiles) -> str:
        """Why the results may be unreliable, judged by corners of tiles from all over the image; "" if they are not."""
        corners = [(y0, x0, min(y1, y0 + _CORNER), min(x1, x0 + _CORNER)) for y0, x0, y1, x1 in _spread(tiles.boxes())]
        rgb = np.concatenate([self.image.rgb(box).reshape(-1, 1, 3) for box in corners])
        if rgb.min() == rgb.max():
            values = np.concatenate([self.image.values(box).ravel() for box in corners])
            return lost_contrast(values, rgb, self.image.normalisation) or self.model.doubt(rgb)
        return self.model.doubt(rgb)

    def read_decisions(self) -> None:
        decided = self.folder.decided()
        self.image.limits = tuple(decided["limits"]) if decided["limits"] else None
        self.tiles = Tiles(self.image.shape, self.tile, decided["overlap"], self.model.stride)
        self.boxes = self.tiles.boxes()
        # Manifests of earlier releases lack these.
        self.doubt: str = decided.get("doubt", "")
        self.skipped = set(decided.get("skipped", ()))

    # --- Tiles -------------------------------------------------------------------------------------------------------

    def _predict_share(self) -> int:
        """Predicts the missing tiles of this process. Returns their number. Batches depend on the options alone."""
        step, rank = self.options.batch, ranks.rank()
        batches = [range(i, min(i + step, len(self.boxes))) for i in range(0, len(self.boxes), step)]
        share = batches[rank :: ranks.count()]
        missing = [batch for batch in share if not self.kept(batch)]
        total = sum(len(self._shown(batch)) for batch in missing)
        # disable=None: only where stderr is a terminal
        done = 0
        with tqdm(total=total, unit="tile", disable=None if rank == 0 else True, dynamic_ncols=True) as bar:
            self.progress(done, total)
            for batch in missing:
                predicted = self.predict_batch(batch)
                bar.update(predicted)
                done += predicted
                self.progress(done, total)
        return total

    def predict_batch(self, batch: range) -> int:
        """Predicts a batch of tiles and keeps what is found. Returns the number of tiles without those skipped."""
        shown = self._shown(batch)
        predictions = self.model.predict([self.image.rgb(self.boxes[i]) for i in shown]) if shown else []
        for i, found in zip(shown, predictions, strict=True):
            seam = seam_of(View(found.label_map, found.scores), self.tiles, i) if self.keeps_seams else None
            self.folder.keep(i, found, seam)
        return len(shown)

    def kept(self, batch: range) -> bool:
        """Whether all tiles of a batch are predicted, or skipped."""
        return all(self.folder.has(i) for i in self._shown(batch))

    def _shown(self, batch: range) -> list[int]:
        return [i for i in batch if i not in self.skipped]

    # --- Results -----------------------------------------------------------------------------------------------------

    def finish(self, predicted: int) -> LargePrediction:
        """Writes the results. All formats appear, or none does. Then removes the tiles."""
        return self.publish(predicted, self.write(self.exporters))

    def publish(self, predicted: int, counted: Counted) -> LargePrediction:
        """Moves the results to their places, and removes the tiles."""
        made = self.folder.results(self.exporters)
        if self.image.changed():
            self.folder.remove()
            raise InputError(f"{self.image.name}: was changed while it was predicted; predict it again")
        return LargePrediction(
            self.image.shape,
            counted.objects,
            self.folder.publish(made),
            len(self.boxes),
            predicted,
            self.tiles.tile,
            self.tiles.overlap,
            self.image.normalisation,
            str(self.image.dtype),
            counted.larger,
            counted.capped,
            tuple(sorted(counted.caps)),
            self.doubt,
            self.model.resized(self.boxes[0][2], self.boxes[0][3]),
            len(self.skipped),
            self.model.matched,
            self.model.precision,
        )

    def nothing(self, index: int) -> View:
        """What is found in a tile that is skipped."""
        y0, x0, y1, x1 = self.boxes[index]
        return View(np.zeros((y1 - y0, x1 - x0), np.uint16))

    def write(self, exporters: Sequence[Exporter]) -> Counted:
        """Stitches the tiles and writes the results of some formats."""
        made, counted = self.folder.results(exporters), Counted()

        def view(index: int) -> View:
            if index in self.skipped:
                return self.nothing(index)
            found, reached = self.folder.kept(index)
            if reached:
                counted.capped.append(self.boxes[index])
                counted.caps.update(reached)
            return found

        with ExitStack() as files:
            begun = [(e.by_rows, files.enter_context(e.begin(made[e.name], self.exported))) for e in exporters]
            adds_rows = [add for by_rows, add in begun if by_rows]
            adds_objects = [add for by_rows, add in begun if not by_rows]

            def emit(finished: FinishedObjects) -> None:
                counted.add(finished, self.tiles)
                for add in adds_objects:
                    add(Part(finished.labels, finished.scores, finished.first, finished.origin))

            top = 0
            for rows in stitch(self.tiles, view, emit):
                for add in adds_rows:
                    add(Part(rows, origin=(top, 0)))
                top += len(rows)
        return counted


def _for_pixels(model: TileModel, image: LargeImage, size: tuple[float, float] | None, tile: int) -> TileModel:
    """The model for the pixels of an image. Raises InputError naming it."""
    try:
        return model.for_pixels(size, tile) if model.for_pixels else model
    except InputError as error:
        raise InputError(f"{image.name}: {error}") from error


def _spread(tiles: list[Box]) -> list[Box]:
    """_CANDIDATES of the tiles, spread over the image; all of them if there are fewer."""
    return [tiles[i] for i in sorted({len(tiles) * k // _CANDIDATES for k in range(_CANDIDATES)})]


def _whole_sides(label_map: NDArray[np.int32]) -> list[int]:
    """The longer sides of the objects that do not touch the border of the tile, in pixels."""
    height, width = label_map.shape
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in filter(None, find_objects(label_map))]
    return [max(y1 - y0, x1 - x0) for y0, x0, y1, x1 in boxes if y0 and x0 and y1 < height and x1 < width]


def _together(step: Callable[[], T]) -> list[T]:
    """Returns the results of all processes. An InputError in one is raised in all, so that none waits forever."""
    result, error = None, ""
    try:
        result = step()
    except InputError as mistake:
        error = str(mistake)
    gathered = ranks.all_gather((result, error))
    for _, said in gathered:
        if said:
            raise InputError(said)
    return [one for one, _ in gathered]
