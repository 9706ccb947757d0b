from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_the_pyramid_equals_detectron2s_under_the_same_names(compact_cfg: Callable, fuse_type: str) -> None:
    torch.manual_seed(0)
    options = ("MODEL.FPN.FUSE_TYPE", fuse_type)
    ours = build_backbone(compact_cfg(*options)).eval()
    upstream = build_backbone(compact_cfg(*options, "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")).eval()
    assert isinstance(upstream, FPN)
    upstream.load_state_dict(ours.state_dict())  # strict: the same names and shapes
    x = torch.randn(2, 3, 64, 96)
    features, pyramid = ours(x), upstream(x)
    for name, expected in pyramid.items():
        assert torch.equal(features[name], expected)
    for name, expected in upstream.bottom_up(x).items():
        assert torch.equal(features[name], expected)
    assert set(features) == set(pyramid) | {"res2", "res3", "res4", "res5"}
    for name, spec in ours.output_shape().items():
        assert features[name].shape[1] == spec.channels
        assert features[name].shape[-1] == -(-96 // spec.stride)
