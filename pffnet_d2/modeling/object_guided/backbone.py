"""The detection trunk: an encoder brought back to stride 4, and the two shallow maps beside it ([OG] Fig. 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from torch import Tensor, nn

from pffnet_d2.errors import InputError
from pffnet_d2.modeling.backbone_lite import EfficientNetLite, NormedMaps, build_efficientnet_lite

LEVELS = ("c1", "c2", "c3", "c4", "c5")  # of stride 1, 2, 4, 8, 16


class Combination(nn.Module):
    """A coarse map brought to the next finer level and joined with what is there: resize, 3x3, norm, ReLU, concatenate
    (fine first), 1x1, norm, ReLU.

    Args:
        coarse, fine: channels of the two inputs; the output has ``fine``.
        norm: of ``detectron2.layers.get_norm``.
    """

    def __init__(self, coarse: int, fine: int, norm: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(coarse, fine, 3, padding=1)
        self.reduce_norm = get_norm(norm, fine)
        self.merge = nn.Conv2d(2 * fine, fine, 1)
        self.merge_norm = get_norm(norm, fine)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        """(N, coarse, h, w) and (N, fine, H, W) to (N, fine, H, W)."""
        low = F.interpolate(low, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        low = F.relu(self.reduce_norm(self.reduce(low)))
        return F.relu(self.merge_norm(self.merge(torch.cat([skip, low], dim=1))))


class ObjectGuidedBackbone(Backbone):
    """c1 (two convolutions on the image), c2 (the encoder's map of stride 2) and the decoder's c3, c4, c5, which are
    both the detection head's input and the guidance of the segmentation branch.

    Strides 1, 2, 4, 8, 16; with ResNet-50 64, 64, 256, 512, 1024 channels. The encoder's last stage (stride 32) only
    feeds the decoder.
    """

    def __init__(self, bottom_up: Backbone, stem_channels: int, channels: int, norm: str) -> None:
        """
        Args:
            bottom_up: the encoder, with res2 .. res5. The names of its weights stay those of the files of weights.
            stem_channels: of c2.
            channels: of c1.
            norm: of the decoder's combination modules.
        """
        super().__init__()
        self.bottom_up = bottom_up
        self.shallow = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()
        )
        shape = bottom_up.output_shape()
        widths = [shape[name].channels for name in ("res2", "res3", "res4", "res5")]
        self.combine = nn.ModuleList(Combination(widths[i + 1], widths[i], norm) for i in range(3))
        self._out_features = list(LEVELS)
        self._out_feature_strides = {name: 2**i for i, name in enumerate(LEVELS)}
        self._out_feature_channels = dict(zip(LEVELS, [channels, stem_channels, *widths[:3]], strict=True))

    @property
    def size_divisibility(self) -> int:
        return 32

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps of stride 2, 4, 8, 16 and 32."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) with H and W multiples of 32 to {"c1": (N, C, H, W), ..., "c5": (N, C, H / 16, W / 16)}."""
        c2, *encoded = self.encode(x)
        level = encoded[-1]
        decoded = []
        for combine, skip in zip(reversed(self.combine), reversed(encoded[:-1]), strict=True):
            level = combine(level, skip)
            decoded.append(level)
        c5, c4, c3 = decoded
        return dict(zip(LEVELS, [self.shallow(x), c2, c3, c4, c5], strict=True))


class ObjectGuidedResNet(ObjectGuidedBackbone):
    """On a ResNet; c2 is its first convolution before pooling."""

    bottom_up: ResNet

    def encode(self, x: Tensor) -> list[Tensor]:
        # The stem by its parts, for the map before its pooling.
        c2 = F.relu(self.bottom_up.stem.conv1(x))
        maps, stage = [c2], F.max_pool2d(c2, kernel_size=3, stride=2, padding=1)
        for name in self.bottom_up.stage_names:
            stage = getattr(self.bottom_up, name)(stage)
            maps.append(stage)
        return maps


class ObjectGuidedLite(ObjectGuidedBackbone):
    """On an EfficientNet-Lite, each of its maps normed first."""

    def __init__(self, bottom_up: EfficientNetLite, channels: int, norm: str) -> None:
        widths = {name: spec.channels for name, spec in bottom_up.output_shape().items()}
        super().__init__(bottom_up, widths["res1"], channels, norm)
        self.maps = NormedMaps(widths)

    def encode(self, x: Tensor) -> list[Tensor]:
        return list(self.maps(self.bottom_up(x)).values())


@BACKBONE_REGISTRY.register()
def build_object_guided_backbone(cfg: Any, input_shape: ShapeSpec) -> ObjectGuidedResNet:
    """From MODEL.RESNETS (ResNet-18 and -34 of any width RES2_OUT_CHANNELS) and MODEL.OBJECT_GUIDED."""
    own, resnet = cfg.MODEL.OBJECT_GUIDED, _resnet(cfg, input_shape)
    return ObjectGuidedResNet(resnet, resnet.stem.out_channels, own.SHALLOW_CHANNELS, own.NORM)


@BACKBONE_REGISTRY.register()
def build_object_guided_lite_backbone(cfg: Any, input_shape: ShapeSpec) -> ObjectGuidedLite:
    """From MODEL.EFFICIENTNET_LITE and MODEL.OBJECT_GUIDED; takes the weights ``package://efficientnet-lite0``."""
    own = cfg.MODEL.OBJECT_GUIDED
    return ObjectGuidedLite(build_efficientnet_lite(cfg), own.SHALLOW_CHANNELS, own.NORM)


def _resnet(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    resnets = cfg.MODEL.RESNETS
    if list(resnets.OUT_FEATURES) != ["res2", "res3", "res4", "res5"]:
        raise InputError("MODEL.RESNETS.OUT_FEATURES: ObjectGuided needs [res2, res3, res4, res5]")
    if resnets.DEPTH not in (18, 34) or resnets.RES2_OUT_CHANNELS == 64:
        return build_resnet_backbone(cfg, input_shape)
    # Upstream builds these two with 64 channels only.
    stages = []
    before, width = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    for i, blocks in enumerate({18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[resnets.DEPTH]):
        strides = [1 if i == 0 else 2] + [1] * (blocks - 1)
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=strides,
                in_channels=before,
                out_channels=width,
                norm=resnets.NORM,
            )
        )
        before, width = width, 2 * width
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
