"""The semantic map of the instance branch: F_0 from P2, the fusion of the masks, S_ins and its loss ([P] III-C)."""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from pffnet_d2.errors import InputError

from .fusion import MODES, fuse
from .mask_head import pixel_shuffle

FEATURE_FUSION_HEAD_REGISTRY = Registry("FEATURE_FUSION_HEAD")
FEATURE_FUSION_HEAD_REGISTRY.__doc__ = """
Heads that fuse instances into a semantic map. They are called with (features, instances, targets) and return
(S_ins (N, classes, H, W), losses).
"""

CHANNELS = ("foreground", "per_channel")


class UpsampledConv(nn.Conv2d):
    """conv3x3(nearest upsampling by ``scale``), computed at the coarse resolution with the same parameters and values.

    A fine pixel of phase p (0 .. scale-1) under the tap t (-1, 0, 1) reads the coarse pixel floor((p + t) / scale), so
    each phase is a 3x3 convolution of the coarse map whose taps are sums of the kernel's. The input is scale^2 times
    smaller than the upsampled one. Zero padding gives the same values in both.
    """

    def __init__(self, channels_in: int, channels_out: int, scale: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self)
        self.scale = scale
        phase, tap = torch.arange(scale)[:, None], torch.arange(-1, 2)[None]
        coarse = torch.div(phase + tap, scale, rounding_mode="floor")
        landing = F.one_hot(coarse + 1, 3).float()  # (phase, fine tap, coarse tap)
        self.register_buffer("landing", landing, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (N, C, h, w) into (N, channels_out, h * scale, w * scale)."""
        weight = torch.einsum("ocij,pik,qjl->opqckl", self.weight, self.landing, self.landing)
        bias = None if self.bias is None else self.bias.repeat_interleave(self.scale**2)
        return pixel_shuffle(F.conv2d(x, weight.flatten(0, 2), bias, padding=1), self.scale)


@FEATURE_FUSION_HEAD_REGISTRY.register()
class RAFFHead(nn.Module):
    """F_0 = conv3x3(nearest upsampling of P2); F_K = fuse(F_0, M, B); S_ins = F_K or conv1x1(ReLU(conv3x3(ReLU(F_K)))).

    Mode ``residual_attention`` is the residual attention feature fusion of [P]; ``replacement`` is the fusion of Cell
    R-CNN V2.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int = 2,
        mode: str = "residual_attention",
        detach: bool = False,
        channels: str = "foreground",
        post_convs: bool = True,
        loss_weight: float = 0.1,
        ignore_value: int = 255,
        in_feature: str = "p2",
    ) -> None:
        """
        Args:
            input_shape: channels and stride of ``in_feature``.
            mode, detach, channels, post_convs, loss_weight: MODEL.PFFNET.FUSION.
            ignore_value: target value of pixels without truth.
        """
        super().__init__()
        for key, value, known in (("MODE", mode, MODES), ("CHANNELS", channels, CHANNELS)):
            if value not in known:
                raise InputError(f"MODEL.PFFNET.FUSION.{key} {value!r} is not one of {', '.join(known)}")
        if channels == "foreground" and not post_convs and mode in ("replacement", "summation"):
            raise InputError(
                f"MODEL.PFFNET.FUSION.CHANNELS foreground: {mode} writes the same values into both classes, so that "
                "without POST_CONVS their softmax ignores the masks; set MODEL.PFFNET.FUSION.CHANNELS per_channel"
            )
        self.f0 = UpsampledConv(input_shape.channels or 0, num_classes, input_shape.stride or 1)
        self.post = nn.Sequential()
        if post_convs:
            conv3, conv1 = Conv2d(num_classes, num_classes, 3, padding=1), Conv2d(num_classes, num_classes, 1)
            weight_init.c2_xavier_fill(conv3)
            weight_init.c2_xavier_fill(conv1)
            self.post = nn.Sequential(nn.ReLU(), conv3, nn.ReLU(), conv1)
        self.mode = mode
        self.detach = detach
        self.channels = channels
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        self.in_feature = in_feature

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        fusion = cfg.MODEL.PFFNET.FUSION
        in_feature = cfg.MODEL.ROI_HEADS.IN_FEATURES[0]
        return {
            "input_shape": input_shape[in_feature],
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "mode": fusion.MODE,
            "detach": fusion.DETACH,
            "channels": fusion.CHANNELS,
            "post_convs": fusion.POST_CONVS,
            "loss_weight": fusion.LOSS_WEIGHT,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "in_feature": in_feature,
        }

    def forward(
        self, features: dict[str, Tensor], instances: list[Instances], targets: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            features: contains ``in_feature``, (N, C, H / stride, W / stride).
            instances: one entry per image, with ``mask_logits`` (k, 2 or 1, m, m) and ``fusion_boxes`` (k, 4) in
                pixels of the network's input, in the order in which they are written.
            targets: (N, H, W) int64 classes; training only.

        Returns:
            S_ins, logits (N, num_classes, H, W), and ``{"loss_sem_seg_fusion": ...}`` if targets were given.
        """
        f0 = self.f0(features[self.in_feature]).float()
        logits = torch.cat([x.mask_logits for x in instances])
        if self.channels == "foreground":
            logits = logits[:, -1:]
        if self.detach:
            logits = logits.detach()
        boxes = torch.cat([x.fusion_boxes for x in instances])
        batch_index = torch.cat([torch.full((len(x),), i, device=boxes.device) for i, x in enumerate(instances)])
        # A product of probabilities, and the values computed from it, leave the range of float16.
        with torch.autocast(f0.device.type, enabled=False):
            s_ins = self.post(fuse(f0, logits, boxes, batch_index, self.mode))
        if targets is None:
            return s_ins, {}
        loss = F.cross_entropy(s_ins.float(), targets, ignore_index=self.ignore_value)
        return s_ins, {"loss_sem_seg_fusion": loss * self.loss_weight}


def build_feature_fusion_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Build the head named by MODEL.PFFNET.FUSION.NAME. Returns None if the name is empty."""
    name = cfg.MODEL.PFFNET.FUSION.NAME
    return FEATURE_FUSION_HEAD_REGISTRY.get(name)(cfg, input_shape) if name else None
