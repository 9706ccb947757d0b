"""EfficientNet-Lite: its maps, its frozen norms, and every network of the family on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

pytest.importorskip("timm", reason="timm is not installed")

import timm

from pffnet_d2.config import config_path, read_config
from pffnet_d2.errors import InputError
from pffnet_d2.modeling.backbone_lite import EfficientNetLite
from pffnet_d2.modeling.object_guided.backbone import LEVELS

CHANNELS = {0: [16, 24, 40, 112, 320], 1: [16, 24, 40, 112, 320], 2: [16, 24, 48, 120, 352]}


def config(*options: str) -> CfgNode:
    """The small PFFNet on lite0 without weights, as narrow as possible."""
    return read_config(
        str(config_path("Base-PFFNet-Lite.yaml")), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *options]
    )


@pytest.mark.parametrize("version", [0, 1, 2])
def test_maps(version: int) -> None:
    net = EfficientNetLite(version, frozen_norms=True).eval()
    maps = net(torch.randn(1, 3, 64, 96))
    assert list(maps) == ["res1", "res2", "res3", "res4", "res5"]
    shape = net.output_shape()
    for i, (name, channels) in enumerate(zip(maps, CHANNELS[version], strict=True)):
        assert maps[name].shape == (1, channels, 32 >> i, 48 >> i)
        assert (shape[name].channels, shape[name].stride) == (channels, 2 << i)


def test_maps_are_timms() -> None:
    """The maps equal the features of timm's complete classifier with the same weights, so no activation is missing."""
    net = EfficientNetLite(0, frozen_norms=True).eval()
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(net.net.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    _, expected = whole.forward_intermediates(x)
    for ours, theirs in zip(net(x).values(), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_frozen_norms_stay_as_they_are_in_training() -> None:
    net = EfficientNetLite(0, frozen_norms=True)
    before = {name: value.clone() for name, value in net.state_dict().items() if "bn" in name}
    for mode in (True, False, True):
        net.train(mode)
        assert not any(norm.training for norm in net._norms())
    sum(x.square().mean() for x in net(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for norm in net._norms() for p in norm.parameters())
    assert net.net.conv_stem.weight.grad is not None


def test_norms_are_trained_only_without_weights() -> None:
    assert not build_backbone(config()).bottom_up.frozen_norms
    assert build_backbone(config("MODEL.WEIGHTS", "package://efficientnet-lite0")).bottom_up.frozen_norms


@pytest.mark.parametrize(("freeze_at", "stages"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 5), (6, 7)])
def test_freeze_at(freeze_at: int, stages: int) -> None:
    net = EfficientNetLite(0, frozen_norms=False, freeze_at=freeze_at).net
    learns = [any(p.requires_grad for p in stage.parameters()) for stage in net.blocks]
    assert learns == [False] * stages + [True] * (7 - stages)
    assert net.conv_stem.weight.requires_grad is (freeze_at == 0)


def test_pyramid_returns_normalised_maps() -> None:
    backbone = build_backbone(config()).eval()
    x = torch.randn(1, 3, 64, 96)
    features = backbone(x)
    assert set(features) == {"res2", "res3", "res4", "res5", "p2", "p3", "p4", "p5", "p6"}
    for name, spec in backbone.output_shape().items():
        if name in features:
            assert features[name].shape[1:] == (spec.channels, -(-64 // spec.stride), -(-96 // spec.stride))
    raw = backbone.bottom_up(x)["res3"]
    expected = torch.nn.functional.group_norm(raw, 8, eps=1e-5).relu()  # initially its scale is 1 and its shift 0
    assert torch.allclose(features["res3"], expected, atol=1e-6)


def test_unknown_version() -> None:
    with pytest.raises(InputError, match=r"EFFICIENTNET_LITE\.VERSION 3: give one of 0, 1, 2"):
        build_backbone(config("MODEL.EFFICIENTNET_LITE.VERSION", "3"))


def step(model: Any) -> Any:
    """The instances found in an image on which one training step was taken."""
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 20:40, 20:40] = True
    truth = Instances((64, 64), gt_boxes=Boxes([[20.0, 20, 40, 40]]), gt_classes=torch.zeros(1, dtype=torch.int64))
    truth.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with EventStorage():
        losses = model.train()([{"image": image, "instances": truth, "sem_seg": masks[0].long()}])
    sum(losses.values()).backward()
    assert model.backbone.bottom_up.net.conv_stem.weight.grad.abs().sum() > 0
    (result,) = model.eval()([{"image": image, "height": 64, "width": 64}])
    return result["instances"]


@pytest.mark.parametrize("method", ["", "MaskRCNN_GN", "CellRCNN", "CellRCNN_V2"])
def test_methods_train_and_predict_on_it(method: str) -> None:
    cfg = config("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8")
    if method:
        cfg.merge_from_file(str(config_path(f"methods/{method}.yaml")), allow_unsafe=False)
        cfg.merge_from_file(str(config_path("backbones/EfficientNet_Lite0.yaml")), allow_unsafe=False)
        cfg.MODEL.WEIGHTS = ""
    torch.manual_seed(0)
    assert step(build_model(cfg)).has("pred_masks")


def test_object_guided_trains_and_predicts_on_it() -> None:
    """And its trunk has the names that ImageNet's weights are loaded by."""
    part = str(config_path("backbones/ObjectGuided_EfficientNet_Lite0.yaml"))
    given = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.OBJECT_GUIDED.SCORE_THRESH_TEST", "0.0"]
    cfg = read_config(
        str(config_path("dsb2018/ObjectGuided_R18_compact.yaml")),
        [*given, "INPUT.SQUARE.TRAIN", "0", "INPUT.SQUARE.TEST", "0"],
        [part],
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    shape = model.backbone.output_shape()
    assert [(shape[name].stride, shape[name].channels) for name in LEVELS] == [
        (1, 16),
        (2, 16),
        (4, 24),
        (8, 40),
        (16, 112),
    ]
    assert step(model).has("pred_masks")
    names = {f"backbone.bottom_up.{name}" for name in EfficientNetLite(0, frozen_norms=False).state_dict()}
    assert names <= set(model.state_dict())
