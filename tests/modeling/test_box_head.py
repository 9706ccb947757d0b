from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec

from pffnet_d2.modeling.box_head import FastRCNNFCNormHead


def test_group_norm_on_the_fully_connected_layers() -> None:
    """12,544 x 1024 and 1024 x 1024 without bias, two GroupNorms."""
    head = FastRCNNFCNormHead(ShapeSpec(channels=256, height=7, width=7), fc_dims=[1024, 1024])
    assert sum(p.numel() for p in head.parameters()) == 12_544 * 1024 + 1024 * 1024 + 2 * 2048
    assert head.output_shape.channels == 1024


def test_forward_and_no_rois() -> None:
    torch.manual_seed(0)
    head = FastRCNNFCNormHead(ShapeSpec(channels=4, height=3, width=3), fc_dims=[64])
    x = torch.randn(5, 4, 3, 3)
    linear, norm, _ = head.fcs[0]
    expected = torch.nn.functional.group_norm(x.flatten(1) @ linear.weight.T, 32, norm.weight, norm.bias).relu()
    torch.testing.assert_close(head(x), expected)
    none = head(torch.zeros(0, 4, 3, 3))
    assert none.shape == (0, 64)
    none.sum().backward()
    assert linear.weight.grad is not None
