"""Masks cut out of their images."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from pffnet_d2.masks.instance_mask import InstanceMask, stack


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9)))
def test_the_smallest_window_holds_the_whole_mask(mask: np.ndarray) -> None:
    found = InstanceMask.of(mask)
    assert found.area == mask.sum()
    assert found.inside(*mask.shape)
    np.testing.assert_array_equal(stack([found], mask.shape)[0], mask)
    if found.area:
        assert found.mask[0].any()
        assert found.mask[-1].any()
        assert found.mask[:, 0].any()
        assert found.mask[:, -1].any()
    else:
        assert found.mask.size == 0


def test_by_hand() -> None:
    mask = InstanceMask.of(np.array([[0, 0, 0], [0, 1, 1], [0, 0, 1]], bool), y0=10, x0=20)
    assert (mask.y0, mask.x0, mask.area) == (11, 21, 3)
    assert mask.window == (slice(11, 13), slice(21, 23))
    assert mask.inside(13, 23)
    assert not mask.inside(12, 23)
    assert not mask._replace(x0=-1).inside(13, 23)
