"""Stitched tiles of a truth are that truth; where tiles disagree; objects larger than the overlap."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.inference import stitch as stitching
from pffnet_d2.inference.stitch import FinishedObjects, View, stitch
from pffnet_d2.inference.tiling import Tiles

Labels = NDArray[np.int32]


def objects(shape: tuple[int, int], largest: int, seed: int, count: int = 150) -> Labels:
    """Connected objects, boxes and corners of boxes, of at most ``largest`` pixels a side; many touch."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.int32)
    for label in range(1, count + 1):
        h, w = np.minimum(rng.integers(1, largest + 1, 2), shape)
        y, x = (int(rng.integers(n - side + 1)) for n, side in zip(shape, (h, w), strict=True))
        place = truth[y : y + h, x : x + w]
        if not place.any():
            place[...] = label
            if rng.random() < 0.5:
                place[: h // 2, : w // 2] = 0
    return truth


def seen(truth: Labels, tiles: Tiles) -> Callable[[int], View]:
    """The truth inside each tile, with ids of its own; the score of an object is its label in the truth."""
    boxes = tiles.boxes()

    def view(index: int) -> View:
        y0, x0, y1, x1 = boxes[index]
        part = truth[y0:y1, x0:x1]
        there = np.unique(part[part > 0])
        own = np.where(part > 0, np.searchsorted(there, part) + 1, 0).astype(np.int32)
        return View(own, {"score": there.astype(np.float32)})

    return view


def stitched(truth: Labels, tile: int, overlap: int) -> tuple[Labels, list[FinishedObjects]]:
    tiles, found = Tiles(truth.shape, tile, overlap), list[FinishedObjects]()
    return np.concatenate(list(stitch(tiles, seen(truth, tiles), found.append))), found


def same(one: Labels, other: Labels) -> bool:
    """Up to ids."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs) and ((one > 0) == (other > 0)).all()


# --- Nothing cut, doubled or lost -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    tile=st.integers(12, 80),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_objects_up_to_the_overlap_come_out_as_they_are(
    shape: tuple[int, int], tile: int, seed: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(1, tile * 2 // 3))
    truth = objects(shape, data.draw(st.integers(1, overlap)), seed)
    out, found = stitched(truth, tile, overlap)
    assert same(out, truth)
    assert sorted(np.unique(out[out > 0])) == list(range(1, sum(len(some.boxes) for some in found) + 1))
    for some in found:
        for i, box in enumerate(some.boxes.tolist()):
            ys, xs = np.nonzero(out == some.first + i)
            assert box == [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
            assert some.scores["score"][i] == truth[ys[0], xs[0]]
            window = some.labels[box[0] - some.origin[0] : box[2] - some.origin[0]]
            assert (window == i + 1).sum() == len(ys)


@pytest.mark.parametrize("tile", [48, 64, 96])
@pytest.mark.parametrize("overlap", [13, 16, 31])
def test_a_grid_of_tiles_and_overlaps(tile: int, overlap: int) -> None:
    truth = objects((301, 257), overlap, seed=tile, count=800)
    assert len(np.unique(truth)) > 100
    out, _ = stitched(truth, tile, overlap)
    assert same(out, truth)


def test_one_tile() -> None:
    truth = objects((40, 60), 30, seed=1)
    out, _ = stitched(truth, 64, 8)
    assert same(out, truth)
    empty, found = stitched(np.zeros((200, 100), np.int32), 64, 8)
    assert empty.shape == (200, 100)
    assert not empty.any()
    assert not any(len(some.boxes) for some in found)


@pytest.mark.slow
def test_more_pixels_than_32_bits_count() -> None:
    """4.9 billion pixels: half a minute and 1.5 GB, for one row of tiles."""
    side, corners = 70_000, [(5, 5), (35_000, 35_000), (69_970, 3), (69_960, 69_960)]
    tiles = Tiles((side, side), 2048, 64, 32)
    boxes = tiles.boxes()
    blank = np.zeros((boxes[0][2] - boxes[0][0], boxes[0][3] - boxes[0][1]), np.int32)

    def view(index: int) -> View:
        top, left, bottom, right = boxes[index]
        labels = blank
        for y, x in corners:
            if top < y + 20 and y < bottom and left < x + 20 and x < right:
                labels = labels.copy()
                labels[max(y - top, 0) : y + 20 - top, max(x - left, 0) : x + 20 - left] = labels.max() + 1
        return View(labels)

    found: list[FinishedObjects] = []
    pixels = sum(int(np.count_nonzero(rows)) for rows in stitch(tiles, view, found.append))
    assert pixels == 4 * 400
    assert [some.first for some in found] == [1, 2, 3, 4]
    assert [tuple(some.boxes[0]) for some in found] == [(y, x, y + 20, x + 20) for y, x in corners]


def row_of_two(first: dict[int, tuple[int, int]], second: dict[int, tuple[int, int]]) -> Labels:
    """Row 0 of what two tiles, columns 0..63 and 32..95, make of objects over some columns; the core ends at 48."""
    tiles = Tiles((8, 96), 64, 32)
    assert tiles.boxes() == [(0, 0, 8, 64), (0, 32, 8, 96)]

    def view(index: int) -> View:
        labels = np.zeros((8, 96), np.int32)
        for label, (start, stop) in (first, second)[index].items():
            labels[:, start:stop] = label
        return View(labels[:, (0, 32)[index] : (64, 96)[index]])

    return np.concatenate(list(stitch(tiles, view)))[0]


def runs(row: Labels) -> list[tuple[int, int, int]]:
    """(label, start, stop) of what is in a row."""
    edges = np.flatnonzero(np.diff(row, prepend=-1, append=-1)).tolist()
    return [(int(row[a]), a, b) for a, b in itertools.pairwise(edges) if row[a]]


def test_tiles_that_see_an_object_differently() -> None:
    # Each sees the middle in its own core: the earlier one's counts.
    assert runs(row_of_two({1: (40, 54)}, {1: (42, 56)})) == [(1, 40, 54)]
    # Each sees it in the other's core: not lost.
    assert runs(row_of_two({1: (42, 56)}, {1: (40, 54)})) == [(1, 40, 54)]
    # Only the tile in whose core it is counts.
    assert runs(row_of_two({1: (50, 56)}, {})) == []
    assert runs(row_of_two({}, {1: (40, 46)})) == []
    assert runs(row_of_two({1: (40, 46)}, {})) == [(1, 40, 46)]
    # One in the first tile's eyes, two in the second's: neither doubled nor lost.
    assert runs(row_of_two({1: (36, 62)}, {1: (36, 48), 2: (48, 62)})) == [(1, 36, 48), (2, 48, 62)]
    assert runs(row_of_two({1: (36, 58)}, {1: (36, 46), 2: (46, 58)})) == [(1, 36, 58)]
    # Two beside each other, seen with a border a bit apart: the pixels go to the earlier one.
    assert runs(row_of_two({1: (40, 50), 2: (50, 60)}, {1: (40, 49), 2: (49, 60)})) == [(1, 40, 50), (2, 50, 60)]


def test_objects_larger_than_the_overlap() -> None:
    # Cut by both tiles; they agree where both see it.
    assert runs(row_of_two({1: (20, 64)}, {1: (32, 90)})) == [(1, 20, 90)]
    # Whole in the second tile only.
    assert runs(row_of_two({1: (34, 64)}, {1: (34, 80)})) == [(1, 34, 80)]
    # They do not agree: two objects, no pixel twice.
    assert runs(row_of_two({1: (10, 64)}, {1: (54, 90)})) == [(1, 10, 64), (2, 64, 90)]
    # Over many tiles both ways.
    truth = np.zeros((300, 280), np.int32)
    truth[20:290, 100:140] = 1
    truth[150:180, 5:275] = 1
    truth[5:15, 5:15] = 2
    out, found = stitched(truth, 64, 24)
    assert same(out, truth)
    assert [5, 5, 15, 15] in [box for some in found for box in some.boxes.tolist()]


def test_rows_leave_when_no_tile_can_reach_them(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    extend = stitching._Canvas.extend
    monkeypatch.setattr(
        stitching._Canvas, "extend", lambda self, stop: (extend(self, stop), held.append(len(self.pixels)))[0]
    )
    truth = objects((2000, 40), 12, seed=0, count=1500)
    out, _ = stitched(truth, 64, 16)
    assert same(out, truth)
    assert max(held) <= 64 + 12


def test_ids_end() -> None:
    canvas = stitching._Canvas(Tiles((8, 8), 8, 4))
    canvas.finished = stitching.LIMIT - 1
    canvas.extend(8)
    labels = np.zeros((8, 8), np.int32)
    labels[1:3, 1:3], labels[5:7, 5:7] = 1, 2
    canvas.compose(0, 0, View(labels))
    with pytest.raises(InputError, match="more than 2,147,483,647 objects"):
        canvas.finish(0, 0)
