"""Outlines: by hand, and filled again by another program (matplotlib), which must give the label map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path as Polygon

from pffnet_d2.masks import outlines as module
from pffnet_d2.masks.outlines import Part, outlines


def filled(parts: list[Part], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixel centres inside an odd number of rings."""
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([xs.ravel(), ys.ravel()], axis=1)
    inside = [Polygon(np.concatenate([ring, ring[:1]])).contains_points(centres) for part in parts for ring in part]
    return (np.sum(inside, axis=0) % 2 == 1).reshape(shape)


def area(ring: np.ndarray) -> float:
    x, y = ring.astype(float).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def test_one_pixel_is_a_square_at_its_place() -> None:
    label_map = np.zeros((5, 9), np.int32)
    label_map[3, 7] = 4
    ((label, ((ring,),)),) = outlines(label_map)
    assert label == 4
    assert ring.tolist() == [[7, 3], [8, 3], [8, 4], [7, 4]]


def test_only_corners_are_kept() -> None:
    label_map = np.zeros((12, 20), np.int32)
    label_map[2:6, 3:18] = 1
    label_map[6:10, 3:8] = 1
    ((_, ((ring,),)),) = outlines(label_map)
    assert ring.tolist() == [[3, 2], [18, 2], [18, 6], [8, 6], [8, 10], [3, 10]]


def test_holes_parts_and_corners_that_touch() -> None:
    label_map = np.array(
        [
            [1, 1, 1, 1, 0, 1],
            [1, 0, 1, 1, 1, 0],
            [1, 1, 0, 1, 0, 0],
            [1, 1, 1, 1, 0, 1],
        ],
        np.int32,
    )
    ((_, parts),) = outlines(label_map)
    # A big part with two holes that touch at a corner, and pixels at upper right (touching a corner) and lower right.
    assert sorted(len(part) for part in parts) == [1, 1, 3]
    assert sorted(area(part[0]) for part in parts) == [1, 1, 17]
    (big,) = [part for part in parts if len(part) == 3]
    assert [area(hole) for hole in big[1:]] == [-1, -1]
    assert (filled(parts, label_map.shape) == (label_map > 0)).all()


def test_a_hole_that_touches_the_outside_at_a_corner() -> None:
    label_map = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.int32)
    ((_, (part,)),) = outlines(label_map)
    assert [area(ring) for ring in part] == [8, -1]


def test_each_hole_goes_to_the_part_around_it() -> None:
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.int32)
    label_map = np.zeros((20, 40), np.int32)
    for y, x in ((2, 30), (9, 3), (16, 20)):
        label_map[y : y + 3, x : x + 3] = ring * 7
    ((label, parts),) = outlines(label_map)
    assert label == 7
    assert len(parts) == 3
    for exterior, hole in parts:
        assert (hole.mean(axis=0) == exterior.mean(axis=0)).all()


def test_nothing() -> None:
    assert list(outlines(np.zeros((4, 5), np.int32))) == []


shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)


@given(hnp.arrays(np.int32, shapes, elements=st.integers(0, 3)), st.sampled_from([1, 100, 2**20]))
def test_round_trip_and_simple_rings(label_map: np.ndarray, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        found = dict(outlines(label_map))
    assert list(found) == [label for label in range(1, 4) if (label_map == label).any()]
    for label, parts in found.items():
        assert (filled(parts, label_map.shape) == (label_map == label)).all()
        total = 0.0
        for part in parts:
            for i, ring in enumerate(part):
                assert len({tuple(point) for point in ring.tolist()}) == len(ring)
                steps = np.roll(ring, -1, axis=0) - ring
                assert ((steps != 0).sum(axis=1) == 1).all()
                assert ((steps != 0) != (np.roll(steps, -1, axis=0) != 0)).all()  # every point is a corner
                assert (area(ring) > 0) == (i == 0)
                total += area(ring)
        assert total == (label_map == label).sum()


@given(hnp.arrays(np.int32, shapes, elements=st.integers(0, 1)))
def test_parts_are_the_4_connected_components(label_map: np.ndarray) -> None:
    from skimage.measure import label as components

    for _, parts in outlines(label_map):
        expected = components(label_map, connectivity=1)
        assert len(parts) == expected.max()
        masks = [filled([part], label_map.shape) for part in parts]
        assert {tuple(np.unique(expected[mask])) for mask in masks} == {(i,) for i in range(1, expected.max() + 1)}


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)))
def test_filling_gives_the_objects_again(label_map: np.ndarray) -> None:
    for label, parts in outlines(label_map):
        mask = module.filled(parts, label_map.shape[0], label_map.shape[1])
        full = np.zeros(label_map.shape, bool)
        full[mask.window] = mask.mask
        np.testing.assert_array_equal(full, label_map == label)
