"""The segmentation branch: it merges each object's crops of the five maps from coarse to fine ([OG] III-B, Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rois import LEVELS, Rois, crop, resize


class MaskedInstanceNorm(nn.Module):
    """Instance normalisation over an object's own cells.

    Args:
        channels: channels of the input.
        affine: learn scale and shift (paper); the released code does not.
    """

    def __init__(self, channels: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1)) if affine else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalise (k, C, M, N) where the mask (k, 1, M, N) is set. Values outside the mask are meaningless."""
        x = x.float()
        count = mask.sum((2, 3), keepdim=True)
        x = x - (x * mask).sum((2, 3), keepdim=True) / count
        variance = (x.square() * mask).sum((2, 3), keepdim=True) / count
        x = x * (variance + 1e-5).rsqrt()
        return x if self.weight is None or self.bias is None else x * self.weight + self.bias


class MaskedCombination(nn.Module):
    """:class:`~.backbone.Combination` with instance normalisation, for objects of different sizes.

    Args:
        coarse, fine: channels of the two inputs; the output has ``fine`` channels.
        affine: see :class:`MaskedInstanceNorm`.
    """

    def __init__(self, coarse: int, fine: int, affine: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(coarse, fine, 3, padding=1)
        self.reduce_norm = MaskedInstanceNorm(fine, affine)
        self.merge = nn.Conv2d(2 * fine, fine, 1)
        self.merge_norm = MaskedInstanceNorm(fine, affine)

    def forward(self, low: Tensor, low_sizes: Tensor, skip: Tensor, sizes: Tensor, mask: Tensor) -> Tensor:
        """Merge (k, coarse, m, n) into (k, fine, M, N), given the (k, 2) sizes of both and the mask of the finer."""
        low = resize(low, low_sizes, sizes, (skip.shape[2], skip.shape[3]))
        # Zeros around each object, as the padding of a convolution of a single object.
        low = F.relu(self.reduce_norm(self.reduce(low * mask), mask))
        return F.relu(self.merge_norm(self.merge(torch.cat([skip, low], dim=1)), mask)) * mask


class SegmentationBranch(nn.Module):
    """Turns crops of c1 .. c5 into the logits of each object's mask, at the resolution of the object.

    An object too small for a level starts with its raw crop of the next finer level.
    """

    def __init__(self, channels: Sequence[int], affine: bool = False) -> None:
        """
        Args:
            channels: channels of c1 .. c5.
            affine: see :class:`MaskedInstanceNorm`.
        """
        super().__init__()
        self.combine = nn.ModuleList(MaskedCombination(channels[i + 1], channels[i], affine) for i in range(LEVELS - 1))
        self.hidden = nn.Conv2d(channels[0], channels[0], 3, padding=1)
        self.predictor = nn.Conv2d(channels[0], 1, 3, padding=1)

    def forward(self, levels: Sequence[Sequence[Tensor]], rois: Rois) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Args:
            levels: for each of c1 .. c5 the maps (C, H, W) of the images.
            rois: the regions of the objects.

        Returns:
            Logits (k, M, N), and e1 (k, C1, M, N) and e2 (k, C2, M', N') for the refinement (e2 is None if no object
            reaches stride 2). Only an object's own cells are meaningful; in e1 and e2 the others are 0.
        """
        x: Tensor | None = None
        e2: Tensor | None = None
        for level in reversed(range(LEVELS)):
            if not bool(rois.shapes[level][0]):
                continue
            skip = crop(levels[level], rois, level)
            if x is not None:
                joins = torch.nonzero(rois.has(level + 1)).flatten()
                merged = self.combine[level](
                    x[joins],
                    rois.sizes[level + 1, joins],
                    skip[joins],
                    rois.sizes[level, joins],
                    rois.mask(level)[joins],
                )
                skip = skip.to(merged.dtype).index_copy(0, joins, merged)
            x = skip
            if level == 1:
                e2 = x
        assert x is not None  # the finest level is always there
        mask = rois.mask(0)
        logits = self.predictor(F.relu(self.hidden(x)) * mask)
        return logits[:, 0].float(), x, e2
