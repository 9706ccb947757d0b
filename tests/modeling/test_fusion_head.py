from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances

from pffnet_d2.modeling.fusion_head import RAFFHead, UpsampledConv


@pytest.mark.parametrize(("scale", "size"), [(4, (5, 7)), (2, (3, 3)), (4, (1, 1))])
def test_upsampled_conv_is_the_convolution_of_the_upsampled_map(scale: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = UpsampledConv(3, 2, scale).double()
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, scale_factor=scale, mode="nearest"), conv.weight, conv.bias, padding=1)
    fast = conv(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), [x, conv.weight, conv.bias]),
        torch.autograd.grad((plain * weight).sum(), [x, conv.weight, conv.bias]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def roi_instances(size: tuple[int, int], logits: torch.Tensor, boxes: torch.Tensor) -> Instances:
    return Instances(size, mask_logits=logits, fusion_boxes=boxes)


def test_foreground_channel_serves_both_and_detach_stops_the_gradient() -> None:
    torch.manual_seed(0)
    spec = {"p2": ShapeSpec(channels=4, stride=4)}
    features = {"p2": torch.randn(1, 4, 8, 8)}
    logits = torch.randn(2, 2, 6, 6, requires_grad=True)
    boxes = torch.tensor([[2.0, 2.0, 20.0, 14.0], [8.0, 4.0, 30.0, 30.0]])
    targets = (torch.rand(1, 32, 32) > 0.5).long()

    head = RAFFHead(spec["p2"], post_convs=False)
    s_ins, losses = head(features, [roi_instances((32, 32), logits, boxes)], targets)
    assert s_ins.shape == (1, 2, 32, 32)
    assert set(losses) == {"loss_sem_seg_fusion"}
    gain = s_ins / head.f0(features["p2"])
    torch.testing.assert_close(gain[:, 0], gain[:, 1], rtol=1e-4, atol=1e-4)
    losses["loss_sem_seg_fusion"].backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] == 0).all()
    assert (logits.grad[:, 1] != 0).any()

    logits.grad = None
    detached = RAFFHead(spec["p2"], detach=True)
    detached(features, [roi_instances((32, 32), logits, boxes)], targets)[1]["loss_sem_seg_fusion"].backward()
    assert logits.grad is None


def test_s_ins_is_the_text() -> None:
    """F_0 from P2, RAFF for each image, ReLU, 3x3, ReLU, 1x1, cross-entropy; one image after another."""
    torch.manual_seed(0)
    head = RAFFHead(ShapeSpec(channels=4, stride=4), channels="per_channel", loss_weight=0.1)
    p2 = torch.randn(2, 4, 4, 4)
    rois = [roi_instances((16, 16), torch.randn(k, 2, 6, 6), torch.tensor([[2.0, 4.0, 12.0, 9.0]] * k)) for k in (1, 2)]
    targets = (torch.rand(2, 16, 16) > 0.5).long()
    f0 = F.conv2d(F.interpolate(p2, scale_factor=4, mode="nearest"), head.f0.weight, head.f0.bias, padding=1)
    for image, roi in enumerate(rois):
        for mask in roi.mask_logits:
            p = F.interpolate(mask.sigmoid()[None], (5, 10), mode="bilinear", align_corners=False)[0]
            f0[image, :, 4:9, 2:12] *= 1 + p
    _, conv3, _, conv1 = head.post
    expected = F.conv2d(F.conv2d(f0.relu(), conv3.weight, conv3.bias, padding=1).relu(), conv1.weight, conv1.bias)
    s_ins, losses = head({"p2": p2}, rois, targets)
    torch.testing.assert_close(s_ins, expected)
    torch.testing.assert_close(losses["loss_sem_seg_fusion"], 0.1 * F.cross_entropy(expected, targets))


def test_rois_of_one_image_leave_the_other_alone() -> None:
    torch.manual_seed(0)
    head = RAFFHead(ShapeSpec(channels=4, stride=4), post_convs=False)
    features = {"p2": torch.randn(2, 4, 4, 4)}
    none = roi_instances((16, 16), torch.zeros(0, 2, 4, 4), torch.zeros(0, 4))
    one = roi_instances((16, 16), torch.ones(1, 2, 4, 4), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    s_ins, losses = head(features, [none, one])
    f0 = head.f0(features["p2"])
    assert losses == {}
    torch.testing.assert_close(s_ins[0], f0[0])
    torch.testing.assert_close(s_ins[1], f0[1] * (1 + torch.tensor(1.0).sigmoid()))


@pytest.mark.parametrize(("key", "value"), [("mode", "sum"), ("channels", "both")])
def test_unknown_choice_names_the_key(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"FUSION.{key.upper()} '{value}' is not one of"):
        RAFFHead(ShapeSpec(channels=4, stride=4), **{key: value})
