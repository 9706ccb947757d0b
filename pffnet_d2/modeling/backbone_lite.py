"""EfficientNet-Lite with a feature pyramid: small, fast on CPUs, ImageNet weights from the package index."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from pffnet_d2.errors import InputError

from .backbone import ResNetFPN

GROUPS = 8  # of the norms on its maps: the number of channels of each is a multiple of it


def architecture(version: int) -> str:
    """timm's name of EfficientNet-Lite ``version``: 0, 1 or 2 are those whose weights the package index has."""
    return f"tf_efficientnet_lite{version}"


def create_timm_model(name: str, **options: Any) -> nn.Module:
    """``timm.create_model`` with random weights.

    Raises:
        InputError: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"MODEL.BACKBONE.NAME: {name} needs timm; type: pip install timm") from error
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


class EfficientNetLite(Backbone):
    """timm's EfficientNet-Lite, which returns its maps of stride 2 .. 32 as res1 .. res5.

    Each map is the output of a linear bottleneck, without an activation. The input is RGB, (grey value - 127) / 128.
    """

    def __init__(self, version: int, *, frozen_norms: bool, freeze_at: int = 0) -> None:
        """
        Args:
            version: 0, 1 or 2.
            frozen_norms: batch norms keep the statistics, scale and shift of the weights, in training too. They hold
                timm's activations, and so cannot be replaced by Detectron2's FrozenBatchNorm2d.
            freeze_at: MODEL.BACKBONE.FREEZE_AT: no gradient for the stem (1) and for what makes res1 (2), res2 (3), ...
        """
        super().__init__()
        net: Any = create_timm_model(architecture(version), features_only=True, out_indices=(0, 1, 2, 3, 4))
        self.net = net
        self.frozen_norms = frozen_norms
        info = net.feature_info
        names = [f"res{i}" for i in range(1, 6)]
        self._out_features = names
        self._out_feature_channels = dict(zip(names, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(names, info.reduction(), strict=True))
        if frozen_norms:
            for norm in self._norms():
                norm.requires_grad_(False)
        # How many of timm's stages make each map.
        ends = [int(name.rpartition(".")[2]) + 1 for name in info.module_name()]
        frozen = [net.conv_stem, net.bn1] if freeze_at else []
        if freeze_at > 1:
            frozen += net.blocks[: ends[min(freeze_at, 6) - 2]]
        for module in frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.net.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> EfficientNetLite:
        super().train(mode)
        if self.frozen_norms:
            for norm in self._norms():
                norm.eval()
        return self

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) with H and W multiples of 32 to {"res1": (N, C, H / 2, W / 2), ..., "res5": ...}."""
        return dict(zip(self._out_features, self.net(x), strict=True))


class NormedMaps(nn.Module):
    """A group norm and a ReLU on each map of a backbone whose maps have neither."""

    def __init__(self, channels: dict[str, int]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.GroupNorm(GROUPS, count) for name, count in channels.items()})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps by name, as many channels and pixels as they came with; those without a norm are left out."""
        return {name: F.relu(norm(features[name])) for name, norm in self.norms.items()}


class EfficientNetLiteFPN(ResNetFPN):
    """The pyramid on res2 .. res5 of an EfficientNet-Lite, each normed first; returns these maps and p2 .. p6."""

    def __init__(self, bottom_up: EfficientNetLite, in_features: list[str], **options: Any) -> None:
        super().__init__(bottom_up, in_features, **options)
        shape = bottom_up.output_shape()
        # Not below bottom_up: weights of ImageNet have all that is there.
        self.maps = NormedMaps({name: shape[name].channels for name in in_features})

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.maps(super().encode(x))
        return maps


def build_efficientnet_lite(cfg: Any) -> EfficientNetLite:
    """From MODEL.EFFICIENTNET_LITE and MODEL.BACKBONE.FREEZE_AT; the norms learn only where MODEL.WEIGHTS is empty."""
    return EfficientNetLite(
        cfg.MODEL.EFFICIENTNET_LITE.VERSION,
        frozen_norms=bool(cfg.MODEL.WEIGHTS),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> EfficientNetLiteFPN:
    """EfficientNetLiteFPN from MODEL.EFFICIENTNET_LITE and MODEL.FPN, with P6 a subsampled P5 as in Detectron2."""
    return EfficientNetLiteFPN(
        build_efficientnet_lite(cfg),
        cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
