"""Rearranged networks compute what they did before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from pffnet_d2.config import config_path, read_config
from pffnet_d2.modeling.backbone_lite import EfficientNetLite
from pffnet_d2.modeling.fast_form import ActivatedConv, ChannelNorm, lay_out, rearrange
from pffnet_d2.modeling.mask_head import DualModalMaskHead
from pffnet_d2.modeling.roi_masks import Unpasted
from pffnet_d2.modeling.roi_pooling import RowPooler

Config = Callable[..., CfgNode]
Batch = Callable[..., list[dict[str, Any]]]


def with_statistics(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, its batch norms as if they had been trained."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                values.uniform_(low, high)
    return network.eval()


def rearranged(network: nn.Module) -> Any:
    other = copy.deepcopy(network)
    rearrange(other)
    return other


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
@pytest.mark.parametrize("bias", [False, True])
def test_folded_norms(norm: Callable[[int], nn.Module], bias: bool) -> None:
    conv = Conv2d(4, 6, 3, padding=1, bias=bias, norm=norm(6), activation=torch.relu)
    network = with_statistics(nn.Sequential(conv))
    fast = rearranged(network)
    assert fast[0].norm is None
    assert fast[0].bias is not None
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(fast(x), network(x), rtol=1e-5, atol=1e-5)


def test_group_norms_stay() -> None:
    network = nn.Sequential(Conv2d(4, 8, 3, padding=1, bias=False, norm=nn.GroupNorm(4, 8))).eval()
    x = torch.randn(2, 4, 9, 9)
    fast = rearranged(network)
    assert isinstance(fast[0].norm, nn.GroupNorm)
    torch.testing.assert_close(fast(x), network(x))


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_norms_of_single_channels(count: int, offset: float) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    network = nn.Sequential(Conv2d(4, 8, 3, norm=norm, activation=torch.relu)).eval()
    nn.init.constant_(network[0].bias, offset)
    fast = rearranged(network)
    assert isinstance(fast[0].norm, ChannelNorm)
    x = torch.randn(count, 4, 9, 9)
    torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-4)
    rearrange(network, autocast=True)
    assert isinstance(network[0].norm, nn.GroupNorm)


def test_a_norm_of_a_constant_map_is_its_bias() -> None:
    """Rounding makes its variance slightly negative."""
    norm = nn.GroupNorm(8, 8)
    nn.init.constant_(norm.bias, 2.0)
    x = torch.full((3, 8, 14, 14), 1000.1)
    torch.testing.assert_close(ChannelNorm(norm)(x), torch.full_like(x, 2.0), rtol=0, atol=0.1)


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_efficientnet_lite(version: int, joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of 3 and 5 pixels with stride 2 are padded in another way, on sides that are odd multiples of 32 too."""
    pytest.importorskip("timm", reason="timm is not installed")
    if joined and not ActivatedConv.available():
        pytest.skip("this torch has no convolution with an activation")
    monkeypatch.setattr(ActivatedConv, "available", lambda: joined)
    network = with_statistics(EfficientNetLite(version, frozen_norms=True))
    fast = rearranged(network)
    assert any(isinstance(module, nn.ReLU6) for module in fast.modules()) != joined
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(type(module).__name__ == "Conv2dSame" for module in fast.modules())
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        before, after = network(x), fast(x)
    for found, expected in zip(after.values(), before.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("lite", [False, True], ids=["resnet", "lite"])
def test_a_whole_network(compact_cfg: Config, make_batch: Batch, lite: bool) -> None:
    if lite:
        pytest.importorskip("timm", reason="timm is not installed")
    everything = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "30"]
    lite_yaml = str(config_path("Base-PFFNet-Lite.yaml"))
    cfg = read_config(lite_yaml, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *everything]) if lite else None
    network = with_statistics(build_model(cfg or compact_cfg(*everything)))
    fast = rearranged(network)
    assert isinstance(fast.roi_heads.box_pooler, RowPooler)
    assert isinstance(fast.roi_heads.mask_pooler, RowPooler)
    inputs = make_batch((96, 128, 3), (96, 128, 0))
    with torch.no_grad():
        for found, expected in zip(Unpasted(fast)(inputs), Unpasted(network)(inputs), strict=True):
            a, b = found["instances"], expected["instances"]
            assert len(a) == len(b) > 3
            # Random weights score many boxes alike; their order may change.
            torch.testing.assert_close(a.scores.sort().values, b.scores.sort().values, rtol=1e-4, atol=1e-4)
            nearest = (a.pred_boxes.tensor[:, None] - b.pred_boxes.tensor).abs().amax(2).min(1)
            assert float(nearest.values.max()) < 0.01
            difference = (a.pred_masks - b.pred_masks[nearest.indices]).abs()
            assert float(difference.max()) < 1e-2


@pytest.mark.parametrize("lite", [False, True], ids=["resnet", "lite"])
def test_training_in_another_layout(compact_cfg: Config, make_batch: Batch, lite: bool) -> None:
    if lite:
        pytest.importorskip("timm", reason="timm is not installed")
    lite_yaml = str(config_path("Base-PFFNet-Lite.yaml"))
    cfg = read_config(lite_yaml, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]) if lite else compact_cfg()
    torch.manual_seed(0)
    network = build_model(cfg).train()
    other = copy.deepcopy(network)
    lay_out(other)
    assert isinstance(other.roi_heads.box_pooler, RowPooler)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())
    inputs = make_batch((96, 128, 3), (96, 128, 2))
    losses = []
    for each in (network, other):
        torch.manual_seed(1)  # the choice of the ROIs
        with EventStorage():
            losses.append(each(inputs))
        sum(losses[-1].values()).backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)
    # Rounding switches a few activations on or off, and random weights pass that on: to other weights by a factor of
    # 1 + 1e-7 the gradient answers with as much.
    before, after = (torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (network, other))
    assert torch.cosine_similarity(before, after, dim=0) > 0.99


def head(**options: Any) -> DualModalMaskHead:
    from detectron2.layers import ShapeSpec

    torch.manual_seed(0)
    shape = ShapeSpec(channels=8, height=6, width=6)
    return DualModalMaskHead(shape, conv_dim=8, fc_path_dim=4, loss_weight=1.0, vis_period=0, **options)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_mask_head_in_both_modes(count: int) -> None:
    """Prediction convolves before it shuffles pixels, training after it."""
    mask_head = head(norm="GN")
    nn.init.normal_(mask_head.predictor.bias)
    x: Tensor = torch.randn(count, 8, 6, 6)
    trained, predicted = mask_head.train().layers(x), mask_head.eval().layers(x)
    assert predicted.shape == (count, 2, 12, 12)
    torch.testing.assert_close(predicted, trained)
