from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances

from pffnet_d2.modeling.mask_head import DualModalMaskHead, gt_areas, mask_loss, mask_targets, pixel_shuffle

PAPER_SHAPE = ShapeSpec(channels=256, height=14, width=14)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("trunk", "num_conv"), [("paper", 3), ("release", 4)])
def test_parameters_at_the_papers_widths(trunk: str, num_conv: int) -> None:
    """Trunk 2.36 M, FC path 20.56 M (19.67 M of it in the FC), spatial path 2.36 M: 25.28 M, in both forms."""
    head = DualModalMaskHead(PAPER_SHAPE, trunk=trunk, num_conv=num_conv)
    conv = 256 * 256 * 9 + 2 * 256
    trunk_size = parameters(head.shared) + (0 if head.spatial1 is None else parameters(head.spatial1))
    assert trunk_size == 4 * conv == 2_361_344
    assert parameters(head.fc) == 25_088 * 784 + 784 == 19_669_776
    assert parameters(head.fc_path) + parameters(head.fc) == 20_555_280
    assert parameters(head.spatial2) + parameters(head.predictor) == 2_360_834
    assert parameters(head) == 25_277_458


@pytest.mark.parametrize("trunk", ["paper", "release"])
@pytest.mark.parametrize("fc_relu", [False, True])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_layers_are_the_tables_steps(trunk: str, fc_relu: bool, k: int) -> None:
    """[V2] Table 1, step by step with torch's own operations."""
    torch.manual_seed(0)
    shape = ShapeSpec(channels=8, height=6, width=6)
    head = DualModalMaskHead(shape, conv_dim=32, fc_path_dim=16, trunk=trunk, fc_relu=fc_relu)
    r = torch.randn(k, 8, 6, 6, requires_grad=True)
    t = r
    for conv in head.shared:
        t = conv(t)
    again = head.shared[-1] if trunk == "release" else head.spatial1
    u = head.predictor(torch.nn.functional.pixel_shuffle(head.spatial2(again(t)), 2))
    v = torch.nn.functional.linear(head.fc_path(t), head.fc.weight, head.fc.bias)
    v = (torch.relu(v) if fc_relu else v).reshape(k, 1, 12, 12).repeat(1, 2, 1, 1)
    m = head.layers(r)
    assert m.shape == (k, 2, 12, 12)
    torch.testing.assert_close(m, u + v)
    m.sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_two_channels_of_mask_rcnns_head(compact_cfg: Callable) -> None:
    """Detectron2's layers plus a second channel. Detectron2's loss and masks use only the channel of the object."""
    shape = ShapeSpec(channels=64, height=14, width=14)
    torch.manual_seed(0)
    upstream = build_mask_head(compact_cfg("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"), shape).eval()
    two = build_mask_head(compact_cfg("MODEL.ROI_MASK_HEAD.NAME", "TwoChannelMaskHead"), shape).eval()
    state = upstream.state_dict()
    for name in ("predictor.weight", "predictor.bias"):
        state[name] = torch.cat([-state[name], state[name]])
    two.load_state_dict(state)
    x = torch.randn(3, 64, 14, 14)
    torch.testing.assert_close(two.layers(x), upstream.layers(x) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1))
    masks = [
        head(x, [Instances((8, 8), pred_classes=torch.zeros(3, dtype=torch.int64))])[0].pred_masks
        for head in (two, upstream)
    ]
    torch.testing.assert_close(*masks)


def test_pixel_shuffle_is_torchs() -> None:
    x = torch.randn(3, 8, 2, 5)
    assert torch.equal(pixel_shuffle(x, 2), torch.nn.functional.pixel_shuffle(x, 2))


def test_unknown_trunk() -> None:
    with pytest.raises(ValueError, match=r"ROI_MASK_HEAD.TRUNK 'v2' is not one of paper, release"):
        DualModalMaskHead(PAPER_SHAPE, trunk="v2")


def rois(masks: torch.Tensor, boxes: list[list[float]]) -> Instances:
    return Instances(tuple(masks.shape[1:]), proposal_boxes=Boxes(torch.tensor(boxes)), gt_masks=BitMasks(masks))


def test_targets_crop_the_truth_to_the_proposal() -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 8:16, 8:16] = True
    masks[1, 0:4, 0:32] = True
    with_objects = rois(masks, [[8.0, 8.0, 24.0, 24.0], [0.0, 0.0, 8.0, 8.0]])
    empty = Instances((32, 32), proposal_boxes=Boxes(torch.zeros(0, 4)))  # without gt_masks, as Detectron2 makes it
    targets = mask_targets([empty, with_objects], 8)
    assert targets.shape == (2, 8, 8)
    expected = torch.zeros(2, 8, 8)
    expected[0, :4, :4] = 1
    expected[1, :4] = 1
    assert torch.equal(targets, expected)
    assert gt_areas([empty, with_objects]).tolist() == [64.0, 128.0]
    assert mask_targets([empty], 8).shape == (0, 8, 8)
    assert gt_areas([empty]).shape == (0,)


def test_mask_loss_by_hand_and_without_rois() -> None:
    logits = torch.tensor([[[0.0, 2.0]]], requires_grad=True)
    loss = mask_loss(logits, torch.tensor([[[1.0, 0.0]]]))
    assert loss.item() == pytest.approx((math.log(2) + 2 + math.log1p(math.exp(-2))) / 2, rel=1e-6)
    none = torch.zeros(0, 4, 4, requires_grad=True)
    mask_loss(none, torch.zeros(0, 4, 4)).backward()
    assert none.grad is not None
