"""Auxiliary feature refinement: in training, uncertain points of each mask add a loss on e1 and e2 ([OG] III-C).

It does not run at prediction. A mask's prediction is never replaced by that of a point.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pffnet_d2.errors import InputError

from .rois import Rois, read_points


class PointRefinement(nn.Module):
    """Two 1 x 1 convolutions that classify points, one from e1 (or e2) alone and one from both.

    For an object of H x W cells, k N points are drawn uniformly, N = H W // D. The int(beta N) most uncertain points
    are kept.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        *,
        divisor: int = 8,
        oversample: float = 3.0,
        keep: float = 0.75,
        heads: str = "code",
        uncertainty: str = "map_first",
    ) -> None:
        """
        Args:
            channels: channels of e1 and e2.
            divisor: D.
            oversample: k.
            keep: beta, at most k.
            heads: "code": {e1} and {e1, e2}; "figure": {e2} and {e1, e2}.
            uncertainty: "map_first" (code): -|2 p - 1| is computed on the map and then interpolated; "sample_first": it
                is computed from the interpolated p, which also finds sharp edges.
        """
        super().__init__()
        if heads not in ("code", "figure"):
            raise InputError(f"MODEL.OBJECT_GUIDED.REFINE.HEADS {heads!r} is unknown; use code or figure")
        if uncertainty not in ("map_first", "sample_first"):
            raise InputError(
                f"MODEL.OBJECT_GUIDED.REFINE.UNCERTAINTY {uncertainty!r} is unknown; use map_first or sample_first"
            )
        if not 0 < keep <= oversample:
            raise InputError(f"MODEL.OBJECT_GUIDED.REFINE: BETA {keep} must be above 0 and at most K {oversample}")
        self.single = nn.Conv1d(channels[0 if heads == "code" else 1], 1, 1)
        self.both = nn.Conv1d(sum(channels), 1, 1)
        self.divisor, self.oversample, self.keep = divisor, oversample, keep
        self.on_e1 = heads == "code"
        self.map_first = uncertainty == "map_first"

    def forward(
        self, logits: Tensor, e1: Tensor, e2: Tensor | None, truth: Tensor, rois: Rois, points: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            logits, e1, e2: the output of :class:`~.segmentation.SegmentationBranch`.
            truth: (k, M, N) soft labels.
            rois: the regions of the same objects.
            points: (k, P, 2) fractions x, y; the first of them are each object's candidates. None draws them.

        Returns:
            (k, 2) float: for each object the summed cross-entropy of its points from one map and from both maps. (k, 2)
            int64: the number of points; 0 if an object has no points or no map of stride 2.
        """
        area = rois.sizes[0].prod(1) // self.divisor
        kept = (self.keep * area).long()
        # Ignore objects without points, or without the map.
        sums = [logits.new_zeros(len(logits))] * 2
        counts = [kept.new_zeros(len(logits))] * 2
        if not bool(kept.any()):
            return torch.stack(sums, dim=1), torch.stack(counts, dim=1)
        if points is None:
            most = int(self.oversample * (rois.shapes[0][0] * rois.shapes[0][1] // self.divisor))
            points = torch.rand(len(logits), most, 2, device=logits.device)
        candidates = (self.oversample * area).long()
        points = self._uncertain(logits.detach(), points, candidates, int(kept.max()), rois)
        label = read_points(truth[:, None], rois.sizes[0], points)
        valid = torch.arange(points.shape[1], device=points.device) < kept[:, None]

        at_e1 = read_points(e1.float(), rois.sizes[0], points)
        inputs = [(self.single, at_e1, valid)] if self.on_e1 else []
        if e2 is not None:
            at_e2 = read_points(e2.float(), rois.sizes[1].clamp(min=1), points)
            on_both = valid & rois.has(1)[:, None]
            inputs += [] if self.on_e1 else [(self.single, at_e2, on_both)]
            inputs += [(self.both, torch.cat([at_e1, at_e2], dim=1), on_both)]
        for column, (head, features, counted) in enumerate(inputs):
            loss = F.binary_cross_entropy_with_logits(head(features).float(), label, reduction="none")[:, 0]
            sums[column], counts[column] = (loss * counted).sum(1), counted.sum(1)
        return torch.stack(sums, dim=1), torch.stack(counts, dim=1)

    def _uncertain(self, logits: Tensor, points: Tensor, candidates: Tensor, most: int, rois: Rois) -> Tensor:
        """Return (k, most, 2): the candidates of each object, the most uncertain first."""
        probability = logits.sigmoid()[:, None]
        if self.map_first:
            # Cells outside of an object are read only with weight 0.
            doubt = read_points(-(2 * probability - 1).abs(), rois.sizes[0], points)[:, 0]
        else:
            doubt = -(2 * read_points(probability, rois.sizes[0], points)[:, 0] - 1).abs()
        given = torch.arange(points.shape[1], device=points.device) < candidates[:, None]
        doubt = doubt.masked_fill(~given, -2.0)
        best = doubt.topk(most, dim=1).indices
        return points.gather(1, best[:, :, None].expand(-1, -1, 2))
