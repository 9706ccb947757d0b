"""Masks against Detectron2's own pasting, label maps against a simple loop of the rule."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances

from pffnet_d2.errors import InputError
from pffnet_d2.masks.compose import LabelMapRule, contiguous, instances_to_label_map, label_map_and_indices
from pffnet_d2.masks.instance_mask import InstanceMask, InstanceMasks
from pffnet_d2.masks.paste import instance_masks


def instances(size: tuple[int, int], boxes: list, masks: torch.Tensor, scores: list[float], **more: list) -> Instances:
    fields = {name: torch.tensor(value, dtype=torch.float32) for name, value in {"scores": scores, **more}.items()}
    return Instances(
        size, pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)), pred_masks=masks, **fields
    )


def whole(windows: list[InstanceMask], size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) masks; a window that extends beyond the image fails here."""
    masks = np.zeros((len(windows), *size), bool)
    for full, (y0, x0, mask) in zip(masks, windows, strict=True):
        assert y0 >= 0
        assert x0 >= 0
        full[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    return masks


def plain_rule(
    masks: np.ndarray, class_scores: np.ndarray, scores: np.ndarray, beta: float, max_covered: float
) -> np.ndarray:
    """The rule on full-size masks, instance by instance."""
    label_map = np.zeros(masks.shape[1:], np.int32)
    label = 0
    for i in np.argsort(-scores, kind="stable"):
        taken = masks[i] & (label_map > 0)
        if class_scores[i] <= beta or masks[i].sum() == taken.sum():
            continue
        if taken.sum() / masks[i].sum() > max_covered:
            continue
        label += 1
        label_map[masks[i] & ~taken] = label
    return label_map


# --- The rule, by hand ----------------------------------------------------------------------------------------------


def three_squares() -> torch.Tensor:
    """10x10 squares at columns 0, 2 and 5 of a 12x20 image."""
    masks = torch.zeros(3, 12, 20, dtype=torch.bool)
    for mask, x in zip(masks, (0, 2, 5), strict=True):
        mask[1:11, x : x + 10] = True
    return masks


THREE_BOXES = [[x, 1, x + 10, 11] for x in (0, 2, 5)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"score_threshold": 1.0}, "score_threshold 1.0: give a number from 0 to below 1"),
        ({"score_threshold": float("nan")}, "score_threshold nan: give"),
        ({"mask_threshold": np.float32(1.5)}, "mask_threshold 1.5: give"),
        ({"max_covered": -0.5}, "max_covered -0.5: give a number from 0 to 1"),
        ({"min_size": 2.5}, "min_size 2.5: give a whole number"),
    ],
)
def test_values_that_leave_no_object_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        instances_to_label_map(ring_and_core(), **options)
    assert says in str(error.value)


@pytest.mark.parametrize("form", ["pasted", "roi"])
def test_the_covered_square_is_dropped_and_hides_nothing(form: str) -> None:
    masks = three_squares() if form == "pasted" else torch.ones(3, 1, 28, 28)
    label_map = instances_to_label_map(instances((12, 20), THREE_BOXES, masks, [0.9, 0.8, 0.7]))
    assert label_map.dtype == np.int32
    assert np.bincount(label_map.ravel()).tolist() == [240 - 150, 100, 50]
    assert (label_map[1:11, :10] == 1).all()
    assert (label_map[1:11, 10:15] == 2).all()


def test_more_than_the_limit_covered_is_strict() -> None:
    masks = torch.zeros(2, 1, 20, dtype=torch.bool)
    masks[0, 0, :10] = True
    masks[1, 0, 3:13] = True  # 7 of 10 covered, exactly the limit
    found = instances((1, 20), [[0, 0, 10, 1], [3, 0, 13, 1]], masks, [0.9, 0.8])
    assert instances_to_label_map(found, max_covered=0.7).max() == 2
    assert instances_to_label_map(found, max_covered=0.69).max() == 1
    masks[1, 0] = masks[0, 0]  # no pixels left, so no label even if any coverage is allowed
    assert instances_to_label_map(found, max_covered=1.0).max() == 1


def test_class_scores_select_and_scores_order() -> None:
    masks = three_squares()
    boxes = THREE_BOXES
    found = instances((12, 20), boxes, masks, [0.1, 0.4, 0.3], class_scores=[0.9, 0.5, 0.8])
    # The second has a class score of exactly beta and is dropped. The third has a higher score and is painted first.
    label_map = instances_to_label_map(found, score_threshold=0.5)
    assert (label_map[1:11, 5:15] == 1).all()
    assert (label_map[1:11, :5] == 2).all()
    # Detectron2's own models have only scores.
    found.remove("class_scores")
    assert instances_to_label_map(found, score_threshold=0.5).max() == 0
    assert instances_to_label_map(found, score_threshold=0.25).max() == 2


def test_equal_scores_keep_their_order() -> None:
    found = instances((12, 20), THREE_BOXES, three_squares(), [0.9, 0.9, 0.9])
    label_map = instances_to_label_map(found)
    assert (label_map[1:11, :10] == 1).all()
    assert (label_map[1:11, 10:15] == 2).all()


@pytest.mark.parametrize("shape", [(0, 1, 28, 28), (0, 30, 40)])
def test_no_instances(shape: tuple[int, ...]) -> None:
    none = instances((30, 40), [], torch.zeros(shape), [])
    assert instance_masks(none) == []
    label_map = instances_to_label_map(none)
    assert label_map.shape == (30, 40)
    assert label_map.dtype == np.int32
    assert not label_map.any()
    below = instances((30, 40), [[0, 0, 9, 9]], torch.ones(1, 1, 28, 28), [0.2])
    assert not instances_to_label_map(below).any()


def test_empty_masks_get_no_label() -> None:
    masks = torch.zeros(3, 1, 6, 6)
    masks[1] = 1
    found = instances((20, 20), [[0, 0, 9, 9], [3, 3, 12, 12], [9, 9, 20, 20]], masks, [0.9, 0.8, 0.7])
    assert np.unique(instances_to_label_map(found)).tolist() == [0, 1]
    pasted = paste_masks_in_image(masks[:, 0], found.pred_boxes, (20, 20))
    found.pred_masks = pasted
    assert np.unique(instances_to_label_map(found)).tolist() == [0, 1]


# --- Windows against Detectron2 -------------------------------------------------------------------------------------


@st.composite
def detections(draw: st.DrawFn) -> Instances:
    """Boxes, possibly beyond the image, at whole, half or any coordinates; saturated masks (with ties) or soft ones."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    count, side = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 7, 28]))
    step = draw(st.sampled_from([1.0, 0.5, 0.013]))
    extents = st.tuples(
        st.floats(-10, width), st.floats(-10, height), st.floats(0.6, width + 20), st.floats(0.6, height + 20)
    )
    boxes = np.array(draw(st.lists(extents, min_size=count, max_size=count)))
    boxes = np.maximum(np.round(boxes / step), [[-20 / step, -20 / step, 1, 1]]) * step
    boxes[:, 2:] += boxes[:, :2]
    # Detectron2 cannot paste a box completely outside the image; a test below covers such boxes.
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 0.5)
    values = st.sampled_from([0.0, 1.0]) if draw(st.booleans()) else st.floats(0, 1, width=32)
    masks = draw(hnp.arrays(np.float32, (count, 1, side, side), elements=values))
    scores = draw(st.lists(st.sampled_from([0.3, 0.6, 0.6, 0.9, 0.95]), min_size=count, max_size=count))
    return instances((height, width), boxes.tolist(), torch.from_numpy(masks), scores)


@settings(deadline=None)
@given(detections(), st.sampled_from([0.3, 0.5, 0.8]))
def test_windows_equal_detectron2s_pasting(found: Instances, threshold: float) -> None:
    pasted = paste_masks_in_image(found.pred_masks[:, 0], found.pred_boxes, found.image_size, threshold)
    windows = instance_masks(found, threshold)
    assert (whole(windows, found.image_size) == pasted.numpy()).all()
    for (_, _, mask), box in zip(windows, found.pred_boxes.tensor.numpy(), strict=True):
        assert mask.shape[0] <= box[3] - box[1] + 4
        assert mask.shape[1] <= box[2] - box[0] + 4


@settings(deadline=None)
@given(detections(), st.sampled_from([0.5, 0.8]), st.sampled_from([0.0, 0.5, 0.7, 1.0]))
def test_label_map_equals_the_simple_loop(found: Instances, beta: float, max_covered: float) -> None:
    pasted = paste_masks_in_image(found.pred_masks[:, 0], found.pred_boxes, found.image_size)
    scores = found.scores.numpy()
    expected = plain_rule(pasted.numpy(), scores, scores, beta, max_covered)
    assert (instances_to_label_map(found, score_threshold=beta, max_covered=max_covered) == expected).all()
    assert np.unique(expected[expected > 0]).tolist() == list(range(1, expected.max() + 1))
    for masks in (pasted, pasted.to(torch.uint8), BitMasks(pasted)):
        found.pred_masks = masks
        assert (instances_to_label_map(found, score_threshold=beta, max_covered=max_covered) == expected).all()


def test_large_boxes_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pffnet_d2.masks.paste._CHUNK", 1000)
    torch.manual_seed(0)
    corner = torch.rand(40, 2) * 60
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * 60 + 1], dim=1)
    found = instances((100, 90), boxes.tolist(), torch.rand(40, 1, 14, 14), [0.9] * 40)
    pasted = paste_masks_in_image(found.pred_masks[:, 0], found.pred_boxes, (100, 90))
    assert (whole(instance_masks(found), (100, 90)) == pasted.numpy()).all()


def test_boxes_without_a_pixel() -> None:
    nan, inf = float("nan"), float("inf")
    boxes = [
        [5, 5, 5, 9],  # no width
        [5, 5, 9, 5],  # no height
        [9, 9, 5, 5],  # corners exchanged
        [nan, 0, 5, 5],
        [0, 0, inf, 5],
        [-30, -30, -20, -20],  # outside
        [50, 3, 70, 9],
        [3, 50, 9, 1e30],
        [2, 2, 4, 4],  # the only valid one
    ]
    found = instances((20, 30), boxes, torch.ones(9, 1, 28, 28), [0.9] * 9)
    areas = whole(instance_masks(found), (20, 30)).sum(axis=(1, 2))
    assert areas.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert np.bincount(instances_to_label_map(found).ravel()).tolist() == [596, 4]


def test_roi_masks_without_their_channel_axis_and_in_half_precision() -> None:
    soft = torch.rand(3, 1, 14, 14, generator=torch.Generator().manual_seed(0)).half()
    found = instances((12, 20), THREE_BOXES, soft, [0.9, 0.8, 0.7])
    pasted = paste_masks_in_image(soft[:, 0].float(), found.pred_boxes, (12, 20)).numpy()
    assert pasted.any()
    assert (whole(instance_masks(found), (12, 20)) == pasted).all()
    found.pred_masks = soft[:, 0]
    assert (whole(instance_masks(found), (12, 20)) == pasted).all()


def test_no_stack_of_full_masks_is_made() -> None:
    # As N x H x W masks these would fill 36 GB.
    corner = torch.arange(4000).mul(7).remainder(2900).float()
    boxes = torch.stack([corner, corner.flip(0), corner + 20, corner.flip(0) + 20], dim=1)
    found = instances((3000, 3000), boxes.tolist(), torch.ones(4000, 1, 28, 28), [0.9] * 4000)
    label_map = instances_to_label_map(found)
    assert label_map.max() > 100
    assert np.unique(label_map).tolist() == list(range(label_map.max() + 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    torch.manual_seed(0)
    corner = torch.rand(200, 2) * 280
    boxes = torch.cat([corner, corner + torch.rand(200, 2) * 40 + 1], dim=1)
    found = instances((300, 290), boxes.tolist(), torch.rand(200, 1, 28, 28), torch.rand(200).tolist())
    on_gpu = found.to("cuda")
    pasted = paste_masks_in_image(on_gpu.pred_masks[:, 0], on_gpu.pred_boxes, (300, 290)).cpu().numpy()
    assert (whole(instance_masks(on_gpu), (300, 290)) == pasted).all()
    assert (instances_to_label_map(on_gpu) == instances_to_label_map(found)).mean() > 0.999
    on_gpu.pred_masks = torch.from_numpy(pasted).cuda()
    assert (whole(instance_masks(on_gpu), (300, 290)) == pasted).all()


# --- Options --------------------------------------------------------------------------------------------------------


def ring_and_core() -> Instances:
    """A ring of 9x9 with a 3x3 hole that contains a pixel with a better score; 12 x 20 pixels, with a speck beside."""
    masks = torch.zeros(2, 12, 20, dtype=torch.bool)
    masks[0, 1:10, 1:10] = True
    masks[0, 4:7, 4:7] = False
    masks[0, 2, 15] = True
    masks[1, 5, 5] = True
    return instances((12, 20), [[1, 1, 16, 10], [5, 5, 6, 6]], masks, [0.8, 0.9])


def areas(found: Instances, **options: object) -> list[int]:
    return np.bincount(instances_to_label_map(found, **options).ravel()).tolist()[1:]


def test_holes_are_filled_around_better_instances() -> None:
    assert areas(ring_and_core()) == [1, 81 - 9 + 1]
    assert areas(ring_and_core(), fill_holes=True) == [1, 81 + 1 - 1]


def test_only_the_largest_part_stays() -> None:
    assert areas(ring_and_core(), largest_component=True) == [1, 81 - 9]
    assert areas(ring_and_core(), largest_component=True, fill_holes=True) == [1, 81 - 1]


def test_small_instances_hide_nothing() -> None:
    assert areas(ring_and_core(), min_size=2, fill_holes=True) == [82]
    assert areas(ring_and_core(), min_size=73) == [73]
    assert areas(ring_and_core(), min_size=74) == []
    label_map, laid = label_map_and_indices(ring_and_core(), LabelMapRule(min_size=2))
    assert (laid, int(label_map.max())) == ([0], 1)
    assert label_map_and_indices(ring_and_core(), LabelMapRule())[1] == [1, 0]


def test_the_largest_of_overlapping_masks_stays_whole() -> None:
    masks = torch.zeros(4, 6, 12, dtype=torch.bool)
    masks[0, 1:3, 2:4] = True  # the best, 4 pixels, inside the largest, which hides it
    masks[1, 1:5, 6:9] = True  # 12 pixels, one column shared with the largest
    masks[2, :5, 1:7] = True  # the largest
    masks[3, 0, 9:12] = True  # alone
    given = instances((6, 12), [[0, 0, 1, 1]] * 4, masks, [0.9, 0.8, 0.7, 0.95])
    expected = np.zeros((6, 12), int)
    expected[0, 9:12] = 1
    expected[1:5, 7:9] = 2
    expected[:5, 1:7] = 3
    labels, kept = label_map_and_indices(given, LabelMapRule(max_covered=1.0, largest_first=True))
    np.testing.assert_array_equal(labels, expected)
    assert kept == [3, 1, 2]  # labels follow the score
    # By score the best is complete.
    assert (instances_to_label_map(given, max_covered=1.0)[1:3, 2:4] == 2).all()
    # Of equal areas the better one is complete.
    twins = instances((6, 12), [[0, 0, 1, 1]] * 2, torch.stack([masks[1], masks[1].roll(1, 0)]), [0.6, 0.8])
    labels, kept = label_map_and_indices(twins, LabelMapRule(max_covered=1.0, largest_first=True))
    assert kept == [1, 0]
    assert np.bincount(labels.ravel()).tolist()[1:] == [12, 3]


# --- Ids --------------------


def test_ids_without_gaps() -> None:
    labels = np.array([[0, 7, 7], [3, 0, 900]])
    for form in (labels, labels.astype(np.uint64), labels.astype(np.uint16), labels * 10_000_000):
        found = contiguous(form)
        assert found.dtype == np.int32
        assert found.tolist() == [[0, 2, 2], [1, 0, 3]]
    assert contiguous(np.array([[700, 5]])).tolist() == [[2, 1]]
    assert contiguous(np.zeros((0, 3), np.uint8)).shape == (0, 3)


# --- Masks kept as windows ------------------------------------------------------------------------------------------


def test_window_masks_are_the_masks_they_were_made_of() -> None:
    masks = three_squares()
    given = instances((12, 20), [[0, 0, 1, 1]] * 3, masks, [0.9, 0.8, 0.7])
    kept = InstanceMasks(instance_masks(given), (12, 20))
    assert torch.equal(kept.tensor, masks)
    assert [mask.shape for _, _, mask in kept.masks] == [(10, 10)] * 3
    for item in (slice(1, None), torch.tensor([2, 0]), torch.tensor([True, False, True])):
        assert torch.equal(kept[item].tensor, masks[item])

    expected = instances_to_label_map(given)
    given.pred_masks = kept
    np.testing.assert_array_equal(instances_to_label_map(given), expected)
    # As Instances uses its fields: indexed, moved, counted.
    rest = given[torch.tensor([1, 2])].to("cpu")
    assert len(rest) == len(rest.pred_masks) == 2
    np.testing.assert_array_equal(instances_to_label_map(rest) > 0, masks[1:].any(0).numpy())
    assert InstanceMasks([], (4, 5)).tensor.shape == (0, 4, 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_contiguous(dtype: type) -> None:
    labels = np.array([[0, 7, 7], [200, 0, 3]], dtype)
    found = contiguous(labels)
    assert found.dtype == np.int32
    assert found.tolist() == [[0, 2, 2], [3, 0, 1]]
    np.testing.assert_array_equal(contiguous(found), found)
    assert contiguous(np.zeros((2, 3), dtype)).tolist() == [[0, 0, 0], [0, 0, 0]]
