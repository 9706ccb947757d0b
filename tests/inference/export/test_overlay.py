"""The reduced picture of a large image."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pffnet_d2.inference.export import Part
from pffnet_d2.inference.export.overlay import Overview


@pytest.mark.parametrize("shape", [(4097, 100), (2048, 2048), (300, 6000), (1, 9000), (5000, 5001)])
def test_an_overview_is_small_and_shows_every_place(shape: tuple[int, int]) -> None:
    """Slabs of any height; the last blocks of rows and columns may be smaller than the others."""
    overview = Overview(shape)
    assert -(-max(shape) // overview.step) <= 2048
    labels = np.zeros(shape, np.int32)
    labels[-20:, -20:] = 2
    top = 0
    for rows in (labels[:7], labels[7:8], *np.array_split(labels[8:], 3)):
        overview.add(Part(rows, origin=(top, 0)))
        top += len(rows)

    def image(box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        y0, x0, y1, x1 = box
        grey = np.full((y1 - y0, x1 - x0), 40, np.uint8)
        grey[(np.arange(y0, y1) > shape[0] // 2)[:, None] | np.zeros(x1 - x0, bool)] = 200
        return np.repeat(grey[..., None], 3, axis=2)

    picture = overview.picture(image)
    assert picture.shape == (-(-shape[0] // overview.step), -(-shape[1] // overview.step), 3)
    assert (picture[0, 0] == (40 if shape[0] > 1 else picture[0, 0])).all()
    assert (picture[-1, 0] == (200 if shape[0] > 1 else picture[-1, 0])).all()
    coloured = np.argwhere(np.ptp(picture, axis=2))
    assert len(coloured)
    assert (coloured >= np.array(picture.shape[:2]) - 20).all()
