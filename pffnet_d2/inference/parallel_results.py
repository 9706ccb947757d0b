"""Writes the results of a large image by many processes: chunks of the label map, parts of the table.

All that the processes share lies in the folder of tiles: the tiles, the decisions at their seams (``seams``), groups of
finished objects, and the results until they are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pffnet_d2.atomic_write import whole_file, write_text
from pffnet_d2.inference.export import Part, ome_zarr, parquet
from pffnet_d2.inference.large import Counted, Run, larger_than_overlap
from pffnet_d2.inference.seams import Decisions, Group, Seam, decide, paint, seam_of
from pffnet_d2.inference.stitch import View
from pffnet_d2.inference.tiling import Box

# Chunks along the sides of the block that one task writes.
_CHUNKS = 4


@dataclass(frozen=True)
class Work:
    """What one task writes: chunks of a level of the label map, or a part of the table."""

    kind: str  # "level" or "part"
    number: int  # of the level or part
    boxes: tuple[Box, ...] = ()  # of chunks; together they are a rectangle


class ParallelResults:
    """The results of a run whose tiles are all kept."""

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.folder
        self.made = run.folder.results(run.exporters)

    # --- One process decides -----------------------------------------------------------------------------------------

    def decide(self) -> list[list[Work]]:
        """Decides about all objects, unless an earlier run did. Returns the works, in lists that follow each other."""
        if not self._decisions.exists():
            self._begin_results()
            groups = _Groups(self._group)
            found = decide(self.run.tiles, self._seam, groups.add)
            parts = groups.end()
            _save(self._decisions, ids=found.ids, starts=found.starts, parts=np.array(parts))
        with np.load(self._decisions) as kept:
            parts = int(kept["parts"])
        stages: list[list[Work]] = []
        if "ome-zarr" in self.made:
            pyramid = ome_zarr.LabelPyramid(self.made["ome-zarr"])
            stages = [[Work("level", n, b) for b in _blocks(pyramid.chunks(n))] for n in range(len(pyramid.levels))]
        if "parquet" in self.made:
            stages[:1] = [[*(stages[0] if stages else []), *(Work("part", number) for number in range(parts))]]
        return stages

    def _begin_results(self) -> None:
        if "ome-zarr" in self.made:
            ome_zarr.create(self.made["ome-zarr"], self.run.image.shape, self.run.exported.pixel_size)
        if "parquet" in self.made:
            self.made["parquet"].mkdir(exist_ok=True)

    def _seam(self, index: int) -> Seam:
        kept = None if index in self.run.skipped else self.folder.kept_seam(index)
        return kept or seam_of(self._view(index), self.run.tiles, index)

    # --- Many write --------------------------------------------------------------------------------------------------

    def write(self, work: Work) -> None:
        """Writes a piece of the results, unless an earlier run did."""
        corner = "-".join(map(str, work.boxes[0][:2])) if work.boxes else ""
        done = self.folder.path / f"{work.kind}-{work.number}-{corner}.done"
        if done.exists():
            return
        if work.kind == "part":
            parts = (self._part(group) for group in _read_groups(self._group(work.number)))
            parquet.write_part(parquet.part_file(self.made["parquet"], work.number), self.run.exported, parts)
        else:
            pyramid = ome_zarr.LabelPyramid(self.made["ome-zarr"])
            if work.number:
                for box in work.boxes:
                    pyramid.reduce(work.number, box)
            else:
                box = (*work.boxes[0][:2], *work.boxes[-1][2:])
                pyramid.write(box, self._painted(box))
        write_text(done, "")

    def counted(self) -> Counted:
        """The counts of ``Run.write``, without stitching. Only objects that may exceed the overlap are drawn."""
        counted = Counted()
        tiles = self.run.tiles
        with np.load(self._decisions) as kept:
            parts = int(kept["parts"])
        for group in (group for number in range(parts) for group in _read_groups(self._group(number))):
            counted.objects += group.count
            if larger_than_overlap(group.boxes, tiles).any():
                labels = self._part(group).labels
                boxes = np.array([[y.start, x.start, y.stop, x.stop] for y, x in find_objects(labels)])
                counted.add_larger(group.first, boxes + np.tile(group.window[:2], 2), tiles)
        for index in (i for i in range(len(self.run.boxes)) if i not in self.run.skipped):
            reached = self.folder.kept_caps(index)
            if reached:
                counted.capped.append(self.run.boxes[index])
                counted.caps.update(reached)
        return counted

    def _part(self, group: Group) -> Part:
        """A group with its pixels, as ``stitch.FinishedObjects``."""
        painted = self._painted(group.window)
        own = (painted >= group.first) & (painted < group.first + group.count)
        labels = np.where(own, painted - np.int32(group.first - 1), 0).astype(np.int32)
        return Part(labels, group.scores, group.first, group.window[:2])

    def _painted(self, box: Box) -> NDArray[np.int32]:
        ids = _read_decisions(self._decisions, self._decisions.stat().st_mtime_ns).of
        return paint(box, self.run.boxes, lambda index: self._view(index).labels, ids)

    def _view(self, index: int) -> View:
        return self.run.nothing(index) if index in self.run.skipped else self.folder.kept(index)[0]

    # --- Files -------------------------------------------------------------------------------------------------------

    @property
    def _decisions(self) -> Path:
        return self.folder.path / "decisions.npz"

    def _group(self, number: int) -> Path:
        return self.folder.path / f"group-{number:06d}.npz"


class _Groups:
    """Writes groups to files: as many to each as make a part of the table."""

    def __init__(self, file: Callable[[int], Path]) -> None:
        self._file, self._waiting, self._written = file, list[Group](), 0

    def add(self, group: Group) -> None:
        self._waiting.append(group)
        if sum(each.count for each in self._waiting) >= parquet.PART:
            self._write()

    def end(self) -> int:
        """Writes the rest. Returns the number of files, at least 1."""
        if self._waiting or not self._written:
            self._write()
        return self._written

    def _write(self) -> None:
        arrays: dict[str, Any] = {"first": [], "window": []}
        for i, group in enumerate(self._waiting):
            arrays["first"].append(group.first)
            arrays["window"].append(group.window)
            arrays[f"boxes{i}"] = group.boxes
            arrays |= {f"score{i}_{name}": column for name, column in group.scores.items()}
        _save(self._file(self._written), **arrays)
        self._waiting, self._written = [], self._written + 1


def _read_groups(path: Path) -> Iterable[Group]:
    with np.load(path) as kept:
        for i, (first, window) in enumerate(zip(kept["first"].tolist(), kept["window"].tolist(), strict=True)):
            prefix = f"score{i}_"
            scores = {key.removeprefix(prefix): kept[key] for key in kept.files if key.startswith(prefix)}
            yield Group(first, tuple(window), scores, kept[f"boxes{i}"])


@lru_cache(maxsize=1)
def _read_decisions(path: Path, modified: int) -> Decisions:
    with np.load(path) as kept:
        return Decisions(kept["ids"], kept["starts"])


def _save(path: Path, **arrays: Any) -> None:
    with whole_file(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _blocks(chunks: list[Box]) -> list[tuple[Box, ...]]:
    """The chunks of a level, in squares of at most _CHUNKS x _CHUNKS."""
    side = _CHUNKS * ome_zarr.CHUNK
    blocks: dict[tuple[int, int], list[Box]] = {}
    for box in chunks:
        blocks.setdefault((box[0] // side, box[1] // side), []).append(box)
    return [tuple(block) for block in blocks.values()]
