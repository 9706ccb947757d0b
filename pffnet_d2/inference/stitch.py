"""Stitches the label maps of the overlapping tiles of a large image into one label map.

Each tile has a core; the cores divide the image along the middles of the overlaps. An object belongs to the tile whose
core contains the centre of its bounding box. This rule is sufficient if all tiles show an object alike: the tile that
owns an object no larger than the overlap shows all of it, and in any tile whose border cuts the object, its centre lies
outside the core.

However, a network detects the same object slightly differently in two tiles, so both tiles may claim it, or each may
leave it to the other. Tiles are therefore placed in row order on one canvas, which also stores the pixels of objects
that earlier tiles left to later ones:

- an object in the core of the current tile is placed unless objects placed before cover more than half of it;
- an object in the core of an earlier tile is placed if no border cuts it and earlier tiles left more than half of its
  pixels to later ones (each tile saw it in the core of the other);
- an object in the core of a later tile is left to that tile.

A placed object gets those of its pixels that are still free. An object in the core that a border cuts is larger than
the overlap. If an object of a later tile agrees with it in the area that both tiles show (intersection over union above
one half), the later object adds its pixels to it; if it agrees with two such objects, it merges them.

No decision depends on tiles that come later, so finished objects and rows leave the canvas as soon as no later tile can
touch them. The canvas holds one row of tiles and the objects that extend beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pffnet_d2.errors import InputError
from pffnet_d2.inference.tiling import Box, Tiles

Labels = NDArray[np.signedinteger | np.unsignedinteger]

# The largest id of the label map. The canvas stores finished objects as 1..LIMIT.
LIMIT = 2**31 - 1
# The canvas stores pixels of objects that are left to a later tile as LEFT, and unfinished objects as -2 and below.
LEFT = -1
# Number of rows that leave the canvas together.
_SLAB = 256


@dataclass(frozen=True)
class View:
    """What was found in one tile."""

    labels: Labels  # (h, w), 0 background, ids 1..n
    scores: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)  # columns of (n,)


@dataclass(frozen=True)
class FinishedObjects:
    """Objects that no later tile can touch. Their ids are consecutive, within one of these and from one to the next."""

    labels: NDArray[np.int32]  # (h, w), 0 background and other objects, 1..k
    first: int  # the id of label 1
    origin: tuple[int, int]  # y, x of the first pixel of ``labels`` in the image
    scores: dict[str, NDArray[np.float64]]  # columns of (k,)
    boxes: NDArray[np.int64]  # (k, 4) y0, x0, y1, x1 in the image


def stitch(
    tiles: Tiles, view: Callable[[int], View], emit: Callable[[FinishedObjects], None] = lambda finished: None
) -> Iterator[NDArray[np.int32]]:
    """Stitches the label maps of the tiles of an image. Yields its rows from the top down, at most 256 at a time.

    Args:
        tiles: the tiles of the image.
        view: returns what was found in the tile with an index; called once per tile, in order.
        emit: called with the finished objects after each tile that finishes some; all objects of a row are emitted
            before the row is yielded.

    Yields:
        (rows, W) int32: 0 background, ids 1..n over the whole image, in the order of the tiles that own the objects.

    Raises:
        InputError: more than 2,147,483,647 objects.
    """
    canvas = _Canvas(tiles)
    for row, (_, stop) in enumerate(tiles.rows):
        canvas.extend(stop)
        for column in range(len(canvas.columns)):
            canvas.compose(row, column, view(row * len(canvas.columns) + column))
            finished = canvas.finish(row, column)
            if finished:
                emit(finished)
        yield from canvas.leave(row)


@dataclass
class _Object:
    """An object on the canvas that later tiles may still touch."""

    box: Box
    scores: list[float]
    seen: list[Box] = field(default_factory=list)  # the tiles that show parts of it, if a border cuts it


@dataclass(frozen=True)
class Measured:
    """The labels 1..n of a tile, compared with the canvas at the same place."""

    boxes: NDArray[np.int64]  # (n, 4) in the image
    area: NDArray[np.int64]  # (n,) pixels
    covered: NDArray[np.int64]  # of these, pixels that other objects occupy
    left: NDArray[np.int64]  # of these, pixels that earlier tiles left to later ones
    cut: NDArray[np.bool_]  # (n,) whether a border of the tile inside the image cuts it


def measured(labels: Labels, canvas: NDArray[np.int32], tile: Box, shape: tuple[int, int]) -> Measured:
    """Compares the labels of a tile (h, w), which lies at ``tile`` in an image of ``shape``, with the canvas there."""
    nothing = (slice(0, 0), slice(0, 0))
    slices = [found or nothing for found in find_objects(labels)]
    n = len(slices)
    boxes = np.array([[y.start, x.start, y.stop, x.stop] for y, x in slices], dtype=np.int64).reshape(n, 4)
    inside = labels > 0
    own, under = labels[inside], canvas[inside]
    area = np.bincount(own, minlength=n + 1)[1:]
    free = (under == 0) | (under == LEFT)
    covered = area - np.bincount(own[free], minlength=n + 1)[1:]
    left = np.bincount(own[under == LEFT], minlength=n + 1)[1:]
    cut = np.zeros(n + 1, dtype=bool)
    for side, interior in (
        (labels[0], tile[0] > 0),
        (labels[-1], tile[2] < shape[0]),
        (labels[:, 0], tile[1] > 0),
        (labels[:, -1], tile[3] < shape[1]),
    ):
        if interior:
            cut[side] = True
    return Measured(boxes + np.tile(tile[:2], 2), area, covered, left, cut[1:])


class Objects:
    """The objects that later tiles may still touch, and the rule that decides about those of the next tile."""

    def __init__(self, tiles: Tiles) -> None:
        self.shape, self.rows, self.columns = tiles.shape, tiles.rows, tiles.columns
        # The first rows and columns that the next tiles may change.
        self.next_y = [*(start for start, _ in self.rows[1:]), tiles.shape[0]]
        self.next_x = [*(start for start, _ in self.columns[1:]), tiles.shape[1]]
        # Twice the coordinates at which cores end, which are whole numbers.
        self.cores_y, self.cores_x = _seams(self.rows), _seams(self.columns)
        self.placed = self.finished = 0
        # Unfinished objects by the column of tiles after which they are finished, unless a row further down extends
        # them.
        self.waiting: list[dict[int, _Object]] = [{} for _ in self.columns]

    def window(self, box: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        """The canvas at ``box``, which lies in the current tile or covers an unfinished object."""
        raise NotImplementedError

    def relabel(self, box: Box, key: int, first: int) -> None:
        """An object that lies in ``box`` becomes a part of another one."""
        raise NotImplementedError

    def tile(self, row: int, column: int) -> Box:
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return top, left, bottom, right

    def keys(
        self, row: int, column: int, labels: Labels, found: Measured, scores: Mapping[str, NDArray[np.floating]]
    ) -> NDArray[np.int32]:
        """What the labels 0..n of a tile become on the canvas, by the rule in the module's docstring."""
        tile = self.tile(row, column)
        later = self._later(found.boxes, row, column)
        joined = self._joined(tile, labels)
        wanted = np.where(
            later == 0, 2 * found.covered <= found.area, (later < 0) & ~found.cut & (2 * found.left > found.area)
        )
        key = np.zeros(len(found.boxes) + 1, dtype=np.int32)
        key[1:][(later > 0) & (found.area > 0)] = LEFT
        for i in np.flatnonzero(wanted & (found.area > 0)).tolist():
            if i + 1 not in joined:
                own = [float(values[i]) for values in scores.values()]
                key[i + 1] = self._place(_Object(_box(found.boxes[i]), own, [tile] if found.cut[i] else []))
        for label, keys in joined.items():
            key[label] = self._grow(keys, tile, _box(found.boxes[label - 1]))
        return key

    def take_finished(self, row: int, column: int) -> dict[int, _Object]:
        """Removes the objects that no tile after this one can touch, and returns them in the order in which they were
        placed, which is that of their ids. Raises InputError if these exceed LIMIT."""
        waiting = self.waiting[column]
        done = [key for key, one in waiting.items() if one.box[2] <= self.next_y[row]]
        if self.finished + len(done) > LIMIT:
            raise InputError(f"more than {LIMIT:,} objects, which a label image cannot number; cut the image")
        self.finished += len(done)
        return {key: waiting.pop(key) for key in sorted(done, reverse=True)}

    def _later(self, boxes: NDArray[np.int64], row: int, column: int) -> NDArray[np.int64]:
        """For each object, how many tiles after this one the tile that owns it comes; negative if it comes before."""
        owner_y = np.searchsorted(self.cores_y, boxes[:, 0] + boxes[:, 2], side="right")
        owner_x = np.searchsorted(self.cores_x, boxes[:, 1] + boxes[:, 3], side="right")
        return owner_y * len(self.columns) + owner_x - (row * len(self.columns) + column)

    def _place(self, one: _Object) -> int:
        """Adds a new object. Returns its key on the canvas."""
        self.placed += 1
        key = -1 - self.placed
        self._wait(key, one)
        return key

    def _joined(self, tile: Box, labels: Labels) -> dict[int, set[int]]:
        """The labels of a tile that continue objects cut by a border, each with the keys of these objects."""
        joined: dict[int, set[int]] = {}
        for key, one in ((key, one) for part in self.waiting for key, one in part.items() if one.seen):
            for seen in one.seen:
                shared = common(seen, tile)
                if shared is None or common(shared, one.box) is None:
                    continue
                there = self.window(shared) == key
                here = labels[shared[0] - tile[0] : shared[2] - tile[0], shared[1] - tile[1] : shared[3] - tile[1]]
                counts = np.bincount(here[there])
                counts[:1] = 0
                if not counts.any():
                    continue
                label, both = int(counts.argmax()), int(counts.max())
                if 2 * both > np.count_nonzero(there) + np.count_nonzero(here == label) - both:
                    joined.setdefault(label, set()).add(key)
        # Each object goes to one label only.
        taken: set[int] = set()
        for label, keys in joined.items():
            joined[label] = keys - taken
            taken |= keys
        return {label: keys for label, keys in joined.items() if keys}

    def _grow(self, keys: set[int], tile: Box, box: Box) -> int:
        """Merges cut objects into one that also covers ``box``. Returns its key, which is that of the first object."""
        parts = {key: part.pop(key) for key in keys for part in self.waiting if key in part}
        first = max(parts)
        for key, other in parts.items():
            if key != first:
                self.relabel(other.box, key, first)
        boxes = np.array([box, *(other.box for other in parts.values())])
        whole = _box(np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]))
        seen = [tile, *(place for other in parts.values() for place in other.seen)]
        self._wait(first, _Object(whole, parts[first].scores, seen))
        return first

    def _wait(self, key: int, one: _Object) -> None:
        self.waiting[int(np.searchsorted(self.next_x, one.box[3]))][key] = one


class _Canvas(Objects):
    """The rows that are not finished yet, and their objects."""

    def __init__(self, tiles: Tiles) -> None:
        super().__init__(tiles)
        self.top = self.bottom = 0  # the rows of the image that ``pixels`` holds
        self.pixels = np.zeros((0, tiles.shape[1]), dtype=np.int32)
        self.columns_of_scores: list[str] = []

    def extend(self, stop: int) -> None:
        """Makes room for rows up to ``stop``."""
        held = self.bottom - self.top
        if stop - self.top > len(self.pixels):
            grown = np.zeros((stop - self.top, self.shape[1]), dtype=np.int32)
            grown[:held] = self.pixels[:held]
            self.pixels = grown
        self.pixels[held : stop - self.top] = 0
        self.bottom = stop

    def window(self, box: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        return self.pixels[box[0] - self.top : box[2] - self.top, box[1] : box[3]]

    def relabel(self, box: Box, key: int, first: int) -> None:
        window = self.window(box)
        window[window == key] = first

    def compose(self, row: int, column: int, view: View) -> None:
        """Places the objects of a tile, or leaves them to later tiles."""
        tile = self.tile(row, column)
        labels, window = view.labels, self.window(tile)
        if labels.shape != window.shape:
            raise ValueError(f"the tile {tile} has labels of shape {labels.shape}")
        found = measured(labels, window, tile, self.shape)
        if not len(found.boxes):
            return
        placed = self.keys(row, column, labels, found, view.scores)[labels]
        np.copyto(window, placed, where=(placed != 0) & ((window == 0) | (window == LEFT)))
        self.columns_of_scores = list(view.scores)

    def finish(self, row: int, column: int) -> FinishedObjects | None:
        """Numbers the objects that no tile after this one can touch and returns them; None if there are none."""
        before = self.finished
        done = self.take_finished(row, column)
        if not done:
            return None
        keys = np.array(list(done))
        origin, stop = around(done.values())
        window = self.window((*origin, *stop))
        number = np.zeros(keys[0] - keys[-1] + 2, dtype=np.int32)  # the last entry stands for all other pixels
        number[keys - keys[-1]] = np.arange(1, len(keys) + 1)
        labels = number[np.where((window >= keys[-1]) & (window <= keys[0]), window - keys[-1], len(number) - 1)]
        np.copyto(window, labels + np.int32(before), where=labels > 0)
        boxes = np.array([[y.start, x.start, y.stop, x.stop] for y, x in find_objects(labels)])
        scores = np.array([one.scores for one in done.values()], dtype=np.float64).reshape(len(keys), -1)
        return FinishedObjects(
            labels,
            before + 1,
            origin,
            {name: scores[:, i] for i, name in enumerate(self.columns_of_scores)},
            boxes + np.tile(origin, 2),
        )

    def leave(self, row: int) -> Iterator[NDArray[np.int32]]:
        """Yields the rows that are finished after a row of tiles and removes them from the canvas."""
        held = self.bottom - self.top
        open_ = min((one.box[0] for part in self.waiting for one in part.values()), default=self.next_y[row])
        ready = min(open_, self.next_y[row]) - self.top
        for start in range(0, ready, _SLAB):
            yield np.maximum(self.pixels[start : min(start + _SLAB, ready)], 0)
        # Moved in slabs: source and target overlap, so numpy would make a temporary copy of everything.
        for start in range(ready, held, _SLAB):
            stop = min(start + _SLAB, held)
            self.pixels[start - ready : stop - ready] = self.pixels[start:stop]
        self.top += ready


def around(objects: Iterable[_Object]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The corners y0, x0 and y1, x1 of the window that covers the boxes of objects."""
    boxes = np.array([one.box for one in objects])
    (y0, x0), (y1, x1) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    return (y0, x0), (y1, x1)


def _seams(spans: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Twice the coordinates of the middles of the overlaps between neighbouring tiles."""
    return np.array([spans[i + 1][0] + spans[i][1] for i in range(len(spans) - 1)], dtype=np.int64)


def common(one: Box, other: Box) -> Box | None:
    """What two boxes share; None if that is nothing."""
    box = (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _box(row: NDArray[np.int64]) -> Box:
    y0, x0, y1, x1 = row.tolist()
    return y0, x0, y1, x1
