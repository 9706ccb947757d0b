"""Decisions from seams alone equal those of ``stitch``, which sees all pixels, in any case that ``stitch`` can get."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pffnet_d2.inference.seams import Group, decide, paint, seam_of
from pffnet_d2.inference.stitch import FinishedObjects, View, stitch
from pffnet_d2.inference.tiling import Tiles

Labels = NDArray[np.int32]


def compare(tiles: Tiles, view: Callable[[int], View]) -> int:
    """Stitches in both ways. Returns the number of objects."""
    finished: list[FinishedObjects] = []
    expected = np.concatenate(list(stitch(tiles, view, finished.append)))
    groups: list[Group] = []
    decisions = decide(tiles, lambda index: seam_of(view(index), tiles, index), groups.append)
    boxes = tiles.boxes()

    def painted(*box: int) -> Labels:
        return paint(box, boxes, lambda index: view(index).labels, decisions.of)  # type: ignore[arg-type]

    height, width = tiles.shape
    assert (painted(0, 0, height, width) == expected).all()
    middle = (height // 3, width // 4, height - height // 5, width - width // 3)
    assert (painted(*middle) == expected[middle[0] : middle[2], middle[1] : middle[3]]).all()
    assert len(groups) == len(finished)
    for group, whole in zip(groups, finished, strict=True):
        assert (group.first, group.count, group.window[:2]) == (whole.first, len(whole.boxes), whole.origin)
        assert (group.window[2] - group.window[0], group.window[3] - group.window[1]) == whole.labels.shape
        assert {name: column.tolist() for name, column in group.scores.items()} == {
            name: column.tolist() for name, column in whole.scores.items()
        }
        assert (group.boxes[:, :2] <= whole.boxes[:, :2]).all()
        assert (group.boxes[:, 2:] >= whole.boxes[:, 2:]).all()
    return int(expected.max(initial=0))


def noisy(tiles: Tiles, seed: int, largest: int) -> Callable[[int], View]:
    """What a network may see: smooth shapes of any size, each tile with noise of its own, so that tiles disagree."""
    rng = np.random.default_rng(seed)
    height, width = tiles.shape
    field = ndimage.gaussian_filter(rng.normal(size=(height, width)), largest / 6 + 0.5)
    field /= field.std() + 1e-9
    boxes = tiles.boxes()

    def view(index: int) -> View:
        y0, x0, y1, x1 = boxes[index]
        own = np.random.default_rng([seed, index])
        noise = ndimage.gaussian_filter(own.normal(size=(y1 - y0, x1 - x0)), 2) * own.choice([0, 1.5])
        labels, n = ndimage.label(field[y0:y1, x0:x1] + noise > own.choice([0.3, 0.8]))
        order = own.permutation(n) + 1
        labels = np.concatenate([[0], order])[labels].astype(np.int32)
        return View(labels, {"score": own.random(n), "class_score": own.random(n)})

    return view


@settings(max_examples=120)
@given(
    shape=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    tile=st.integers(8, 70),
    largest=st.sampled_from([3, 10, 30, 90]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_equal_to_stitch(shape: tuple[int, int], tile: int, largest: int, seed: int, data: st.DataObject) -> None:
    """Overlaps up to nearly the whole tile, objects much larger than the overlap, tiles that disagree."""
    overlap = data.draw(st.integers(1, tile - 1) if tile < 16 else st.integers(1, tile * 3 // 4))
    tiles = Tiles(shape, tile, overlap, data.draw(st.sampled_from([1, 4])))
    if len(tiles.boxes()) < 400:
        compare(tiles, noisy(tiles, seed, largest))


@pytest.mark.parametrize("tile", [48, 64, 96])
@pytest.mark.parametrize("overlap", [13, 31])
def test_a_grid_of_tiles_and_overlaps(tile: int, overlap: int) -> None:
    tiles = Tiles((301, 257), tile, overlap)
    assert compare(tiles, noisy(tiles, tile, 20)) > 30


def test_nothing_and_one_object_over_everything() -> None:
    tiles = Tiles((200, 150), 64, 16)
    boxes = tiles.boxes()
    size = (boxes[0][2] - boxes[0][0], boxes[0][3] - boxes[0][1])
    assert compare(tiles, lambda _: View(np.zeros(size, np.uint16))) == 0
    everything = View(np.ones(size, np.uint16), {"score": np.ones(1)})
    assert compare(tiles, lambda _: everything) == 1
