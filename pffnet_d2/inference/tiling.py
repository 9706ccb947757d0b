"""Which tiles a large image is predicted in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError

Box = tuple[int, int, int, int]
"""y0, x0, y1, x1 in pixels, the ends excluded."""

# overlap_for: the measured side is that of all but the largest hundredth of the objects, times this.
_MARGIN = 1.5
_LEAST = 32


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image in row order: all of one size, spread evenly, the last ones ending with the image.

    There are as few as ``tile`` allows, and they are no larger than that number needs: 2048 pixels with an overlap of
    64 are divided into three tiles of 736, not three of 1024.
    """

    shape: tuple[int, int]  # of the image
    tile: int  # longest side in pixels; in a direction in which the image is shorter, tiles are as long as the image
    overlap: int  # of neighbours, at least
    step: int = 1  # sides are multiples of it where ``tile`` is

    def __post_init__(self) -> None:
        """Raises InputError where tile and overlap cannot be."""
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
    """The overlap that fits objects like those measured.

    Args:
        sides: the longer side of the bounding box of each object, pixels.
        tile: side of the tiles.

    Returns:
        1.5 times the side that 99 of 100 objects do not exceed, rounded up to a multiple of 16, between 32 and half a
        tile; 128 (at most half a tile) where nothing was measured.
    """
    if not len(sides):
        return min(128, tile // 2)
    needed = -(-_MARGIN * float(np.percentile(sides, 99, method="higher")) // 16) * 16
    return int(min(max(needed, _LEAST), tile // 2))
