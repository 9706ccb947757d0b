"""Finds the tiles of a large image that show nothing but background: ``--tissue auto``.

The image is divided into blocks of 64 x 64 pixels. The contrast of a block is the range of the grey values that the
network sees. Otsu's threshold on the logarithm of the contrasts parts blocks of background from blocks with something
in them, on dark backgrounds as well as bright ones. A tile is background if neither its blocks nor their neighbours
have more contrast than the threshold. Where the two kinds of blocks do not differ clearly, no tile is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from pffnet_d2.inference.tiling import Box, Tiles

BLOCK = 64  # side of a block, pixels
# The median contrast of blocks with something in them is at least this many times that of blocks of background;
# otherwise the image has no background.
_CLEAR = 4.0
# Rows and columns of pixels that are read together.
_WINDOW = 16 * BLOCK


def background_tiles(rgb: Callable[[Box], NDArray[np.uint8]], tiles: Tiles) -> list[int]:
    """The indices of the tiles of background.

    Args:
        rgb: returns a window y0, x0, y1, x1 of the image as the network sees it, (h, w, 3).
        tiles: the tiles of the image.
    """
    contrast = contrasts(rgb, tiles.shape)
    shown = something(contrast)
    if shown is None:
        return []
    near = maximum_filter(shown, size=3)
    found = []
    for index, (y0, x0, y1, x1) in enumerate(tiles.boxes()):
        if not near[y0 // BLOCK : -(-y1 // BLOCK), x0 // BLOCK : -(-x1 // BLOCK)].any():
            found.append(index)
    return found


def contrasts(rgb: Callable[[Box], NDArray[np.uint8]], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """(ceil(H / 64), ceil(W / 64)): the range of grey values of each block, the largest of the three channels."""
    height, width = shape
    found = np.zeros((-(-height // BLOCK), -(-width // BLOCK)), np.uint8)
    for y in range(0, height, _WINDOW):
        for x in range(0, width, _WINDOW):
            part = rgb((y, x, min(y + _WINDOW, height), min(x + _WINDOW, width)))
            rows, columns = np.arange(0, part.shape[0], BLOCK), np.arange(0, part.shape[1], BLOCK)
            low, high = (
                reduce.reduceat(reduce.reduceat(part, rows, axis=0), columns, axis=1)
                for reduce in (np.minimum, np.maximum)
            )
            i, j = y // BLOCK, x // BLOCK
            found[i : i + len(rows), j : j + len(columns)] = (high - low).max(axis=2)
    return found


def something(contrast: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Which blocks show something; None if the image has no clear background."""
    from skimage.filters import threshold_otsu

    logarithm = np.log1p(contrast.astype(np.float64))
    if logarithm.min() == logarithm.max():
        return None
    shown: NDArray[np.bool_] = logarithm > threshold_otsu(logarithm)
    if shown.all() or (1 + np.median(contrast[shown])) < _CLEAR * (1 + np.median(contrast[~shown])):
        return None
    return shown
