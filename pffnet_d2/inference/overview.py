"""A picture of a large image that fits a screen: reduced, with the outlines of its objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.inference.tiling import Box
from pffnet_d2.visualization.overlay import overlay

SIDE = 2048  # pixels of the longer side, at most
# About how many rows and columns of the image are read together.
_BLOCK = (1024, 4096)
# Neighbours in the picture whose ids differ by a multiple of it are drawn as one; a colour for each takes time.
_COLOURS = 2**16


class Overview:
    """Collects every n-th row and column of a label map as it is finished, and draws it over the image reduced by n.

    Of an image of at most ``SIDE`` pixels a side n is 1: the picture is that of ``pictures.overlay``.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        """
        Args:
            shape: H, W of the image.
        """
        self.shape = shape
        self.step = -(-max(shape) // SIDE)
        # The middle of each block of step x step pixels; the last blocks may be smaller.
        self._rows, self._columns = (
            np.minimum(np.arange(0, length, self.step) + self.step // 2, length - 1) for length in shape
        )
        self._labels = np.zeros((len(self._rows), len(self._columns)), np.int32)

    def watch(self, slabs: Iterator[NDArray[np.int32]]) -> Iterator[NDArray[np.int32]]:
        """Rows of a label map from the top on, (n, W) each, as they are, after a look at them."""
        top = 0
        for slab in slabs:
            first, last = np.searchsorted(self._rows, (top, top + len(slab)))
            self._labels[first:last] = slab[self._rows[first:last] - top][:, self._columns]
            top += len(slab)
            yield slab

    def picture(self, image: Callable[[Box], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """(ceil(H / n), ceil(W / n), 3) RGB, once all rows were seen.

        Args:
            image: gives a window y0, x0, y1, x1 of the image as (h, w, 3) RGB; each block becomes its mean.
        """
        reduced = np.zeros((*self._labels.shape, 3), np.uint8)
        height, width = (self.step * max(side // self.step, 1) for side in _BLOCK)
        for y in range(0, self.shape[0], height):
            for x in range(0, self.shape[1], width):
                part = image((y, x, min(y + height, self.shape[0]), min(x + width, self.shape[1])))
                small = np.asarray(Image.fromarray(part).reduce(self.step))
                i, j = y // self.step, x // self.step
                reduced[i : i + small.shape[0], j : j + small.shape[1]] = small
        return overlay(reduced, np.where(self._labels > 0, (self._labels - 1) % _COLOURS + 1, 0))
