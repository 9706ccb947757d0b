"""The dual-modal mask head ([V2] Table 1 and Fig. 4; [P] uses it too) and the mask targets of a set of ROIs."""

from __future__ import annotations

import itertools
from math import gcd
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, cat, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import (
    BaseMaskRCNNHead,
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Instances
from torch import Tensor, nn

from pffnet_d2.errors import InputError

TRUNKS = ("paper", "release")


def conv_norm_relu(dim_in: int, dim_out: int, norm: str, stride: int = 1) -> Conv2d:
    """Build a 3x3 convolution, a norm and a ReLU. GroupNorm has gcd(32, ``dim_out``) groups."""
    groups = gcd(32, dim_out)
    layer = nn.GroupNorm(groups, dim_out) if norm == "GN" and groups < 32 else get_norm(norm, dim_out)
    conv = Conv2d(
        dim_in,
        dim_out,
        kernel_size=3,
        stride=stride,
        padding=1,
        bias=layer is None,
        norm=layer,
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return conv


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Turn (K, C * factor^2, h, w) into (K, C, h * factor, w * factor).

    ``nn.PixelShuffle`` has no gradient for K = 0.
    """
    k, c, h, w = x.shape
    c //= factor * factor
    x = x.view(k, c, factor, factor, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(k, c, h * factor, w * factor)


def mask_targets(instances: list[Instances], side: int) -> Tensor:
    """T: crop the true mask of each ROI to its proposal and resize it. Returns (K, side, side) float32, 0 or 1.

    Args:
        instances: one entry per image, with ``proposal_boxes`` and ``gt_masks`` (BitMasks; not needed for an image
            without ROIs).
    """
    crops = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side) for x in instances if len(x)]
    return torch.cat(crops).float() if crops else instances[0].proposal_boxes.tensor.new_zeros(0, side, side)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of (K, m, m) logits. If there are no ROIs, it is 0 and has a gradient of 0."""
    total = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    return total / max(targets.numel(), 1)


class BackgroundAndObject(BaseMaskRCNNHead):
    """Base of mask heads whose ``layers`` return (K, 2, m, m) logits: channel 0 background, channel 1 the object."""

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """Do what Detectron2 expects of a mask head, so that the head also works in ``StandardROIHeads``."""
        # Detectron2 takes the channel of the class. For class 0 that would be the background.
        foreground = self.layers(x)[:, 1:]
        if self.training:
            return {"loss_mask": mask_rcnn_loss(foreground, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(foreground, instances)
        return instances


@ROI_MASK_HEAD_REGISTRY.register()
class TwoChannelMaskHead(BackgroundAndObject, MaskRCNNConvUpsampleHead):
    """Mask R-CNN's head with a background channel. [V2]'s ablations without dual-modal masks fuse it (Table 3)."""

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "num_classes": 2}


@ROI_MASK_HEAD_REGISTRY.register()
class DualModalMaskHead(BackgroundAndObject):
    """M = spatial path + fully connected path: (K, 2, 2h, 2w) logits, channel 0 background, channel 1 the object.

    Spatial path: convolution, convolution to 4 * CONV_DIM, pixel shuffle by 2, 1x1 convolution to 2 channels.
    FC path: convolution, convolution to FC_PATH_DIM, one linear layer to a 2h x 2w map used for both channels.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_conv: int = 3,
        conv_dim: int = 256,
        fc_path_dim: int = 128,
        norm: str = "GN",
        trunk: str = "paper",
        fc_relu: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: channels, height h and width w of the ROI feature.
            num_conv: number of convolutions shared by both paths (paper 3, release 4).
            trunk, fc_relu: MODEL.ROI_MASK_HEAD.{TRUNK, FC_RELU}.
        """
        super().__init__(**kwargs)
        if trunk not in TRUNKS:
            raise InputError(f"MODEL.ROI_MASK_HEAD.TRUNK {trunk!r} is not one of {', '.join(TRUNKS)}")
        channels, height, width = input_shape.channels or 0, input_shape.height or 0, input_shape.width or 0
        dims = [channels] + [conv_dim] * num_conv
        self.shared = nn.ModuleList(conv_norm_relu(a, b, norm) for a, b in itertools.pairwise(dims))
        # In its place the release applies the last shared convolution a second time.
        self.spatial1 = conv_norm_relu(conv_dim, conv_dim, norm) if trunk == "paper" else None
        self.spatial2 = Conv2d(conv_dim, 4 * conv_dim, kernel_size=3, padding=1, activation=F.relu)
        self.predictor = Conv2d(conv_dim, 2, kernel_size=1)
        self.fc_path = nn.Sequential(
            conv_norm_relu(conv_dim, conv_dim, norm), conv_norm_relu(conv_dim, fc_path_dim, norm), nn.Flatten()
        )
        self.fc = nn.Linear(fc_path_dim * height * width, 4 * height * width)
        for layer in (self.spatial2, self.predictor):
            weight_init.c2_msra_fill(layer)
        weight_init.c2_xavier_fill(self.fc)
        self.fc_relu = fc_relu
        self.out_size = (2 * height, 2 * width)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_conv": head.NUM_CONV,
            "conv_dim": head.CONV_DIM,
            "fc_path_dim": head.FC_PATH_DIM,
            "norm": head.NORM,
            "trunk": head.TRUNK,
            "fc_relu": head.FC_RELU,
        }

    def layers(self, x: Tensor) -> Tensor:
        """Turn R (K, C, h, w) into the logits M (K, 2, 2h, 2w)."""
        for conv in self.shared:
            x = conv(x)
        spatial = (self.shared[-1] if self.spatial1 is None else self.spatial1)(x)
        u = self._upsampled(self.spatial2(spatial))
        v = self.fc(self.fc_path(x)).view(-1, 1, *self.out_size)
        return u + (v.relu() if self.fc_relu else v)

    def _upsampled(self, x: Tensor) -> Tensor:
        """Turn (K, 4 * CONV_DIM, h, w) into (K, 2, 2h, 2w): the pixel shuffle, then the 1x1 convolution.

        In prediction the convolution comes first, so that 2 channels are moved instead of CONV_DIM. Each of the four
        pixels that a cell becomes has its own copy of the weights, with zeros for the channels of the other three.
        """
        if self.training:
            return self.predictor(pixel_shuffle(x, 2))
        weight, bias = self.predictor.weight, self.predictor.bias
        own = weight[:, None, :, None] * torch.eye(4).to(weight)[:, None, :, None, None]
        return pixel_shuffle(F.conv2d(x, own.reshape(8, -1, 1, 1), bias.repeat_interleave(4)), 2)


def gt_areas(instances: list[Instances]) -> Tensor:
    """Return (K,) float32: the area in pixels of the whole object that each ROI is assigned to."""
    areas = [x.gt_masks.tensor.flatten(1).sum(1).float() for x in instances if len(x)]
    return cat(areas) if areas else instances[0].proposal_boxes.tensor.new_zeros(0)
