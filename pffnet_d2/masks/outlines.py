"""Pixel-exact outlines of the objects of a label map: polygons along the edges of the pixels, with holes and parts.

A pixel (x, y) is the square from (x, y) to (x + 1, y + 1), as in QuPath and ImageJ, so an outline holds exactly the
pixels of its object: filled again it gives the label map back. Contours through pixel centres
(``skimage.measure.find_contours``, OpenCV) are half a pixel too small on every side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy
from numpy.typing import NDArray

Ring = NDArray[np.int64]
"""(n, 2) corners x, y in pixels, n >= 4, the first not repeated at the end."""
Part = list[Ring]
"""Exterior, then its holes; both turn so that the object lies on the right of the direction of travel as one looks at
the image (y down): the exterior clockwise, the holes counter-clockwise."""

# Objects are traced together, until their windows have this many pixels: some hundred bytes of scratch for each pixel
# on an outline.
_CHUNK = 2**20


def outlines(label_map: NDArray[np.int32]) -> Iterator[tuple[int, list[Part]]]:
    """The outline of every object, one after the other, in the order of the labels.

    Args:
        label_map: (H, W) integers, 0 background. Labels may have gaps, parts and holes.

    Yields:
        (label, parts). Pixels that only touch at a corner are different parts, so every ring is simple (passes no
        point twice): the parts are the polygons of a valid multi-polygon. Only corners are kept: successive points
        differ in direction.
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


def _trace(
    label_map: NDArray[np.int32], windows: list[tuple[int, tuple[slice, slice]]]
) -> Iterator[tuple[int, list[Part]]]:
    """:func:`outlines` of some objects. Their windows, each with a margin of one pixel, lie one after the other in one
    flat canvas, so that the steps below are taken for all of them at once."""
    masks = [np.pad(label_map[window] == own, 1) for own, window in windows]
    begins = np.cumsum([0, *(mask.size for mask in masks)])
    canvas = np.concatenate([mask.ravel() for mask in masks])
    pixel = np.flatnonzero(canvas)
    owner = np.searchsorted(begins, pixel, side="right") - 1
    stride = np.array([mask.shape[1] for mask in masks])[owner]

    # Sides of a pixel and the direction of travel along them: 0 top (right), 1 right (down), 2 bottom (left), 3 left
    # (up). Steps to the pixel ahead along a side, and to the one across it.
    ahead = np.stack([np.ones_like(stride), stride, -np.ones_like(stride), -stride])
    across = np.roll(ahead, 1, axis=0)  # above the top, right of the right side, ...
    side, which = np.nonzero(~canvas[pixel + across])
    at, ahead, across, owner, stride = (
        pixel[which],
        ahead[side, which],
        across[side, which],
        owner[which],
        stride[which],
    )
    # From the end of a side: right where the pixel ahead is not set (also where only the one diagonally across is:
    # these two are different parts), straight on where only the pixel ahead is set, left where both are.
    front = canvas[at + ahead]
    left = front & canvas[at + ahead + across]
    follower_pixel = np.where(left, at + ahead + across, np.where(front, at + ahead, at))
    follower_side = np.where(left, side - 1, np.where(front, side, side + 1)) % 4
    key, follower_key = at * 4 + side, follower_pixel * 4 + follower_side
    order = np.argsort(key)
    follower = order[np.searchsorted(key, follower_key, sorter=order)]

    # Corner points where each side begins.
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
    """The cycles of a permutation, each from its lowest index on."""
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
    """A ring cut at the points that it passes twice (pixels that touch at a corner: a hole there, say)."""
    points = [(x, y) for x, y in ring.tolist()]
    if len(set(points)) == len(points):
        return [ring]
    simple: list[Ring] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for point in points:
        if point in place:  # cut off what was passed since
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
    """Exteriors with their holes. ``mask`` is that of the object, its first pixel at ``origin`` (x, y)."""
    parts = [[ring] for ring in rings if _area(ring) > 0]
    holes = [ring for ring in rings if _area(ring) < 0]
    if not holes:
        return parts
    if len(parts) == 1:
        return [parts[0] + holes]
    components, _ = scipy.ndimage.label(mask)

    def component(ring: Ring) -> int:
        # The pixel on the right of the first step.
        (x0, y0), (x1, y1) = ring[:2].tolist()
        x = x0 - (x1 < x0 or y1 > y0)
        y = y0 - (x1 < x0 or y1 < y0)
        return int(components[y - origin[1], x - origin[0]])

    of = {component(part[0]): part for part in parts}
    for hole in holes:
        of[component(hole)].append(hole)
    return parts


def _area(ring: Ring) -> int:
    """Signed area in pixels; positive: clockwise as one looks at the image."""
    x, y = ring.T
    return int(x @ np.roll(y, -1) - y @ np.roll(x, -1)) // 2
