"""ResNet-FPN that hands on the ResNet's own maps beside the pyramid's: one pass for both branches."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor


class ResNetFPN(FPN):
    """Detectron2's FPN (same parameters under the same names) that also returns its ``in_features`` res2 .. res5.

    The instance branch reads p2 .. p6, the GCN decoder res2 .. res5 ([P] III-B). The released code runs the ResNet
    twice for this.
    """

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """The maps of ``in_features``, which the pyramid is built on and the GCN decoder reads."""
        features: dict[str, Tensor] = self.bottom_up(x)
        return features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) with H and W multiples of 32 to maps of stride 4 .. 32 (res*, p2 .. p5) and 64 (p6)."""
        features = self.encode(x)
        pyramid: list[Tensor] = []
        level: Tensor | None = None
        # From the coarsest level down, as upstream orders its convolutions.
        names = reversed(self.in_features)
        for name, lateral, output in zip(names, self.lateral_convs, self.output_convs, strict=True):
            merged = lateral(features[name])
            if level is not None:
                merged = merged + F.interpolate(level, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    merged = merged / 2
            level = merged
            pyramid.insert(0, output(level))
        if self.top_block is not None:
            source = dict(zip(self._out_features, pyramid, strict=False)).get(self.top_block.in_feature)
            pyramid.extend(self.top_block(features[self.top_block.in_feature] if source is None else source))
        return {**features, **dict(zip(self._out_features, pyramid, strict=True))}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {**self.bottom_up.output_shape(), **super().output_shape()}


@BACKBONE_REGISTRY.register()
def build_pffnet_resnet_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNetFPN:
    """ResNetFPN from MODEL.RESNETS and MODEL.FPN, with P6 a subsampled P5 as in Detectron2."""
    return ResNetFPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
