"""ROIAlign as sums of rows equals Detectron2's pooler, for any boxes, levels and batches."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from pffnet_d2.modeling import roi_pooling
from pffnet_d2.modeling.roi_pooling import RowPooler

SCALES = [1 / 4, 1 / 8, 1 / 16]
HEIGHT, WIDTH = 64, 96


def pooler(side: int = 7, scales: list[float] = SCALES, samples: int = 2, kind: str = "ROIAlignV2") -> ROIPooler:
    # A small canonical size, so that boxes of this small image reach every level.
    return ROIPooler(side, scales, samples, kind, canonical_box_size=32, canonical_level=3)


def maps(images: int, scales: list[float] = SCALES) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(images, 5, int(HEIGHT * scale), int(WIDTH * scale)) for scale in scales]


def assert_equal_pools(plain: ROIPooler, features: list[torch.Tensor], boxes: list[Boxes]) -> None:
    expected = plain(features, boxes)
    for given_maps in (features, [x.contiguous(memory_format=torch.channels_last) for x in features]):
        found = RowPooler(plain)(given_maps, boxes)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Also boxes that leave the image, and boxes without area.
COORDINATE = st.floats(-40, 140, width=32)
BOX = st.tuples(COORDINATE, COORDINATE, st.floats(0, 120, width=32), st.floats(0, 120, width=32))


@settings(max_examples=60)
@given(st.lists(st.lists(BOX, max_size=6), min_size=1, max_size=3), st.sampled_from([(7, 2), (4, 1), (3, 3)]))
def test_equals_detectron2(images: list[list[tuple[float, ...]]], shape: tuple[int, int]) -> None:
    boxes = [Boxes(torch.tensor([(x, y, x + w, y + h) for x, y, w, h in each]).reshape(-1, 4)) for each in images]
    assert_equal_pools(pooler(shape[0], samples=shape[1]), maps(len(images)), boxes)


@settings(max_examples=20)
@given(st.lists(st.lists(BOX, max_size=4), min_size=1, max_size=2))
def test_the_gradient_equals_detectron2s(images: list[list[tuple[float, ...]]]) -> None:
    boxes = [Boxes(torch.tensor([(x, y, x + w, y + h) for x, y, w, h in each]).reshape(-1, 4)) for each in images]
    plain = pooler()
    gradients = []
    for layer in (plain, RowPooler(plain)):
        features = [x.requires_grad_() for x in maps(len(images))]
        pooled = layer(features, boxes)
        weights = torch.arange(float(pooled.numel())).remainder(7).view(pooled.shape)
        # The sum of the maps, so that Detectron2's result has a gradient without boxes, too.
        ((pooled * weights).sum() + sum(x.sum() for x in features)).backward()
        gradients.append([x.grad for x in features])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-3)


def test_the_gradient_without_boxes_is_zero() -> None:
    features = [x.requires_grad_() for x in maps(2)]
    RowPooler(pooler())(features, [Boxes(torch.zeros(0, 4))] * 2).sum().backward()
    for each in features:
        assert each.grad is not None
        assert not each.grad.any()


def test_boxes_have_no_gradient() -> None:
    box = torch.tensor([[3.0, 4.0, 40.0, 30.0]], requires_grad=True)
    assert not RowPooler(pooler())(maps(1), [Boxes(box)]).requires_grad


def test_more_boxes_than_are_pooled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_pooling, "ROIS_PER_CALL", 3)
    boxes = [Boxes(torch.rand(count, 4) * 40 + torch.tensor([0.0, 0.0, 40.0, 40.0])) for count in (4, 3)]
    assert_equal_pools(pooler(), maps(2), boxes)


def test_one_level() -> None:
    boxes = [Boxes(torch.tensor([[3.0, 4.0, 40.0, 30.0], [0.0, 0.0, 96.0, 64.0]]))]
    assert_equal_pools(pooler(scales=[1 / 8]), maps(1, [1 / 8]), boxes)


def test_no_boxes() -> None:
    assert_equal_pools(pooler(), maps(2), [Boxes(torch.zeros(0, 4))] * 2)


def test_a_box_by_hand() -> None:
    """The map is the number of the column. A box of two columns, each sampled at a quarter and three quarters."""
    columns = torch.arange(8.0).expand(1, 1, 8, 8)
    plain = ROIPooler(2, [1.0], 2, "ROIAlignV2")
    pooled = RowPooler(plain)([columns], [Boxes(torch.tensor([[2.0, 1.0, 4.0, 3.0]]))])
    assert pooled[0, 0].tolist() == [[2.0, 3.0], [2.0, 3.0]]


@pytest.mark.parametrize(("samples", "kind"), [(0, "ROIAlignV2"), (2, "ROIAlign"), (2, "ROIPool")])
def test_other_poolers_stay(samples: int, kind: str) -> None:
    assert RowPooler.fits(pooler())
    assert not RowPooler.fits(pooler(samples=samples, kind=kind))
    assert not RowPooler.fits(torch.nn.Identity())
