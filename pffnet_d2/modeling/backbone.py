"""A ResNet-FPN that returns the ResNet's own maps as well as the pyramid's, so that one pass serves both branches."""

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

    The instance branch reads p2 .. p6, and the GCN decoder reads res2 .. res5 ([P] III-B). The released code runs the
    ResNet twice to get both.
    """

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of ``in_features``. The pyramid is built on them, and the GCN decoder reads them."""
        features: dict[str, Tensor] = self.bottom_up(x)
        return features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Turn (N, 3, H, W), H and W multiples of 32, into maps of stride 4 .. 32 (res*, p2 .. p5) and 64 (p6)."""
        features = self.encode(x)
        pyramid: list[Tensor] = []
        level: Tensor | None = None
        # From the coarsest level to the finest, the order in which Detectron2 stores its convolutions.
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
    """Build a ResNetFPN from MODEL.RESNETS and MODEL.FPN. As in Detectron2, P6 is P5 subsampled."""
    return ResNetFPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
