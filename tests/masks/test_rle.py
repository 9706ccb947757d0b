"""Run lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pffnet_d2.masks.instance_mask import InstanceMask
from pffnet_d2.masks.rle import decode, encode, encode_masks, runs_of_label_map, runs_of_masks


@settings(deadline=None)
@given(arrays(np.bool_, array_shapes(min_dims=3, max_dims=3, max_side=7)), st.booleans())
def test_masks_are_encoded_as_pycocotools_does_and_decoded_again(masks: np.ndarray, solid: bool) -> None:
    masks = masks | solid
    height, width = masks.shape[1:]
    expected = mask_util.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    whole = [InstanceMask(0, 0, mask) for mask in masks]
    for given_masks in (whole, [InstanceMask.of(mask) for mask in masks]):
        encoded = encode_masks(given_masks, height, width)
        assert [rle["counts"] for rle in encoded] == [rle["counts"].decode() for rle in expected]
        assert all(rle["size"] == [height, width] for rle in encoded)
    runs, broken = decode([rle["counts"] for rle in expected], height * width)
    assert not broken.any()
    back = np.zeros((len(masks), width * height), np.bool_)
    back[np.repeat(runs.owner, runs.length), runs.pixels()] = True
    np.testing.assert_array_equal(back.reshape(len(masks), width, height).transpose(0, 2, 1), masks)


@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9), elements=st.integers(0, 4)))
def test_a_label_map_has_the_runs_of_its_masks(label_map: np.ndarray) -> None:
    height, width = label_map.shape
    runs, labels = runs_of_label_map(label_map)
    assert labels.tolist() == [label for label in range(1, 5) if (label_map == label).any()]
    masks = [InstanceMask(0, 0, label_map == label) for label in labels]
    assert encode(runs, len(labels), height, width) == encode_masks(masks, height, width)


def test_nothing() -> None:
    assert encode_masks([], 5, 5) == []
    assert len(runs_of_masks([], 5).pixels()) == 0


def test_strings_that_do_not_fill_the_image_are_broken() -> None:
    full, short = (
        mask_util.encode(np.ones((3, 4), np.uint8, order="F")),
        mask_util.encode(np.ones((2, 4), np.uint8, order="F")),
    )
    _, broken = decode([full["counts"], short["counts"]], 12)
    assert broken.tolist() == [False, True]
