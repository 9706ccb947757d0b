"""The mask quality head of [P] III-D: it rates a predicted mask from the ROI feature and the mask itself."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from pffnet_d2.errors import InputError

from .box_head import fc_norm_relu
from .mask_head import conv_norm_relu

ROI_MASK_QUALITY_HEAD_REGISTRY = Registry("ROI_MASK_QUALITY_HEAD")
ROI_MASK_QUALITY_HEAD_REGISTRY.__doc__ = """
Heads that score masks. They are called with (ROI feature (K, C, h, w), mask probability (K, 1, 2h, 2w)) and return
(K,).
"""

RESHAPES = ("space_to_depth", "view", "max_pool")


def mask_to_channels(mask: Tensor, how: str) -> Tensor:
    """Turn (K, 1, 2h, 2w) into (K, 4 or 1, h, w); see MODEL.ROI_MASK_QUALITY_HEAD.RESHAPE."""
    k, _, height, width = mask.shape
    h, w = height // 2, width // 2
    if how == "view":
        return mask.reshape(k, 4, h, w)
    blocks = mask.view(k, h, 2, w, 2).permute(0, 2, 4, 1, 3).reshape(k, 4, h, w)
    return blocks if how == "space_to_depth" else blocks.amax(1, keepdim=True)


def quality_target(mask_logits: Tensor, targets: Tensor, gt_areas: Tensor, box_areas: Tensor) -> Tensor:
    """Mean of IoU and Dice of each predicted mask with its whole object ([P] Eq. 3). (K,) in [0, 1], no gradient.

    Both are counted in cells of the ROI. The area of the whole object, which may extend beyond the ROI, is converted
    into cells as in Mask Scoring R-CNN: A = (area of the object) * (cells per pixel of the proposal), but at least the
    object's cells inside the ROI.

    Args:
        mask_logits: (K, m, m), the predicted masks P = logits > 0.
        targets: (K, m, m) of 0 and 1, the truth inside the proposals.
        gt_areas: (K,) pixels of the whole objects.
        box_areas: (K,) pixels of the proposals.
    """
    with torch.no_grad():
        predicted = (mask_logits > 0).flatten(1).float()
        truth = targets.flatten(1)
        cells = truth.shape[1]
        whole = torch.maximum(gt_areas * cells / box_areas.clamp(min=1e-6), truth.sum(1))
        intersection = (predicted * truth).sum(1)
        both = (predicted.sum(1) + whole).clamp(min=1)
        iou = intersection / (both - intersection).clamp(min=1)
        dice = 2 * intersection / both
        return 0.5 * iou + 0.5 * dice


def quality_loss(quality: Tensor, target: Tensor) -> Tensor:
    """Mean of (s_qua - target)^2 / 2 over the ROIs with a positive target; 0 if no ROI has one."""
    counts = (target > 0).float()
    return (counts * 0.5 * (quality.float() - target).square()).sum() / counts.sum().clamp(min=1)


@ROI_MASK_QUALITY_HEAD_REGISTRY.register()
class MaskQualityHead(nn.Module):
    """Convolutions (the last with stride 2), two fully connected layers, and an output in (0, 1) ([P] Table I)."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_conv: int = 4,
        conv_dim: int = 256,
        fc_dim: int = 1024,
        norm: str = "GN",
        reshape: str = "space_to_depth",
        sigmoid: bool = True,
    ) -> None:
        """
        Args:
            input_shape: channels, height h and width w of the ROI feature; the mask is 2h x 2w.
            reshape, sigmoid: MODEL.ROI_MASK_QUALITY_HEAD.{RESHAPE, SIGMOID}.
        """
        super().__init__()
        if reshape not in RESHAPES:
            raise InputError(f"MODEL.ROI_MASK_QUALITY_HEAD.RESHAPE {reshape!r} is not one of {', '.join(RESHAPES)}")
        channels, height, width = input_shape.channels or 0, input_shape.height or 0, input_shape.width or 0
        dims = [channels + (1 if reshape == "max_pool" else 4)] + [conv_dim] * num_conv
        self.convs = nn.Sequential(
            *(
                conv_norm_relu(a, b, norm, stride=2 if i == num_conv - 1 else 1)
                for i, (a, b) in enumerate(itertools.pairwise(dims))
            )
        )
        flat = conv_dim * ((height + 1) // 2) * ((width + 1) // 2)
        self.fcs = nn.Sequential(fc_norm_relu(flat, fc_dim, norm), fc_norm_relu(fc_dim, fc_dim, norm))
        self.predictor = nn.Linear(fc_dim, 1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)
        self.reshape = reshape
        self.sigmoid = sigmoid

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_QUALITY_HEAD
        return {
            "input_shape": input_shape,
            "num_conv": head.NUM_CONV,
            "conv_dim": head.CONV_DIM,
            "fc_dim": head.FC_DIM,
            "norm": cfg.MODEL.ROI_MASK_HEAD.NORM,
            "reshape": head.RESHAPE,
            "sigmoid": head.SIGMOID,
        }

    def forward(self, roi_features: Tensor, mask_probabilities: Tensor) -> Tensor:
        """Compute s_qua (K,) from R (K, C, h, w) and sigmoid(M) (K, 1, 2h, 2w). Both receive a gradient."""
        mask = mask_to_channels(mask_probabilities.to(roi_features.dtype), self.reshape)
        quality = self.predictor(self.fcs(self.convs(torch.cat([roi_features, mask], 1)).flatten(1)))[:, 0]
        return quality.sigmoid() if self.sigmoid else quality


def build_mask_quality_head(cfg: Any, input_shape: ShapeSpec) -> nn.Module | None:
    """Build the head named by MODEL.ROI_MASK_QUALITY_HEAD.NAME. Returns None if the name is empty."""
    name = cfg.MODEL.ROI_MASK_QUALITY_HEAD.NAME
    return ROI_MASK_QUALITY_HEAD_REGISTRY.get(name)(cfg, input_shape) if name else None
