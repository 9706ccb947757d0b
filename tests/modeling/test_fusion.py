"""Values and gradients of the closed forms against the papers' loop over ROIs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pffnet_d2.modeling.fusion import MAX_LOG_GAIN, MODES, box_pixels, fuse


def fuse_by_loop(f0: Tensor, logits: Tensor, boxes: Tensor, batch_index: Tensor, mode: str) -> Tensor:
    """[P] Algorithm 1, one ROI after another, for boxes with integer corners."""
    maps = list(f0)
    for mask, box, image in zip(logits, boxes.long().tolist(), batch_index.tolist(), strict=True):
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            continue
        source = mask.sigmoid() if "attention" in mode else mask
        pasted = F.interpolate(source[None], (y2 - y1, x2 - x1), mode="bilinear", align_corners=False)[0]
        height, width = maps[image].shape[-2:]
        top, left, bottom, right = max(y1, 0), max(x1, 0), min(y2, height), min(x2, width)
        if bottom <= top or right <= left:
            continue
        pasted = pasted[:, top - y1 : bottom - y1, left - x1 : right - x1]
        window = maps[image][:, top:bottom, left:right]
        new = {
            "residual_attention": lambda w, p: w * (1 + p),
            "attention": lambda w, p: w * p,
            "summation": lambda w, p: w + p,
            "replacement": lambda w, p: p.expand_as(w),
        }[mode](window, pasted)
        changed = maps[image].clone()
        changed[:, top:bottom, left:right] = new
        maps[image] = changed
    return torch.stack(maps)


def random_rois(k: int, n: int, height: int, width: int, seed: int, channels: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    f0 = torch.randn(n, 2, height, width, generator=g, dtype=torch.float64)
    logits = 3 * torch.randn(k, channels, 7, 7, generator=g, dtype=torch.float64)
    corner = torch.randint(-4, max(height, width), (k, 2), generator=g)
    boxes = torch.cat([corner, corner + torch.randint(0, 14, (k, 2), generator=g)], 1).float()
    return f0, logits, boxes, torch.randint(0, n, (k,), generator=g)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(k=st.integers(0, 9), seed=st.integers(0, 10_000), channels=st.sampled_from([1, 2]), square=st.booleans())
def test_equals_the_loop_with_gradients(mode: str, k: int, seed: int, channels: int, square: bool) -> None:
    f0, logits, boxes, batch_index = random_rois(k, 2, 24, 24 if square else 37, seed, channels)
    f0.requires_grad_()
    logits.requires_grad_()
    weight = torch.randn(f0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for function in (fuse, fuse_by_loop):
        out = function(f0, logits, boxes, batch_index, mode)
        gradients = torch.autograd.grad((out * weight).sum(), [f0, logits], allow_unused=True)
        zeros = (torch.zeros_like(f0), torch.zeros_like(logits))
        results.append((out, *(z if g is None else g for g, z in zip(gradients, zeros, strict=True))))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-8)


def test_three_equal_rois_compound() -> None:
    """F_0 = 1 and three ROIs of logit 10 on x 10..39, y 20..29: (1 + sigmoid(10))^3 inside, 1 outside."""
    box = torch.tensor([[10.0, 20.0, 40.0, 30.0]]).repeat(3, 1)
    fused = fuse(torch.ones(1, 2, 64, 64), torch.full((3, 1, 28, 28), 10.0), box, torch.zeros(3).long())
    expected = torch.ones(1, 2, 64, 64)
    expected[:, :, 20:30, 10:40] = 7.99945
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-5)


def test_replacement_gives_the_gradient_to_the_last_roi_alone() -> None:
    logits = torch.zeros(3, 2, 4, 4, requires_grad=True)
    boxes = torch.tensor([[2.0, 2.0, 8.0, 8.0]]).repeat(3, 1)
    fuse(torch.ones(1, 2, 10, 10), logits, boxes, torch.zeros(3).long(), "replacement").sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:2] == 0).all()
    assert (logits.grad[2] > 0).all()


@pytest.mark.parametrize("mode", ["residual_attention", "attention", "summation"])
def test_order_does_not_matter(mode: str) -> None:
    f0, logits, boxes, batch_index = random_rois(8, 2, 20, 20, seed=3, channels=2)
    shuffle = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    other = fuse(f0, logits[shuffle], boxes[shuffle], batch_index[shuffle], mode)
    torch.testing.assert_close(fuse(f0, logits, boxes, batch_index, mode), other)


def test_gain_is_bounded_and_stays_finite() -> None:
    logits = torch.full((200, 1, 4, 4), 30.0, requires_grad=True)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(200, 1)
    f0 = torch.ones(1, 2, 4, 4, requires_grad=True)
    fused = fuse(f0, logits, boxes, torch.zeros(200).long())
    torch.testing.assert_close(fused, torch.full_like(fused, 2.0**16))
    assert pytest.approx(2.0**16) == torch.tensor(MAX_LOG_GAIN, dtype=torch.float64).exp().item()
    fused.sum().backward()
    assert f0.grad is not None
    assert f0.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_extreme_logits_have_finite_gradients(mode: str) -> None:
    logits = torch.tensor([-200.0, 200.0]).view(2, 1, 1, 1).repeat(1, 1, 4, 4).requires_grad_()
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(2, 1)
    fuse(torch.ones(1, 2, 4, 4), logits, boxes, torch.zeros(2).long(), mode).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_pixel_is_inside_by_its_centre() -> None:
    """x1 <= x + 1/2 < x2: a box from 1.5 to 3.5 contains the centres 1.5 and 2.5."""
    where = box_pixels(torch.tensor([[1.5, 0.0, 3.5, 1.0], [0.6, 0.6, 1.4, 1.4]]), torch.tensor([0, 0]), (1, 5, 5))
    assert where.pixel.tolist() == [1, 2]
    assert where.u.tolist() == [0.0, 0.5]


def test_half_precision_features_keep_their_dtype() -> None:
    f0, logits, boxes, batch_index = random_rois(4, 1, 16, 16, seed=0, channels=1)
    reference = fuse(f0.bfloat16().float(), logits.float(), boxes, batch_index)
    half = fuse(f0.bfloat16(), logits.float(), boxes, batch_index)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, reference.bfloat16())


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="fusion mode 'sum' is not one of residual_attention"):
        fuse(torch.ones(1, 2, 4, 4), torch.zeros(0, 1, 4, 4), torch.zeros(0, 4), torch.zeros(0).long(), "sum")
