"""Stitches tiles in three steps, of which only the shortest is not parallel. The result equals that of ``stitch``.

1. :func:`seam_of` takes from each tile what decisions need: the box and area of each object, and the labels along the
   borders where other tiles show the same pixels. Any process may do it for any tile.
2. :func:`decide` goes through the seams in the order of tiles, decides as ``stitch`` does (it shares the code,
   ``stitch.Objects``) and gives the objects their ids. It never sees the inside of a tile: it holds the borders of one
   row of tiles, and 4 bytes for each object and each label.
3. :func:`paint` makes any window of the label map from the tiles that show it: each pixel belongs to the first of them,
   in the order of tiles, that claims it. Any process may do it for any window.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.inference.stitch import LEFT, Labels, Measured, Objects, View, around, common, measured
from pffnet_d2.inference.tiling import Box, Tiles


@dataclass(frozen=True)
class Seam:
    """What decisions need of one tile (h, w) with labels 1..n."""

    boxes: NDArray[np.int64]  # (n, 4) y0, x0, y1, x1 in the image
    area: NDArray[np.int64]  # (n,) pixels
    cut: NDArray[np.bool_]  # (n,) whether a border of the tile inside the image cuts it
    scores: Mapping[str, NDArray[np.floating]]  # columns of (n,)
    above: Labels  # (a, w) the rows that earlier rows of tiles show, too
    left: Labels  # (h, l) the columns that earlier columns show, too
    below: Labels  # (b, w) the rows that later rows of tiles show, too
    right: Labels  # (h, r) the columns that later columns show, too


@dataclass(frozen=True)
class Group:
    """Objects with consecutive ids that one tile finished, as ``stitch.FinishedObjects``, without their pixels."""

    first: int  # id of the first object
    window: Box  # covers all of them
    scores: dict[str, NDArray[np.float64]]  # columns of (k,)
    boxes: NDArray[np.int64]  # (k, 4) y0, x0, y1, x1 in the image, before tiles that come first took pixels

    @property
    def count(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Decisions:
    """The ids of all labels, in the order of tiles: those of tile i are ``ids[starts[i]:starts[i + 1]]``."""

    ids: NDArray[np.int32]  # of label 0, which is 0, then of labels 1..n; 0 where a label is no object of its own
    starts: NDArray[np.int64]

    def of(self, tile: int) -> NDArray[np.int32]:
        return self.ids[self.starts[tile] : self.starts[tile + 1]]


def seam_of(view: View, tiles: Tiles, index: int) -> Seam:
    """What decisions need of the tile with an index."""
    row, column = divmod(index, len(tiles.columns))
    (top, bottom), (left, right) = tiles.rows[row], tiles.columns[column]
    labels = view.labels
    found = measured(labels, np.zeros_like(labels, dtype=np.int32), (top, left, bottom, right), tiles.shape)
    a, b = _shared(tiles.rows, row)
    c, d = _shared(tiles.columns, column)
    strips = (labels[:a], labels[:, :c], labels[b:], labels[:, d:])
    return Seam(found.boxes, found.area, found.cut, view.scores, *map(np.ascontiguousarray, strips))


def _shared(spans: Sequence[tuple[int, int]], i: int) -> tuple[int, int]:
    """Where, in a span, the part that earlier spans share ends, and where the part that later spans share begins."""
    start, stop = spans[i]
    before = spans[i - 1][1] - start if i else 0
    after = spans[i + 1][0] - start if i + 1 < len(spans) else stop - start
    return max(before, 0), after


def decide(tiles: Tiles, seam: Callable[[int], Seam], emit: Callable[[Group], None]) -> Decisions:
    """Decides what the labels of all tiles become.

    Args:
        tiles: the tiles of the image.
        seam: returns the seam of the tile with an index; called once per tile, in order.
        emit: called after each tile that finishes objects, with these objects.

    Raises:
        InputError: more than 2,147,483,647 objects.
    """
    objects = _SeamObjects(tiles)
    # Keys are -2, -3, ...: the id of key k is id_of[-2 - k].
    id_of = array("i")
    keys: list[NDArray[np.int32]] = []
    for index in range(len(tiles.rows) * len(tiles.columns)):
        row, column = divmod(index, len(tiles.columns))
        keys.append(objects.add(row, column, seam(index)))
        id_of.extend(0 for _ in range(objects.placed - len(id_of)))
        before = objects.finished
        done = objects.take_finished(row, column)
        for number, key in enumerate(done, before + 1):
            id_of[-2 - key] = number
        if done:
            (y0, x0), (y1, x1) = around(done.values())
            scores = np.array([one.scores for one in done.values()], dtype=np.float64).reshape(len(done), -1)
            columns = {name: scores[:, i] for i, name in enumerate(objects.columns_of_scores)}
            boxes = np.array([one.box for one in done.values()], dtype=np.int64)
            emit(Group(before + 1, (y0, x0, y1, x1), columns, boxes))
    starts = np.cumsum([0, *map(len, keys)], dtype=np.int64)
    ids = np.zeros(starts[-1], np.int32)
    numbers = np.frombuffer(id_of, np.int32) if id_of else np.zeros(0, np.int32)
    for tile, of_labels in enumerate(keys):
        roots = objects.roots(of_labels)
        placed = roots < LEFT
        ids[starts[tile] : starts[tile + 1]][placed] = numbers[-2 - roots[placed]]
    return Decisions(ids, starts)


def paint(
    box: Box,
    boxes: Sequence[Box],
    labels: Callable[[int], Labels],
    ids: Callable[[int], NDArray[np.int32]],
) -> NDArray[np.int32]:
    """The label map inside ``box``.

    Args:
        box: y0, x0, y1, x1 in the image.
        boxes: of all tiles.
        labels: returns the labels of the tile with an index; called for the tiles that show a part of the window.
        ids: returns the ids of these labels (``Decisions.of``).
    """
    painted = np.zeros((box[2] - box[0], box[3] - box[1]), np.int32)
    for index, tile in enumerate(boxes):
        shared = common(box, tile)
        own = ids(index) if shared is not None else None
        if shared is None or own is None or not own.any():
            continue
        part = own[_cut(labels(index), shared, tile)]
        free = _cut(painted, shared, box)
        np.copyto(free, part, where=free == 0)
    return painted


def _cut(labels: Labels, shared: Box, tile: Box) -> Labels:
    """The part of an array that lies at ``tile``."""
    return labels[shared[0] - tile[0] : shared[2] - tile[0], shared[1] - tile[1] : shared[3] - tile[1]]


@dataclass(frozen=True)
class _Strip:
    """A border of a tile that later tiles show, too."""

    box: Box
    labels: Labels
    keys: NDArray[np.int32]


class _SeamObjects(Objects):
    """Takes the canvas at a tile from the borders of the tiles before it."""

    def __init__(self, tiles: Tiles) -> None:
        super().__init__(tiles)
        self.columns_of_scores: list[str] = []
        self._merged: dict[int, int] = {}  # keys of objects that became parts of others
        self._above: list[_Strip] = []  # of earlier rows of tiles
        self._own: list[_Strip] = []  # of this row: what later rows show
        self._beside: list[_Strip] = []  # of this row: what later columns show
        self._tile: Box = (0, 0, 0, 0)
        self._canvas = np.zeros((0, 0), np.int32)  # at the current tile, where earlier tiles show it

    def window(self, box: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        y0, x0 = self._tile[:2]
        return self._canvas[box[0] - y0 : box[2] - y0, box[1] - x0 : box[3] - x0]

    def relabel(self, box: Box, key: int, first: int) -> None:
        self._merged[key] = first

    def roots(self, keys: NDArray[np.int32]) -> NDArray[np.int32]:
        """The keys, with those of merged objects replaced by the key of the whole."""
        merged = [i for i, key in enumerate(keys.tolist()) if key in self._merged] if self._merged else []
        if not merged:
            return keys
        found = keys.copy()
        for i in merged:
            while int(found[i]) in self._merged:
                found[i] = self._merged[int(found[i])]
        return found

    def add(self, row: int, column: int, seam: Seam) -> NDArray[np.int32]:
        """Places the objects of a tile. Returns the keys of its labels 0..n."""
        tile = self._tile = self.tile(row, column)
        height, width = tile[2] - tile[0], tile[3] - tile[1]
        if column == 0:
            self._above = [strip for strip in (*self._above, *self._own) if strip.box[2] > tile[0]]
            self._own, self._beside = [], []
        self._beside = [strip for strip in self._beside if strip.box[3] > tile[1]]
        if not len(seam.boxes):
            return np.zeros(1, np.int32)
        self._canvas = np.zeros((height, width), np.int32)
        for strip in (*self._above, *self._beside):
            self._show(strip)
        labels = np.zeros((height, width), seam.above.dtype)
        labels[: len(seam.above)], labels[:, : seam.left.shape[1]] = seam.above, seam.left
        keys = self.keys(row, column, labels, self._compared(seam, labels), seam.scores)
        self.columns_of_scores = list(seam.scores)
        self._own.append(_Strip((tile[2] - len(seam.below), *tile[1:]), seam.below, keys))
        right = (tile[0], tile[3] - seam.right.shape[1], *tile[2:])
        self._beside.append(_Strip(right, seam.right, keys))
        return keys

    def _show(self, strip: _Strip) -> None:
        """Puts a border of an earlier tile on the canvas."""
        shared = common(strip.box, self._tile)
        if shared is None:
            return
        placed = self.roots(strip.keys)[_cut(strip.labels, shared, strip.box)]
        window = self.window(shared)
        np.copyto(window, placed, where=(placed != 0) & ((window == 0) | (window == LEFT)))

    def _compared(self, seam: Seam, labels: Labels) -> Measured:
        """The labels of a tile, compared with the canvas."""
        n, a, c = len(seam.boxes), len(seam.above), seam.left.shape[1]
        own, under = (np.concatenate([part[:a].ravel(), part[a:, :c].ravel()]) for part in (labels, self._canvas))
        left = np.bincount(own[under == LEFT], minlength=n + 1)[1:]
        covered = np.bincount(own[under < LEFT], minlength=n + 1)[1:]
        return Measured(seam.boxes, seam.area, covered, left, seam.cut)
