"""``overlay``: the image with the outline of every object; of a large image a reduced picture that fits a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.inference.export.base import Add, Exporter, Part, SourceImage
from pffnet_d2.inference.tiling import Box

SIDE = 2048  # pixels of the longer side of a reduced picture, at most
# About how many rows and columns of the image are read together.
_BLOCK = (1024, 4096)
# Neighbours in the picture whose ids differ by a multiple of it are drawn as one; a colour for each takes time.
_COLOURS = 2**16


class Overlay(Exporter):
    """A PNG. Part by part it shows the image reduced to at most ``SIDE`` pixels a side."""

    name = "overlay"
    ending = "_overlay.png"
    about = "outlines drawn on the image"
    streams = True
    by_rows = True

    @contextmanager
    def begin(self, path: Path, image: SourceImage) -> Iterator[Add]:
        # Here, as it imports Matplotlib and scikit-image.
        from pffnet_d2.visualization.overlay import overlay, write_png

        if image.whole:
            yield lambda part: write_png(path, overlay(image.rgb((0, 0, *image.shape)), part.labels))
            return
        overview = Overview(image.shape)
        yield overview.add
        write_png(path, overview.picture(image.rgb))


class Overview:
    """Collects every n-th row and column of a label map as it is finished, and draws it over the image reduced by n.

    For an image of at most ``SIDE`` pixels a side n is 1: the picture is that of ``visualization.overlay.overlay``.
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

    def add(self, part: Part) -> None:
        """Looks at some rows of the label map, (n, W)."""
        top, bottom = part.origin[0], part.origin[0] + len(part.labels)
        first, last = np.searchsorted(self._rows, (top, bottom))
        self._labels[first:last] = part.labels[self._rows[first:last] - top][:, self._columns]

    def picture(self, image: Callable[[Box], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """(ceil(H / n), ceil(W / n), 3) RGB, after all rows were added.

        Args:
            image: gives a window y0, x0, y1, x1 of the image as (h, w, 3) RGB; each block becomes its mean.
        """
        from pffnet_d2.visualization.overlay import overlay

        reduced = np.zeros((*self._labels.shape, 3), np.uint8)
        height, width = (self.step * max(side // self.step, 1) for side in _BLOCK)
        for y in range(0, self.shape[0], height):
            for x in range(0, self.shape[1], width):
                part = image((y, x, min(y + height, self.shape[0]), min(x + width, self.shape[1])))
                small = np.asarray(Image.fromarray(part).reduce(self.step))
                i, j = y // self.step, x // self.step
                reduced[i : i + small.shape[0], j : j + small.shape[1]] = small
        return overlay(reduced, np.where(self._labels > 0, (self._labels - 1) % _COLOURS + 1, 0))
