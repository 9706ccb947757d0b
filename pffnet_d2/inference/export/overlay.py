"""``overlay``: the image with the outline of every object. A large image is reduced to fit a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.inference.export.base import Add, Exporter, Part, SourceImage
from pffnet_d2.inference.tiling import Box

SIDE = 2048  # greatest length in pixels of the longer side of a reduced picture
# Approximate numbers of rows and columns of the image that are read together.
_BLOCK = (1024, 4096)
# The number of distinct colours, limited because each takes time. Neighbours whose ids differ by a multiple of it are
# drawn as one object.
_COLOURS = 2**16


class Overlay(Exporter):
    """A PNG. Part by part, it shows the image reduced to at most ``SIDE`` pixels per side."""

    name = "overlay"
    ending = "_overlay.png"
    about = "outlines drawn on the image"
    streams = True
    by_rows = True

    @contextmanager
    def begin(self, path: Path, image: SourceImage) -> Iterator[Add]:
        # Imported here because it loads Matplotlib and scikit-image.
        from pffnet_d2.visualization.overlay import overlay, write_png

        if image.whole:
            yield lambda part: write_png(path, overlay(image.rgb((0, 0, *image.shape)), part.labels))
            return
        overview = Overview(image.shape)
        yield overview.add
        write_png(path, overview.picture(image.rgb))


class Overview:
    """Collects every n-th row and column of a label map as it is finished, and draws them over the image reduced by n.

    For an image of at most ``SIDE`` pixels per side, n is 1 and the picture equals that of
    ``visualization.overlay.overlay``.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        """
        Args:
            shape: H, W of the image.
        """
        self.shape = shape
        self.step = -(-max(shape) // SIDE)
        # The centre of each block of step x step pixels; the last blocks may be smaller.
        self._rows, self._columns = (
            np.minimum(np.arange(0, length, self.step) + self.step // 2, length - 1) for length in shape
        )
        self._labels = np.zeros((len(self._rows), len(self._columns)), np.int32)

    def add(self, part: Part) -> None:
        """Adds rows of the label map, (n, W)."""
        top, bottom = part.origin[0], part.origin[0] + len(part.labels)
        first, last = np.searchsorted(self._rows, (top, bottom))
        self._labels[first:last] = part.labels[self._rows[first:last] - top][:, self._columns]

    def picture(self, image: Callable[[Box], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Draws the picture, (ceil(H / n), ceil(W / n), 3) RGB. Call it after all rows were added.

        Args:
            image: returns a window y0, x0, y1, x1 of the image as (h, w, 3) RGB; each block becomes its mean.
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
