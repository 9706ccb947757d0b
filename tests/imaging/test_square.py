"""The resize to INPUT.SQUARE that prediction does, in data sets and in models alike."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T

from pffnet_d2.imaging.square import resize_to_square


@pytest.mark.parametrize(
    ("size", "stretch", "expected"),
    [((30, 60), True, (40, 40)), ((30, 60), False, (20, 40)), ((60, 30), False, (40, 20)), ((40, 10), False, (40, 10))],
)
def test_size(size: tuple[int, int], stretch: bool, expected: tuple[int, int]) -> None:
    given = T.AugInput(np.zeros((*size, 3), np.uint8))
    resize_to_square(40, stretch=stretch)(given)
    assert given.image.shape == (*expected, 3)
