"""Detectron2's RPN for images with many small objects: each object is compared only with the anchors it overlaps."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor


@PROPOSAL_GENERATOR_REGISTRY.register()
class SparseRPN(RPN):
    """Detectron2's RPN with the same weights and, for every object with an area inside the image, the same labels.

    Detectron2 makes a matrix of all objects x all anchors. With 1000 objects on 512 x 512 pixels these are 65 million
    overlaps, nearly all of them zero; they take ten times as long as the rest of the network on a CPU, and more than
    the memory of a GPU. Anchors lie on grids, so the anchors that an object overlaps are a window of each grid. Only
    these pairs are compared, and time and memory are proportional to their number.
    """

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> Any:
        """As upstream."""
        self.widths: list[int] = [features[name].shape[-1] for name in self.in_features]
        return super().forward(images, features, gt_instances)

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what Detectron2 returns for each image: the labels (R,) of the anchors (-1 ignored, 0 background,
        1 object) and the boxes (R, 4) of the objects they belong to."""
        every = Boxes.cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for instances in gt_instances:
            truth: Tensor = instances.gt_boxes.tensor
            matches, labels = self._match(anchors, every.tensor, truth)
            if self.anchor_boundary_thresh >= 0:
                labels[~every.inside_box(instances.image_size, self.anchor_boundary_thresh)] = -1
            gt_labels.append(self._subsample_labels(labels))
            matched_gt_boxes.append(truth[matches] if len(truth) else torch.zeros_like(every.tensor))
        return gt_labels, matched_gt_boxes

    def _match(self, anchors: list[Boxes], every: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Do what Detectron2's ``Matcher`` does, on pairs: find the object each anchor overlaps most, and its label."""
        anchor, gt = self._pairs([level.tensor for level in anchors], truth)
        # The same arithmetic as in detectron2.structures.pairwise_iou, so that equal overlaps stay equal.
        a, b = every[anchor], truth[gt]
        inner = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
        overlap = torch.where(inner > 0, inner / (_area(b) + _area(a) - inner), inner.new_zeros(()))

        # No boolean indices: each would wait for the device.
        best = overlap.new_zeros(len(every)).scatter_reduce(0, anchor, overlap, "amax")
        candidate = torch.where(overlap == best[anchor], gt, len(truth))
        matches = gt.new_full((len(every),), len(truth)).scatter_reduce(0, anchor, candidate, "amin")
        matches = torch.where(best > 0, matches, 0)  # without overlap Detectron2 returns the first object

        matcher = self.anchor_matcher
        labels = matches.new_ones(len(every), dtype=torch.int8)
        for label, low, high in zip(matcher.labels, matcher.thresholds[:-1], matcher.thresholds[1:], strict=True):
            labels = torch.where((best >= low) & (best < high), label, labels)
        if matcher.allow_low_quality_matches:
            # The anchors that overlap an object most belong to it, however small the overlap is.
            highest = overlap.new_zeros(len(truth)).scatter_reduce(0, gt, overlap, "amax")
            own = ((overlap == highest[gt]) & (overlap > 0)).to(labels.dtype)
            labels = torch.where(torch.zeros_like(labels).scatter_reduce(0, anchor, own, "amax") > 0, 1, labels)
        return matches, labels

    def _pairs(self, anchors: list[Tensor], truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices (T,) of anchors, over all levels, and (T,) of objects: at least all pairs that overlap."""
        device, objects = truth.device, max(len(truth), 1)
        shapes: list[int] = self.anchor_generator.num_anchors  # at each cell of a level
        widths = self.widths
        heights = [len(a) // (n * w) for a, n, w in zip(anchors, shapes, widths, strict=True)]
        starts = [0, *accumulate(len(a) for a in anchors)][:-1]

        # From here on, a row is one shape of one level.
        per_level = torch.tensor(
            [*zip(widths, heights, self.anchor_generator.strides, shapes, starts, strict=True)], device=device
        )
        rows = per_level.repeat_interleave(per_level[:, 3], dim=0, output_size=sum(shapes))
        width, height, stride, count, start = rows.unbind(1)
        start = start + torch.cat([torch.arange(n, device=device) for n in shapes])
        box = torch.cat([a[:n] for a, n in zip(anchors, shapes, strict=True)])  # in the first cell

        def window(axis: int, cells: Tensor) -> tuple[Tensor, Tensor]:
            """Return the first cell and the number of cells along x (0) or y (1), each (rows, objects)."""
            low = ((truth[:, axis] - box[:, None, axis + 2]) / stride[:, None]).floor().clamp(min=0)
            high = ((truth[:, axis + 2] - box[:, None, axis]) / stride[:, None]).ceil() + 1
            high = torch.minimum(high, cells[:, None].to(high.dtype))
            return low.long().flatten(), (high - low).clamp(min=0).long().flatten()

        left, columns = window(0, width)
        top, lines = window(1, height)
        size = columns * lines
        pair = torch.arange(len(size), device=device).repeat_interleave(size)
        table = torch.stack([size.cumsum(0) - size, columns, left, top], dim=1)
        before, columns, left, top = table.index_select(0, pair).unbind(1)
        rank = torch.arange(len(pair), device=device) - before
        y = torch.div(rank, columns, rounding_mode="floor")
        x = rank - y * columns
        row = torch.div(pair, objects, rounding_mode="floor")
        width, count, start = torch.stack([width, count, start], dim=1).index_select(0, row).unbind(1)
        return start + ((top + y) * width + left + x) * count, pair - row * objects


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
