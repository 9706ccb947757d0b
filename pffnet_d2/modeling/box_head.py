"""The box head of [P]: two fully connected layers with GroupNorm. Detectron2's head normalises only convolutions."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from torch import Tensor, nn


def fc_norm_relu(dim_in: int, dim_out: int, norm: str) -> nn.Sequential:
    """Build a linear layer, a norm (GroupNorm accepts (K, C)) and a ReLU. The norm replaces the bias."""
    linear = nn.Linear(dim_in, dim_out, bias=norm == "")
    weight_init.c2_xavier_fill(linear)
    return nn.Sequential(linear, get_norm(norm, dim_out) or nn.Identity(), nn.ReLU())


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNFCNormHead(nn.Module):
    """Flatten, then NUM_FC layers of Linear + NORM + ReLU, each of width FC_DIM (MODEL.ROI_BOX_HEAD)."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, fc_dims: list[int], norm: str = "GN") -> None:
        super().__init__()
        dims = [prod((input_shape.channels or 1, input_shape.height or 1, input_shape.width or 1)), *fc_dims]
        self.fcs = nn.Sequential(*(fc_norm_relu(a, b, norm) for a, b in itertools.pairwise(dims)))
        self._output_shape = ShapeSpec(channels=dims[-1])

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {"input_shape": input_shape, "fc_dims": [head.FC_DIM] * head.NUM_FC, "norm": head.NORM}

    @property
    def output_shape(self) -> ShapeSpec:
        return self._output_shape

    def forward(self, x: Tensor) -> Tensor:
        """Turn ROI features (K, C, h, w) into (K, FC_DIM)."""
        return self.fcs(x.flatten(1))
