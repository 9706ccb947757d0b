from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from pffnet_d2.modeling.mask_quality_head import MaskQualityHead, mask_to_channels, quality_loss, quality_target


def test_parameters_at_the_papers_widths() -> None:
    """16.27 M: the release's 16.3 M with one output instead of two."""
    head = MaskQualityHead(ShapeSpec(channels=256, height=14, width=14))
    assert sum(p.numel() for p in head.parameters()) == 16_269_313


def test_view_is_the_releases_memory_reshape() -> None:
    """Channel 1 begins with element 196 = row 7, column 0 of the 28 x 28 mask."""
    mask = torch.arange(784.0).view(1, 1, 28, 28)
    channels = mask_to_channels(mask, "view")
    assert channels.shape == (1, 4, 14, 14)
    assert channels[0, 1, 0, 0] == 196 == mask[0, 0, 7, 0]


def test_space_to_depth_keeps_places_and_max_pool_is_torchs() -> None:
    mask = torch.randn(2, 1, 28, 28)
    channels = mask_to_channels(mask, "space_to_depth")
    for dy in range(2):
        for dx in range(2):
            assert torch.equal(channels[:, 2 * dy + dx], mask[:, 0, dy::2, dx::2])
    assert torch.equal(mask_to_channels(mask, "max_pool"), torch.nn.functional.max_pool2d(mask, 2))
    for how, c in (("space_to_depth", 4), ("view", 4), ("max_pool", 1)):
        assert mask_to_channels(torch.zeros(0, 1, 28, 28), how).shape == (0, c, 14, 14)


@pytest.mark.parametrize("reshape", ["space_to_depth", "view", "max_pool"])
@pytest.mark.parametrize("k", [0, 2])
def test_output_and_gradients(reshape: str, k: int) -> None:
    head = MaskQualityHead(ShapeSpec(channels=8, height=14, width=14), conv_dim=32, fc_dim=64, reshape=reshape)
    features, mask = torch.randn(k, 8, 14, 14, requires_grad=True), torch.rand(k, 1, 28, 28, requires_grad=True)
    quality = head(features, mask)
    assert quality.shape == (k,)
    assert ((quality > 0) & (quality < 1)).all()
    quality_loss(quality, torch.full((k,), 0.3)).backward()
    assert features.grad is not None
    assert mask.grad is not None
    assert all(p.grad is not None for p in head.parameters())
    assert k == 0 or (mask.grad != 0).any()


@pytest.mark.parametrize("sigmoid", [True, False])
def test_forward_is_table_one(sigmoid: bool) -> None:
    """[P] Table I with torch's own operations: four convolutions, the last of stride 2, three linear layers."""
    torch.manual_seed(0)
    shape = ShapeSpec(channels=8, height=6, width=6)
    head = MaskQualityHead(shape, conv_dim=32, fc_dim=64, reshape="max_pool", sigmoid=sigmoid)
    r, m = torch.randn(3, 8, 6, 6), torch.rand(3, 1, 12, 12)
    x = torch.cat([r, F.max_pool2d(m, 2)], 1)
    assert len(head.convs) == 4
    for conv, stride in zip(head.convs, (1, 1, 1, 2), strict=True):
        x = F.conv2d(x, conv.weight, stride=stride, padding=1)
        x = F.group_norm(x, 32, conv.norm.weight, conv.norm.bias).relu()
    assert x.shape == (3, 32, 3, 3)
    x = x.flatten(1)
    for linear, norm, _ in head.fcs:
        x = F.group_norm(x @ linear.weight.T, 32, norm.weight, norm.bias).relu()
    x = (x @ head.predictor.weight.T + head.predictor.bias)[:, 0]
    torch.testing.assert_close(head(r, m), 1 / (1 + (-x).exp()) if sigmoid else x)


def test_target_by_hand() -> None:
    """Prediction: the left half of an 8 x 8 ROI on 16 x 16 pixels; truth: its top half, and as much outside.

    In cells: P = 32, T = 32, I = 16; the object has 256 pixels = 64 cells, so IoU = 16 / 80, Dice = 32 / 96.
    """
    logits, truth = -torch.ones(1, 8, 8), torch.zeros(1, 8, 8)
    logits[:, :, :4] = 1
    truth[:, :4] = 1
    target = quality_target(logits, truth, torch.tensor([256.0]), torch.tensor([256.0]))
    assert target.item() == pytest.approx(0.5 * 16 / 80 + 0.5 * 32 / 96)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(4, 20))
def test_target_is_the_quality_of_the_whole_object(seed: int, size: int) -> None:
    """With one cell per pixel, the area correction gives exactly IoU and Dice with the whole object."""
    g = torch.Generator().manual_seed(seed)
    whole = torch.rand(1, size + 6, size + 6, generator=g) > 0.4
    logits = torch.randn(1, size, size, generator=g)
    truth = whole[:, 3:-3, 3:-3]
    predicted = torch.zeros_like(whole)
    predicted[:, 3:-3, 3:-3] = logits > 0
    intersection, union = (predicted & whole).sum(), (predicted | whole).sum()
    expected = 0.5 * intersection / union + intersection / (predicted.sum() + whole.sum())
    area = torch.tensor([float(size * size)])
    target = quality_target(logits, truth.float(), whole.flatten(1).sum(1).float(), area)
    assert target.item() == pytest.approx(expected.item(), abs=1e-6)


def test_degenerate_rois_have_finite_targets_and_do_not_count() -> None:
    target = quality_target(-torch.ones(2, 4, 4), torch.zeros(2, 4, 4), torch.zeros(2), torch.tensor([0.0, 9.0]))
    assert target.tolist() == [0.0, 0.0]
    quality = torch.tensor([0.3, 0.6], requires_grad=True)
    loss = quality_loss(quality, target)
    assert loss.item() == 0
    loss.backward()
    assert quality_loss(torch.tensor([0.3, 0.6]), torch.tensor([0.0, 1.0])).item() == pytest.approx(0.08)


def test_unknown_reshape() -> None:
    with pytest.raises(ValueError, match="RESHAPE 'pool' is not one of"):
        MaskQualityHead(ShapeSpec(channels=8, height=14, width=14), reshape="pool")
