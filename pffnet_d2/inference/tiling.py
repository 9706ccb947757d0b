"""Divides a large image into tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError

Box = tuple[int, int, int, int]
"""y0, x0, y1, x1 in pixels, the ends excluded."""

# overlap_for: the factor for the measured side, and the smallest overlap in pixels.
_MARGIN = 1.5
_LEAST = 32


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image in row order. All have the same size, are evenly spaced, and the last ones end at the edge
    of the image.

    There are as few tiles as ``tile`` allows, and each is only as large as that number requires: 2048 pixels with an
    overlap of 64 are divided into three tiles of 736, not three of 1024.
    """

    shape: tuple[int, int]  # of the image
    tile: int  # longest side in pixels; where the image is shorter than this, tiles are as long as the image
    overlap: int  # least overlap of neighbours in pixels
    step: int = 1  # sides are multiples of it if ``tile`` is one

    def __post_init__(self) -> None:
        """Raises InputError unless 0 < overlap < tile."""
        if not 0 < self.overlap < self.tile:
            raise InputError(
                f"tiles of {self.tile} pixels cannot overlap by {self.overlap}; "
                "choose an overlap above 0 and smaller than the tile"
            )

    @property
    def rows(self) -> list[tuple[int, int]]:
        return _spans(self.shape[0], self.tile, self.overlap, self.step)

    @property
    def columns(self) -> list[tuple[int, int]]:
        return _spans(self.shape[1], self.tile, self.overlap, self.step)

    def boxes(self) -> list[Box]:
        columns = self.columns
        return [(y0, x0, y1, x1) for y0, y1 in self.rows for x0, x1 in columns]


def _spans(length: int, tile: int, overlap: int, step: int) -> list[tuple[int, int]]:
    if length <= tile:
        return [(0, length)]
    count = -((overlap - length) // (tile - overlap))
    needed = -(-(length + (count - 1) * overlap) // count)
    size = min(-(-needed // step) * step, tile)
    return [(start, start + size) for start in ((length - size) * i // (count - 1) for i in range(count))]


def overlap_for(sides: Sequence[float] | NDArray[np.number], tile: int) -> int:
    """The overlap for objects of the measured sizes.

    Args:
        sides: the longer side of the bounding box of each object, pixels.
        tile: side of the tiles.

    Returns:
        1.5 times the side that 99 of 100 objects do not exceed, rounded up to a multiple of 16, between 32 and half the
        tile; without measured sides 128, or half the tile if that is less.
    """
    if not len(sides):
        return min(128, tile // 2)
    needed = -(-_MARGIN * float(np.percentile(sides, 99, method="higher")) // 16) * 16
    return int(min(max(needed, _LEAST), tile // 2))
