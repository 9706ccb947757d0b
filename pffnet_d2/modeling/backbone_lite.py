"""EfficientNet-Lite with a feature pyramid. It is small and fast on CPUs; the package index has ImageNet weights."""

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

GROUPS = 8  # of the group norms on the maps; the number of channels of each map is a multiple of it


def architecture(version: int) -> str:
    """Return timm's name of EfficientNet-Lite ``version``. The package index has weights of versions 0, 1 and 2."""
    return f"tf_efficientnet_lite{version}"


def create_timm_model(name: str, **options: Any) -> nn.Module:
    """Call ``timm.create_model``, with random weights.

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

    Each map is the output of a linear bottleneck, without an activation. The input is RGB: (grey value - 127) / 128.
    """

    def __init__(self, version: int, *, frozen_norms: bool, freeze_at: int = 0) -> None:
        """
        Args:
            version: 0, 1 or 2.
            frozen_norms: keep the statistics, scale and shift of the batch norms as the weights file has them, in
                training too. timm's batch norms contain the activations, so Detectron2's FrozenBatchNorm2d cannot
                replace them.
            freeze_at: MODEL.BACKBONE.FREEZE_AT. From 1 the stem has no gradient; from 2 the stages up to res1, from 3
                those up to res2, and so on.
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
        # The number of timm's stages up to each map.
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
        """Turn (N, 3, H, W), H and W multiples of 32, into {"res1": (N, C, H / 2, W / 2), ..., "res5": ...}."""
        return dict(zip(self._out_features, self.net(x), strict=True))


class NormedMaps(nn.Module):
    """A group norm and a ReLU for each map of a backbone whose maps have neither."""

    def __init__(self, channels: dict[str, int]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.GroupNorm(GROUPS, count) for name, count in channels.items()})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the normalised maps by name, in the same shapes. Maps without a norm are not returned."""
        return {name: F.relu(norm(features[name])) for name, norm in self.norms.items()}


class EfficientNetLiteFPN(ResNetFPN):
    """A pyramid on the normalised maps res2 .. res5 of an EfficientNet-Lite. Returns these maps and p2 .. p6."""

    def __init__(self, bottom_up: EfficientNetLite, in_features: list[str], **options: Any) -> None:
        super().__init__(bottom_up, in_features, **options)
        shape = bottom_up.output_shape()
        # Not part of bottom_up, because the ImageNet weights contain every parameter of bottom_up and not these.
        self.maps = NormedMaps({name: shape[name].channels for name in in_features})

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.maps(super().encode(x))
        return maps


def build_efficientnet_lite(cfg: Any) -> EfficientNetLite:
    """Build the network of MODEL.EFFICIENTNET_LITE. Its batch norms are trained only if MODEL.WEIGHTS is empty."""
    return EfficientNetLite(
        cfg.MODEL.EFFICIENTNET_LITE.VERSION,
        frozen_norms=bool(cfg.MODEL.WEIGHTS),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> EfficientNetLiteFPN:
    """Build the pyramid of MODEL.EFFICIENTNET_LITE and MODEL.FPN. As in Detectron2, P6 is P5 subsampled."""
    return EfficientNetLiteFPN(
        build_efficientnet_lite(cfg),
        cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
