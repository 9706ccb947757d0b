"""Batches of regions of interest of different sizes.

Objects of similar size are padded to one shape; masks mark the cells that belong to each object.

Geometry ([OG] III-B and its code): on the map of stride s, the box of an object, enlarged by ``expand``, is read at
n = int(w' / s) by m = int(h' / s) evenly spaced points, the first and the last on its border. A level where w' or h' is
below 2 is not used, nor are all coarser ones. The finest level is always used, with at least two points per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5
# Objects share a batch if their longest sides (pixels) lie between the same two of these edges. A batch has at most
# _CELLS cells of the finest level: with 64 channels a map of 2^18 cells takes 64 MB.
_EDGES = (16, 32, 48, 64, 96, 160)
_CELLS = 2**18


@dataclass(frozen=True)
class Rois:
    """k objects of similar size.

    Attributes:
        index: (k,) int64, the indices of the objects among those given; ordered by image.
        image: k image numbers, ascending.
        boxes: (k, 4) cx, cy, w', h' in pixels; w' and h' are enlarged.
        sizes: (LEVELS, k, 2) int64, n and m; 0 where the level is not used.
        shapes: (M, N) of each level, the largest m and n.
    """

    index: Tensor
    image: list[int]
    boxes: Tensor
    sizes: Tensor
    shapes: list[tuple[int, int]]

    def has(self, level: int) -> Tensor:
        """Return (k,) bool: the objects that use the level."""
        return self.sizes[level, :, 0] > 0

    def mask(self, level: int) -> Tensor:
        """Return (k, 1, M, N) bool: the cells that belong to each object."""
        rows, columns = self.shapes[level]
        n, m = self.sizes[level].unbind(1)
        inside_x = torch.arange(columns, device=n.device) < n[:, None]
        inside_y = torch.arange(rows, device=n.device) < m[:, None]
        return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]

    def points(self, level: int) -> tuple[Tensor, Tensor]:
        """Return x (k, N) and y (k, M) of the cells, in cells of the level's map. They continue beyond n and m."""
        boxes = self.boxes / 2**level
        axes = []
        for axis, count in enumerate(reversed(self.shapes[level])):
            steps = (self.sizes[level, :, axis] - 1).clamp(min=1)
            start = boxes[:, axis] - boxes[:, 2 + axis] / 2
            step = boxes[:, 2 + axis] / steps
            axes.append(start[:, None] + step[:, None] * torch.arange(count, device=boxes.device))
        return axes[0], axes[1]

    def by_image(self) -> list[tuple[int, slice]]:
        """Return the image numbers and the slices of their objects."""
        starts = [i for i, image in enumerate(self.image) if i == 0 or image != self.image[i - 1]]
        return [
            (self.image[start], slice(start, end))
            for start, end in zip(starts, [*starts[1:], len(self.image)], strict=True)
        ]


def group(centres: Sequence[Tensor], *, expand: float, fixed: int | None = None) -> list[Rois]:
    """Group the objects of a batch of images into batches of similar size.

    Args:
        centres: for each image (K, 4) cx, cy, w, h in pixels; ``Rois.index`` counts the objects of all images.
        expand: factor on w and h.
        fixed: None: every object has its own size; otherwise all have ``fixed`` >> level points per side, at least two.
    """
    if not sum(map(len, centres)):
        return []
    device = centres[0].device
    # In double precision on the CPU: shapes must be known here, and int() must not depend on the device.
    boxes = torch.cat([each.detach() for each in centres]).cpu().double()
    image = torch.cat([torch.full((len(each),), i) for i, each in enumerate(centres)])
    boxes[:, 2:] *= expand
    extents = boxes[:, 2:] / 2 ** torch.arange(LEVELS)[:, None, None]
    if fixed is None:
        sizes = extents.long() * (extents >= 2).all(2, keepdim=True)
        sizes[0] = extents[0].long().clamp(min=2)
    else:
        sides = torch.tensor([max(2, fixed >> level) for level in range(LEVELS)])
        sizes = sides[:, None, None].expand(LEVELS, len(boxes), 2)

    longest = sizes[0].amax(1)
    bucket = torch.bucketize(longest, torch.tensor(_EDGES))
    groups = []
    for number in bucket.unique().tolist():
        own = torch.nonzero(bucket == number).flatten()
        own = own[longest[own].argsort(stable=True)]
        n, m = sizes[0, own].amax(0).tolist()
        for part in own.split(max(1, _CELLS // (n * m))):
            part = part.sort().values  # by image
            shapes = [(m, n) for n, m in sizes[:, part].amax(1).tolist()]
            groups.append(
                Rois(
                    index=part.to(device),
                    image=image[part].tolist(),
                    boxes=boxes[part].float().to(device),
                    sizes=sizes[:, part].to(device),
                    shapes=shapes,
                )
            )
    return groups


def crop(maps: Sequence[Tensor], rois: Rois, level: int) -> Tensor:
    """Read a level's map (C, H, W) of every image at the objects' points: (k, C, M, N), 0 outside map and object."""
    x, y = rois.points(level)
    parts = []
    for image, own in rois.by_image():
        height, width = maps[image].shape[-2:]
        grid = _grid(x[own], y[own], height, width)
        # Stack all objects of an image vertically, so that the map is not copied for each.
        read = F.grid_sample(maps[image][None], grid.flatten(0, 1)[None], align_corners=True)[0]
        parts.append(read.unflatten(1, grid.shape[:2]).transpose(0, 1))
    return torch.cat(parts) * rois.mask(level)


def crop_masks(masks: Sequence[Tensor], numbers: Tensor, rois: Rois) -> Tensor:
    """Read binary masks at the objects' finest points (bilinear), which gives their soft truth.

    Args:
        masks: for each image (K, H, W) bool.
        numbers: (k,) int64, the index of each object's mask in its image.

    Returns:
        (k, M, N) float32 in [0, 1], 0 outside image and object.
    """
    x, y = rois.points(0)
    parts = []
    for image, own in rois.by_image():
        height, width = masks[image].shape[-2:]
        read = x.new_zeros(len(x[own]), y.shape[1], x.shape[1])
        for rows, row_weight in _neighbours(y[own], height):
            for columns, column_weight in _neighbours(x[own], width):
                value = masks[image][numbers[own][:, None, None], rows[:, :, None], columns[:, None, :]]
                read = read + value * row_weight[:, :, None] * column_weight[:, None, :]
        parts.append(read)
    return torch.cat(parts) * rois.mask(0)[:, 0]


def _neighbours(positions: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two cells around each position and their weights; cells outside have weight 0."""
    low = positions.floor()
    result = []
    for cell, weight in ((low, low + 1 - positions), (low + 1, positions - low)):
        inside = (cell >= 0) & (cell <= length - 1)
        result.append((cell.clamp(0, length - 1).long(), weight * inside))
    return result


def resize(low: Tensor, from_sizes: Tensor, to_sizes: Tensor, to_shape: tuple[int, int]) -> Tensor:
    """Resize the cells of each object, as ``F.interpolate`` (bilinear, align_corners False) does for a single object.

    Args:
        low: (k, C, m, n).
        from_sizes, to_sizes: (k, 2) n, m of each object before and after.
        to_shape: (M, N) of the result.

    Returns:
        (k, C, M, N); values outside of an object's own cells are meaningless.
    """
    axes = []
    for axis, count in enumerate(reversed(to_shape)):
        before, after = from_sizes[:, axis, None], to_sizes[:, axis, None]
        position = (torch.arange(count, device=low.device) + 0.5) * before / after - 0.5
        axes.append(torch.minimum(position.clamp(min=0), before - 1))
    return F.grid_sample(low, _grid(axes[0], axes[1], *low.shape[-2:]), align_corners=True)


def read_points(x: Tensor, sizes: Tensor, points: Tensor) -> Tensor:
    """Read values at points. A point is given as fractions of the distance from an object's first cell to its last.

    Args:
        x: (k, C, M, N).
        sizes: (k, 2) n, m.
        points: (k, P, 2) x, y in [0, 1].

    Returns:
        (k, C, P).
    """
    position = points * (sizes - 1)[:, None]
    scale = position.new_tensor([max(x.shape[3] - 1, 1), max(x.shape[2] - 1, 1)])
    return F.grid_sample(x, (2 * position / scale - 1)[:, :, None], align_corners=True)[..., 0]


def read_patches(patches: Tensor, rois: Rois, frames: Tensor, side: int) -> Tensor:
    """Read patches of the finest level at the cells of other frames, by inverse mapping.

    Args:
        patches: (k, M, N), 0 outside the objects' cells.
        frames: (k, 4) XYXY in Detectron2's continuous pixels.
        side: cells per side.

    Returns:
        (k, side, side), bilinear, fading to 0 outside the patch.
    """
    low = rois.boxes[:, :2] - rois.boxes[:, 2:] / 2
    centres = (torch.arange(side, device=frames.device) + 0.5) / side
    axes = []
    for axis in (0, 1):
        pixel = frames[:, axis, None] + centres * (frames[:, 2 + axis] - frames[:, axis])[:, None] - 0.5
        steps = (rois.sizes[0, :, axis] - 1) / rois.boxes[:, 2 + axis]
        axes.append((pixel - low[:, axis, None]) * steps[:, None])
    return F.grid_sample(patches[:, None], _grid(axes[0], axes[1], *patches.shape[1:]), align_corners=True)[:, 0]


def _grid(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Turn positions x (k, N) and y (k, M) in cells into (k, M, N, 2) for grid_sample with align_corners."""
    x, y = 2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1
    shape = (len(x), y.shape[1], x.shape[1])
    return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
