"""Pixel-exact outlines of the objects of a label map: polygons along the edges of the pixels, with holes and parts.

A pixel (x, y) is the square from (x, y) to (x + 1, y + 1), as in QuPath and ImageJ. An outline therefore encloses
exactly the pixels of its object, and filling the outlines gives the label map again. Contours through pixel centres
(``skimage.measure.find_contours``, OpenCV) are half a pixel too small on every side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from pffnet_d2.masks.instance_mask import InstanceMask

Ring = NDArray[np.int64]
"""(n, 2) corners x, y in pixels, n >= 4. The first corner is not repeated at the end."""
Part = list[Ring]
"""The exterior, then its holes. The object lies on the right of the direction of travel when looking at the image
(y down): the exterior runs clockwise, the holes counter-clockwise."""

# Objects are traced together until their windows have this many pixels. Tracing needs about a hundred bytes for each
# pixel on an outline.
_CHUNK = 2**20


def outlines(label_map: NDArray[np.int32]) -> Iterator[tuple[int, list[Part]]]:
    """Trace the outline of every object, in the order of the labels.

    Args:
        label_map: (H, W) integers, 0 background. Labels may have gaps, parts and holes.

    >>> [(label, parts)] = outlines(np.array([[0, 5, 5]], dtype=np.int32))
    >>> label, [ring.tolist() for ring in parts[0]]
    (5, [[[1, 0], [3, 0], [3, 1], [1, 1]]])

    Yields:
        (label, parts). Pixels that touch only at a corner are in different parts, so every ring is simple (passes no
        point twice) and the parts are the polygons of a valid multi-polygon. The rings contain only corners: the
        direction changes at every point.
    """
    windows = [
        (i, window) for i, window in enumerate(scipy.ndimage.find_objects(label_map), start=1) if window is not None
    ]
    start = 0
    while start < len(windows):
        stop, pixels = start, 0
        while stop < len(windows) and (stop == start or pixels < _CHUNK):
            rows, columns = windows[stop][1]
            pixels += (rows.stop - rows.start + 2) * (columns.stop - columns.start + 2)
            stop += 1
        yield from _trace(label_map, windows[start:stop])
        start = stop


def filled(parts: Sequence[Sequence[NDArray[Any]]], height: int, width: int) -> InstanceMask:
    """Fill polygons: the inverse of :func:`outlines` for one object.

    Args:
        parts: polygons of one or more rings (n, 2) of corners x, y in pixels, closed or not. A point is inside a
            polygon if it is inside an odd number of its rings, so rings within the first are holes. The polygons are
            united.
        height, width: of the image. What lies outside is cut off.

    Returns:
        The pixels whose centres are inside.
    """
    from skimage.draw import polygon

    corners = np.concatenate([ring for part in parts for ring in part])
    (x0, y0), (x1, y1) = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    top, left = max(y0, 0), max(x0, 0)
    shape = (max(min(y1, height) - top, 0), max(min(x1, width) - left, 0))
    union = np.zeros(shape, dtype=bool)
    for part in parts:
        inside = np.zeros(shape, dtype=bool)
        for ring in part:
            # Pixel centres become whole numbers, so that corners between pixels decide without rounding.
            rows, columns = polygon(ring[:, 1] - 0.5 - top, ring[:, 0] - 0.5 - left, shape)
            inside[rows, columns] ^= True
        union |= inside
    return InstanceMask.of(union, int(top), int(left))


def _trace(
    label_map: NDArray[np.int32], windows: list[tuple[int, tuple[slice, slice]]]
) -> Iterator[tuple[int, list[Part]]]:
    """Trace the :func:`outlines` of some objects together.

    Their windows, each with a margin of one pixel, are placed one after the other in one flat canvas, so that each step
    below handles all of them at once.
    """
    masks = [np.pad(label_map[window] == own, 1) for own, window in windows]
    begins = np.cumsum([0, *(mask.size for mask in masks)])
    canvas = np.concatenate([mask.ravel() for mask in masks])
    pixel = np.flatnonzero(canvas)
    owner = np.searchsorted(begins, pixel, side="right") - 1
    stride = np.array([mask.shape[1] for mask in masks])[owner]

    # The sides of a pixel, with the direction of travel in brackets: 0 top (right), 1 right (down), 2 bottom (left),
    # 3 left (up). ``ahead`` and ``across`` are the steps to the pixel ahead along a side and to the one across it.
    ahead = np.stack([np.ones_like(stride), stride, -np.ones_like(stride), -stride])
    across = np.roll(ahead, 1, axis=0)  # above the top side, right of the right side, ...
    side, which = np.nonzero(~canvas[pixel + across])
    at, ahead, across, owner, stride = (
        pixel[which],
        ahead[side, which],
        across[side, which],
        owner[which],
        stride[which],
    )
    # At the end of a side, turn right if the pixel ahead is not set (even if the one diagonally across is: it is in
    # another part), go straight on if only the pixel ahead is set, turn left if both are set.
    front = canvas[at + ahead]
    left = front & canvas[at + ahead + across]
    follower_pixel = np.where(left, at + ahead + across, np.where(front, at + ahead, at))
    follower_side = np.where(left, side - 1, np.where(front, side, side + 1)) % 4
    key, follower_key = at * 4 + side, follower_pixel * 4 + follower_side
    order = np.argsort(key)
    follower = order[np.searchsorted(key, follower_key, sorter=order)]

    # The corner points where the sides begin.
    local = at - begins[owner]
    tops = np.array([rows.start for _, (rows, _) in windows])
    lefts = np.array([columns.start for _, (_, columns) in windows])
    x = local % stride - 1 + lefts[owner] + np.isin(side, (1, 2))
    y = local // stride - 1 + tops[owner] + np.isin(side, (2, 3))
    turns = np.empty(len(side), dtype=bool)  # whether the side begins at a corner
    turns[follower] = follower_side != side

    rings: list[list[Ring]] = [[] for _ in windows]
    for cycle in _cycles(follower.tolist()):
        corners = cycle[turns[cycle]]
        rings[owner[cycle[0]]].extend(_simple(np.stack([x[corners], y[corners]], axis=1)))
    for (own, (rows, columns)), mask, found in zip(windows, masks, rings, strict=True):
        yield own, _parts(found, mask, (columns.start - 1, rows.start - 1))


def _cycles(follower: list[int]) -> Iterator[NDArray[np.int64]]:
    """Yield the cycles of a permutation, each starting at its lowest index."""
    seen = bytearray(len(follower))
    for first in range(len(follower)):
        if seen[first]:
            continue
        cycle, at = [], first
        while not seen[at]:
            seen[at] = 1
            cycle.append(at)
            at = follower[at]
        yield np.array(cycle)


def _simple(ring: Ring) -> list[Ring]:
    """Cut a ring at the points that it passes twice, which are corners where two pixels touch (at a hole, say)."""
    points = [(x, y) for x, y in ring.tolist()]
    if len(set(points)) == len(points):
        return [ring]
    simple: list[Ring] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for point in points:
        if point in place:  # cut off the points since the first pass
            begin = place[point]
            simple.append(np.array(path[begin:]))
            for passed in path[begin:]:
                del place[passed]
            del path[begin:]
        place[point] = len(path)
        path.append(point)
    simple.append(np.array(path))
    return simple


def _parts(rings: list[Ring], mask: NDArray[np.bool_], origin: tuple[int, int]) -> list[Part]:
    """Group exteriors with their holes. ``mask`` is the mask of the object, its first pixel at ``origin`` (x, y)."""
    parts = [[ring] for ring in rings if _area(ring) > 0]
    holes = [ring for ring in rings if _area(ring) < 0]
    if not holes:
        return parts
    if len(parts) == 1:
        return [parts[0] + holes]
    components, _ = scipy.ndimage.label(mask)

    def component(ring: Ring) -> int:
        # The pixel to the right of the first step.
        (x0, y0), (x1, y1) = ring[:2].tolist()
        x = x0 - (x1 < x0 or y1 > y0)
        y = y0 - (x1 < x0 or y1 < y0)
        return int(components[y - origin[1], x - origin[0]])

    of = {component(part[0]): part for part in parts}
    for hole in holes:
        of[component(hole)].append(hole)
    return parts


def _area(ring: Ring) -> int:
    """Return the signed area in pixels; it is positive for a clockwise ring when looking at the image."""
    x, y = ring.T
    return int(x @ np.roll(y, -1) - y @ np.roll(x, -1)) // 2
