"""The GCN decoder of the semantic branch ([P] III-B, [V2] 3.2; Peng et al., Large Kernel Matters, CVPR 2017)."""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from pffnet_d2.errors import InputError

KERNEL = 5  # [V2] 3.2 reduces the original kernel to 5 to save memory


def conv3x3(channels_in: int, channels_out: int, norm: str, activation: Any = None) -> Conv2d:
    """Build a 3x3 convolution that keeps the size, with a norm and an activation. With a norm it has no bias."""
    conv = Conv2d(
        channels_in,
        channels_out,
        kernel_size=3,
        padding=1,
        bias=norm == "",
        norm=get_norm(norm, channels_out),
        activation=activation,
    )
    (weight_init.c2_xavier_fill if activation is None else weight_init.c2_msra_fill)(conv)
    return conv


class GlobalConvolution(nn.Module):
    """A dense k x k receptive field from two separable paths: k x 1 then 1 x k, and 1 x k then k x 1."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = KERNEL) -> None:
        super().__init__()
        tall = {"kernel_size": (kernel, 1), "padding": (kernel // 2, 0)}
        wide = {"kernel_size": (1, kernel), "padding": (0, kernel // 2)}
        self.left = nn.Sequential(Conv2d(channels_in, channels_out, **tall), Conv2d(channels_out, channels_out, **wide))
        self.right = nn.Sequential(
            Conv2d(channels_in, channels_out, **wide), Conv2d(channels_out, channels_out, **tall)
        )
        for conv in (*self.left, *self.right):
            weight_init.c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class BoundaryRefinement(nn.Module):
    """x + conv3x3(conv3x3(x)), each normalised. MODEL.SEM_SEG_HEAD.GCN_RELU adds a ReLU between them."""

    def __init__(self, channels: int, norm: str, relu: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels, norm, F.relu if relu else None)
        self.conv2 = conv3x3(channels, channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


@SEM_SEG_HEADS_REGISTRY.register()
class GCNHead(nn.Module):
    """S_sem: from res2 .. res5 to class logits at the input's resolution.

    Coarse to fine, x_5 = B(G(res5)) and x_l = B(B(G(res_l)) + up(x_{l+1})); then a 1x1 classifier at the finest level
    and nearest upsampling by ``common_stride``.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dim: int = 64,
        norm: str = "GN",
        relu: bool = False,
        common_stride: int = 4,
        loss_weight: float = 0.1,
        ignore_value: int = 255,
    ) -> None:
        """
        Args:
            input_shape: the maps to read, in any order; the finest must have stride ``common_stride``.
            num_classes: channels of S_sem (background and the objects' class: 2).
            relu: MODEL.SEM_SEG_HEAD.GCN_RELU.
            loss_weight: alpha_1 of [P] Eq. 5.
            ignore_value: target value of pixels without truth (padding).
        """
        super().__init__()
        # From the coarsest level to the finest.
        self.in_features = sorted(input_shape, key=lambda name: -(input_shape[name].stride or 0))
        if input_shape[self.in_features[-1]].stride != common_stride:
            raise InputError(f"GCNHead: the finest of {self.in_features} must have stride {common_stride}")
        self.global_convs = nn.ModuleDict()
        self.level_refinements = nn.ModuleDict()
        self.merge_refinements = nn.ModuleDict()
        for i, name in enumerate(self.in_features):
            self.global_convs[name] = GlobalConvolution(input_shape[name].channels or 0, conv_dim)
            self.level_refinements[name] = BoundaryRefinement(conv_dim, norm, relu)
            if i > 0:
                self.merge_refinements[name] = BoundaryRefinement(conv_dim, norm, relu)
        self.predictor = Conv2d(conv_dim, num_classes, kernel_size=1)
        weight_init.c2_xavier_fill(self.predictor)
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES: MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has no "
                f"{', '.join(missing)}; set MODEL.BACKBONE.NAME build_pffnet_resnet_fpn_backbone"
            )
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "conv_dim": head.CONVS_DIM,
            "norm": head.NORM,
            "relu": head.GCN_RELU,
            "common_stride": head.COMMON_STRIDE,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits (N, num_classes, H / common_stride, W / common_stride)."""
        coarsest, *finer = self.in_features
        x = self.level_refinements[coarsest](self.global_convs[coarsest](features[coarsest]))
        for name in finer:
            level = self.level_refinements[name](self.global_convs[name](features[name]))
            x = self.merge_refinements[name](level + F.interpolate(x, size=level.shape[-2:], mode="nearest"))
        return self.predictor(x)

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            features: the backbone's maps by name.
            targets: (N, H, W) int64 classes, ``ignore_value`` for pixels without truth; training only.

        Returns:
            S_sem, logits (N, num_classes, H, W), and ``{"loss_sem_seg": ...}`` if targets were given.
        """
        logits = F.interpolate(self.layers(features), scale_factor=float(self.common_stride), mode="nearest")
        if targets is None:
            return logits, {}
        loss = F.cross_entropy(logits.float(), targets, ignore_index=self.ignore_value)
        return logits, {"loss_sem_seg": loss * self.loss_weight}
