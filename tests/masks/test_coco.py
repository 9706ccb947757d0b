from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.errors import InputError
from pffnet_d2.masks.coco import (
    annotations_to_label_map,
    annotations_to_masks,
    label_map_to_annotations,
    masks_to_annotations,
    masks_to_label_map,
    paint,
    paint_layers,
)
from pffnet_d2.masks.instance_mask import InstanceMask

label_maps = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.integers(0, 5))


def annotation(mask: Any, i: int = 1) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(np.asarray(mask, np.uint8)))
    return {"id": i, "image_id": 7, "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}


def contiguous(label_map: np.ndarray) -> np.ndarray:
    present = np.unique(label_map[label_map > 0])
    return np.where(label_map > 0, np.searchsorted(present, label_map) + 1, 0)


def test_by_hand() -> None:
    label_map = np.array([[0, 2, 2, 0], [0, 2, 0, 0], [5, 0, 0, 2]], np.int32)
    two, five = label_map_to_annotations(label_map, image_id=3, first_id=10)
    assert (two["id"], two["image_id"], two["category_id"], two["iscrowd"]) == (10, 3, 1, 0)
    assert (two["area"], two["bbox"]) == (4, [1, 0, 3, 3])
    assert (five["id"], five["area"], five["bbox"]) == (11, 1, [0, 2, 1, 1])
    # read down the columns: 2: 000 220 200 002; 5: 005 000 000 000
    expected = [mask_util.frPyObjects({"size": [3, 4], "counts": c}, 3, 4) for c in ([3, 2, 1, 1, 4, 1], [2, 1, 9])]
    assert [a["segmentation"]["counts"].encode() for a in (two, five)] == [e["counts"] for e in expected]


@given(label_maps)
@settings(max_examples=150, deadline=None)
def test_same_bytes_as_pycocotools(label_map: np.ndarray) -> None:
    annotations = label_map_to_annotations(label_map)
    labels = [label for label in range(1, 6) if (label_map == label).any()]
    assert len(annotations) == len(labels)
    for label, a in zip(labels, annotations, strict=True):
        mask = np.asfortranarray(label_map == label).astype(np.uint8)
        assert a["segmentation"]["counts"].encode() == mask_util.encode(mask)["counts"]
        assert a["segmentation"]["size"] == list(label_map.shape)
        assert a["area"] == mask.sum()
        assert a["bbox"] == mask_util.toBbox(a["segmentation"]).tolist()


@given(label_maps)
@settings(max_examples=150, deadline=None)
def test_round_trip(label_map: np.ndarray) -> None:
    back = annotations_to_label_map(label_map_to_annotations(label_map), *label_map.shape)
    assert back.dtype == np.int32
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, contiguous(label_map))


@given(st.lists(arrays(np.bool_, (6, 7)), max_size=5))
@settings(max_examples=150, deadline=None)
def test_overlaps_as_painted_one_by_one(masks: list[np.ndarray]) -> None:
    expected = np.zeros((6, 7), np.int32)
    for i in sorted(range(len(masks)), key=lambda i: -masks[i].sum()):
        expected[masks[i]] = i + 1
    annotations = [annotation(m, i) for i, m in enumerate(masks)]
    painted, areas = paint(annotations, 6, 7)
    np.testing.assert_array_equal(painted, expected)
    assert areas.tolist() == [m.sum() for m in masks]
    np.testing.assert_array_equal(annotations_to_label_map(annotations, 6, 7), contiguous(expected))
    layers = paint_layers(annotations, 6, 7)
    assert len(layers) <= max(len(masks), 1)
    assert (len(layers) == 1) == (areas.sum() == np.count_nonzero(painted))
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(paint([annotations[i]], 6, 7)[0], mask)
        shown = [layer == i + 1 for layer in layers if (layer == i + 1).any()]
        assert len(shown) == mask.any()  # complete, in one layer
        np.testing.assert_array_equal(np.logical_or.reduce(shown) if shown else np.zeros((6, 7), np.bool_), mask)


def test_smaller_on_top_and_hidden_left_out() -> None:
    big, small, same = np.zeros((3, 5, 5), np.uint8)
    big[:, :], small[1:3, 1:3], same[1:3, 1:3] = 1, 1, 1
    label_map = annotations_to_label_map([annotation(m) for m in (small, big, same)], 5, 5)
    # `same` hides `small`; `big` is second in the list, so it is 1 of the visible ones
    np.testing.assert_array_equal(label_map, np.where(same, 2, 1))


@given(st.lists(arrays(np.bool_, (6, 7)), max_size=5))
@settings(max_examples=100, deadline=None)
def test_the_first_region_on_top(masks: list[np.ndarray]) -> None:
    """For any size, in the label map of the regions and in that of their annotations."""
    masks = [mask for mask in masks if mask.any()]
    expected = np.zeros((6, 7), np.int32)
    for i, mask in reversed(list(enumerate(masks))):
        expected[mask] = i + 1
    regions = [InstanceMask(0, 0, mask) for mask in masks]
    annotations = masks_to_annotations(regions, 6, 7, overlap="first")
    np.testing.assert_array_equal(paint(annotations, 6, 7)[0], expected)
    np.testing.assert_array_equal(annotations_to_label_map(annotations, 6, 7), contiguous(expected))
    np.testing.assert_array_equal(masks_to_label_map(regions, 6, 7, "first"), contiguous(expected))
    for i, mask in enumerate(masks):
        shown = [layer == i + 1 for layer in paint_layers(annotations, 6, 7) if (layer == i + 1).any()]
        np.testing.assert_array_equal(np.logical_or.reduce(shown), mask)


@pytest.mark.parametrize("z_order", ["1", 1.5, None, True, 1 << 40])
def test_a_bad_z_order_names_the_annotation(z_order: Any) -> None:
    with pytest.raises(InputError, match="annotation 3 of image 7: its z_order is not a whole number"):
        paint([annotation(np.eye(4), 3) | {"z_order": z_order}], 4, 4)


def test_other_encodings() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 1
    for segmentation in (
        {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]},
        {"size": [4, 6], "counts": mask_util.encode(np.asfortranarray(mask))["counts"]},
        [[2, 1, 5, 1, 5, 3, 2, 3]],
    ):
        np.testing.assert_array_equal(annotations_to_label_map([{"segmentation": segmentation}], 4, 6), mask)


def test_phantom_with_large_numbers_in_the_string() -> None:
    label_map = synthetic_image(5, 0, size=(300, 4000), style="fluorescence")[1]
    annotations = label_map_to_annotations(label_map)
    assert len(annotations) == label_map.max() > 100
    np.testing.assert_array_equal(annotations_to_label_map(annotations, 300, 4000), label_map)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [4, 5], "counts": "0d0"}, "4 x 5 pixels, the image has 4 x 4"),
        ({"size": [4, 4], "counts": "05"}, "do not fill"),
        ({"size": [4, 4], "counts": "0P"}, "do not fill"),
        ({"size": [4, 4], "counts": ""}, "empty"),
        ({"size": [4, 4]}, "neither run lengths nor polygons"),
        ([[1, 2]], "neither|fill"),
        (None, "neither run lengths nor polygons"),
        ({"size": [4, 4], "counts": [3, -1]}, "neither|fill"),
    ],
)
def test_bad_masks_name_the_annotation(segmentation: Any, words: str) -> None:
    good = annotation(np.eye(4), 1)
    with pytest.raises(InputError, match=rf"annotation 42 of image 7.*({words})"):
        annotations_to_label_map([good, {"id": 42, "image_id": 7, "segmentation": segmentation}], 4, 4)


@given(st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_string_is_decoded_or_refused(counts: str) -> None:
    try:
        label_map = annotations_to_label_map(
            [annotation(np.eye(3)), {"segmentation": {"size": [3, 3], "counts": counts}}], 3, 3
        )
    except InputError:
        return
    assert label_map.shape == (3, 3)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_regions_are_complete_and_encoded_as_by_pycocotools(data: st.DataObject) -> None:
    """Any windows in an image, including full columns and single pixels: a round trip, byte for byte."""
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    masks = []
    for _ in range(data.draw(st.integers(0, 4))):
        mask = data.draw(arrays(np.bool_, (height, width)))
        mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
        masks.append(mask)
    regions = [InstanceMask(0, 0, mask) for mask in masks]
    annotations = masks_to_annotations(regions, height, width, image_id=4, first_id=9)
    assert [a["id"] for a in annotations] == list(range(9, 9 + len(masks)))
    for found, mask in zip(annotations, masks, strict=True):
        expected = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert found["segmentation"]["counts"] == expected["counts"].decode()
        assert found["bbox"] == mask_util.toBbox(expected).tolist()
        assert found["area"] == mask.sum()
    cut = annotations_to_masks(annotations, height, width)
    for (y0, x0, window), mask in zip(cut, masks, strict=True):
        whole = np.zeros((height, width), np.bool_)
        whole[y0 : y0 + window.shape[0], x0 : x0 + window.shape[1]] = window
        np.testing.assert_array_equal(whole, mask)
        assert window.any(axis=0)[[0, -1]].all()
        assert window.any(axis=1)[[0, -1]].all()
    assert masks_to_annotations(cut, height, width, 4, 9) == annotations
    np.testing.assert_array_equal(
        masks_to_label_map(regions, height, width), annotations_to_label_map(annotations, height, width)
    )


def test_the_smaller_region_is_on_top_and_hidden_ones_get_no_id() -> None:
    big, small, twin = np.ones((3, 4), np.bool_), np.ones((1, 2), np.bool_), np.ones((1, 2), np.bool_)
    label_map = masks_to_label_map([InstanceMask(0, 1, small), InstanceMask(0, 0, big), InstanceMask(0, 1, twin)], 3, 4)
    assert label_map.dtype == np.int32
    assert label_map.tolist() == [[1, 2, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_regions_that_are_invalid() -> None:
    for region, message in (
        ((0, 0, np.zeros((2, 2), np.bool_)), "has no pixels"),
        ((2, 0, np.ones((2, 2), np.bool_)), "row 2, column 0 leaves the image of 3 x 4"),
        ((0, -1, np.ones((2, 2), np.bool_)), "leaves the image"),
    ):
        with pytest.raises(InputError, match=message):
            masks_to_annotations([InstanceMask(*region)], 3, 4)
    rle = {"size": [2, 2], "counts": [4]}
    assert annotations_to_masks([{"id": 1, "image_id": 1, "segmentation": rle}], 2, 2) == []
