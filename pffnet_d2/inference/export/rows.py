"""Collects rows of a label map until they complete a row of tiles of a file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.inference.tiling import Box


class Bands:
    """Cuts successive rows into square tiles. The last ones in a row or column are filled up with background."""

    def __init__(self, shape: tuple[int, int], side: int) -> None:
        """
        Args:
            shape: H, W of the label map.
            side: of the tiles, pixels.
        """
        self.height, self.width = shape
        self.side = side
        self.band = np.zeros((side, -(-self.width // side) * side), np.uint32)
        self.filled = self.done = 0

    def tiles(self, rows: NDArray[np.int32]) -> Iterator[tuple[Box, NDArray[np.uint32]]]:
        """Adds rows (n, W). Yields the tiles (side, side) that they complete, each with the part of the label map that
        it contains."""
        while len(rows):
            rows, part = rows[self.side - self.filled :], rows[: self.side - self.filled]
            self.band[self.filled : self.filled + len(part), : self.width] = part
            self.filled += len(part)
            self.done += len(part)
            if self.filled == self.side or self.done == self.height:
                self.band[self.filled :] = 0
                for x in range(0, self.band.shape[1], self.side):
                    box = (self.done - self.filled, x, self.done, min(x + self.side, self.width))
                    yield box, np.ascontiguousarray(self.band[:, x : x + self.side])
                self.filled = 0
