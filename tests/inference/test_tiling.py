"""Which tiles an image is divided into."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pffnet_d2.errors import InputError
from pffnet_d2.inference.tiling import Tiles, overlap_for


@given(length=st.integers(1, 500), steps=st.integers(2, 24), step=st.integers(1, 4), data=st.data())
def test_tiles_cover_the_image_and_overlap_enough(length: int, steps: int, step: int, data: st.DataObject) -> None:
    tile = steps * step
    overlap = data.draw(st.integers(1, tile - 1))
    spans = Tiles((length, 1), tile, overlap, step).rows
    assert (spans[0][0], spans[-1][1]) == (0, length)
    (size,) = {stop - start for start, stop in spans}
    assert size == length if len(spans) == 1 else size <= tile and size % step == 0
    # A step smaller, so many could not cover it.
    assert len(spans) == 1 or len(spans) * (size - step) - (len(spans) - 1) * overlap < length
    for (start, stop), (following, end) in itertools.pairwise(spans):
        assert start < following <= stop - overlap
        assert end > stop
    # With one tile less they could not.
    assert len(spans) == 1 or overlap + (len(spans) - 1) * (tile - overlap) < length


def test_tiles_that_cannot_be() -> None:
    for overlap in (0, 64, 100):
        with pytest.raises(InputError, match="tiles of 64 pixels cannot overlap by"):
            Tiles((500, 500), 64, overlap)


def test_overlap_from_sizes() -> None:
    assert overlap_for([30] * 200 + [300], 1024) == 48  # 45, and the largest hundredth does not count
    assert overlap_for([30] * 50 + [300], 1024) == 464
    assert overlap_for([300], 256) == 128
    assert overlap_for([3], 1024) == 32
    assert overlap_for([], 1024) == 128
    assert overlap_for([], 100) == 50
