"""Objects as points: heatmap, size and offset maps at stride 4, their targets, losses and decoding ([OG] III-A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pffnet_d2.errors import InputError

STRIDE = 4
# The number of objects whose Gaussians are drawn at a time: 64 maps of 128 x 128 take 4 MB.
_CHUNK = 64


def to_centres(boxes: Tensor) -> Tensor:
    """Convert Detectron2's boxes (K, 4) XYXY to cx, cy (pixel indices), w, h (pixels)."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:] - 1) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


def to_corners(centres: Tensor) -> Tensor:
    """Invert :func:`to_centres`."""
    middle, half = centres[:, :2] + 0.5, centres[:, 2:] / 2
    return torch.cat([middle - half, middle + half], dim=1)


class CentreHead(nn.Module):
    """Three branches on c3, each of a convolution, a ReLU and a convolution.

    The released code gives the size branch two 7 x 7 convolutions and the others 3 x 3 and 1 x 1; the paper's figure
    draws the 7 x 7 on the offset branch.
    """

    def __init__(self, channels: int, *, num_classes: int = 1, dim: int = 256, large_kernel: str = "size") -> None:
        """
        Args:
            channels: channels of c3.
            num_classes: channels of the heatmap; all classes share size and offset.
            dim: channels between the two convolutions.
            large_kernel: the branch with 7 x 7 convolutions, "size" or "offset".
        """
        super().__init__()
        if large_kernel not in ("size", "offset"):
            raise InputError(f"MODEL.OBJECT_GUIDED.LARGE_KERNEL {large_kernel!r} is unknown; use size or offset")
        self.heatmap = _branch(channels, dim, num_classes, 3, 1)
        self.size = _branch(channels, dim, 2, *((7, 7) if large_kernel == "size" else (3, 1)))
        self.offset = _branch(channels, dim, 2, *((7, 7) if large_kernel == "offset" else (3, 1)))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(parameter, -2.19 if name == "heatmap.2.bias" else 0.0)  # a probability of 0.1

    def forward(self, c3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn (N, C, h, w) into heatmap logits (N, classes, h, w), sizes w, h and offsets dx, dy.

        Sizes and offsets are (N, 2, h, w), in cells.
        """
        return self.heatmap(c3), self.size(c3), self.offset(c3)


def _branch(channels: int, dim: int, out: int, first: int, second: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, dim, first, padding=first // 2), nn.ReLU(), nn.Conv2d(dim, out, second, padding=second // 2)
    )


def gaussian_radius(sizes: Tensor, overlap: float, exact: bool) -> Tensor:
    """Return how far a corner may move until the box overlaps the object's box by only ``overlap``.

    The three cases are CornerNet's.

    Args:
        sizes: (K, 2) w, h in cells.
        overlap: the IoU.
        exact: False does what CornerNet's published code does, which takes (b + root) / 2 for the roots of
            a r^2 + b r + c; at 0.7 this is 0.273 of a square's side. True takes the correct roots, which give 0.082.

    Returns:
        (K,) float, in cells.
    """
    total, area = sizes.sum(1), sizes.prod(1)
    # Both corners move in the same direction, both inwards, both outwards.
    cases = [
        (1.0, total, area * (1 - overlap) / (1 + overlap), -1),
        (4.0, 2 * total, area * (1 - overlap), -1),
        (4 * overlap, -2 * overlap * total, area * (overlap - 1), 1),
    ]
    radii = []
    for a, b, c, sign in cases:
        root = (b.square() - 4 * a * c).sqrt()
        # The first two cases take the smaller root of a r^2 - b r + c, the third the positive root of a r^2 + b r + c.
        radii.append((b + sign * root).div(2 * a) if exact else (b + root) / 2)
    return torch.stack(radii).amin(0)


@dataclass(frozen=True)
class Gaussian:
    """How the heatmap target is drawn.

    Attributes:
        overlap, exact: see :func:`gaussian_radius`.
        sigma: "code": (2 r + 1) / 6; "paper": r / 3.
    """

    overlap: float = 0.7
    exact: bool = False
    sigma: str = "code"


def heatmap_target(cells: Tensor, classes: Tensor, shape: tuple[int, int, int], gaussian: Gaussian) -> Tensor:
    """Draw one Gaussian per object into the map of its class.

    A Gaussian is 1 at the cell of the object's centre and is cut off at its radius. Where Gaussians overlap, the larger
    value is taken.

    Args:
        cells: (K, 4) cx, cy, w, h in cells.
        classes: (K,) int64.
        shape: (classes, h, w) of the heatmap.

    Returns:
        ``shape`` float32 in [0, 1].
    """
    target = torch.zeros(shape, device=cells.device)
    radius = gaussian_radius(cells[:, 2:].ceil(), gaussian.overlap, gaussian.exact).int().clamp(min=0)
    sigma = (2 * radius + 1) / 6 if gaussian.sigma == "code" else radius.clamp(min=1) / 3
    profiles = []
    for axis, length in enumerate((shape[2], shape[1])):
        distance = torch.arange(length, device=cells.device) - centre_cells(cells[:, axis], length)[:, None]
        profile = torch.exp(-distance.square() / (2 * sigma[:, None].square()))
        profiles.append(profile * (distance.abs() <= radius[:, None]))
    for number in classes.unique().tolist():
        own = torch.nonzero(classes == number).flatten()
        for chunk in own.split(_CHUNK):
            drawn = (profiles[1][chunk][:, :, None] * profiles[0][chunk][:, None, :]).amax(0)
            target[number] = torch.maximum(target[number], drawn)
    return target


def centre_cells(positions: Tensor, length: int) -> Tensor:
    """Return the int64 cells that contain the centres (in cells)."""
    return positions.long().clamp(0, length - 1)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Penalty-reduced focal loss, alpha 2, beta 4, divided by the number of cells with target 1 (at least by 1)."""
    logits = logits.float()
    probability = logits.sigmoid()
    positive = target == 1
    found = (1 - probability).square() * F.softplus(-logits) * positive
    false = (1 - target).pow(4) * probability.square() * F.softplus(logits) * ~positive
    return (found.sum() + false.sum()) / positive.sum().clamp(min=1)


@dataclass(frozen=True)
class CentreLosses:
    """The losses of the three maps.

    Attributes:
        gaussian: how the heatmap target is drawn.
        regression: "l1" (code) or "smooth_l1" (paper).
        reduction: for sizes and offsets: "mean" over both numbers of all objects (code) or "sum" (paper).
    """

    gaussian: Gaussian
    regression: str = "l1"
    reduction: str = "mean"

    def __call__(
        self, maps: tuple[Tensor, Tensor, Tensor], centres: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the losses of heatmap, size and offset, not yet weighted.

        Args:
            maps: the output of :class:`CentreHead`.
            centres: for each image (K, 4) cx, cy, w, h in pixels; K may be 0.
            classes: for each image (K,) int64.
        """
        heatmap, size, offset = maps
        shape = (heatmap.shape[1], heatmap.shape[2], heatmap.shape[3])
        cells = [each / STRIDE for each in centres]
        target = torch.stack([heatmap_target(c, k, shape, self.gaussian) for c, k in zip(cells, classes, strict=True)])
        image = torch.cat([torch.full((len(c),), i, device=c.device) for i, c in enumerate(cells)])
        every = torch.cat(cells)
        x, y = centre_cells(every[:, 0], shape[2]), centre_cells(every[:, 1], shape[1])
        wanted = {"size": every[:, 2:], "offset": every[:, :2] - torch.stack([x, y], dim=1)}
        distance = F.l1_loss if self.regression == "l1" else F.smooth_l1_loss
        losses = []
        for given, truth in ((size, wanted["size"]), (offset, wanted["offset"])):
            total = distance(given[image, :, y, x].float(), truth, reduction="sum")
            losses.append(total / (2 * len(every) + 1e-4) if self.reduction == "mean" else total)
        return focal_loss(heatmap, target), losses[0], losses[1]


@dataclass(frozen=True)
class Centres:
    """The objects of one image, best first."""

    centres: Tensor  # (k, 4) cx, cy, w, h in pixels
    scores: Tensor  # (k,)
    classes: Tensor  # (k,) int64
    full: bool  # whether the largest number of objects was reached, so that some may be missing


def decode(
    maps: tuple[Tensor, Tensor, Tensor], image_sizes: Sequence[tuple[int, int]], top: int, threshold: float
) -> list[Centres]:
    """Find the peaks of the heatmap (cells that no neighbour exceeds) and read the size and offset there.

    Args:
        maps: the output of :class:`CentreHead`.
        image_sizes: (height, width) of each image in its padded frame; peaks outside are ignored.
        top: the largest number of peaks.
        threshold: peaks with a higher score are returned.
    """
    heat = maps[0].float().sigmoid()
    peaks = heat * (heat == F.max_pool2d(heat, 3, stride=1, padding=1))
    results = []
    for peak, size, offset, (height, width) in zip(peaks, maps[1].float(), maps[2].float(), image_sizes, strict=True):
        inside = peak[:, : -(-height // STRIDE), : -(-width // STRIDE)]
        rows, columns = inside.shape[1:]
        scores, places = inside.flatten().topk(min(top, inside.numel()))
        kept = scores > threshold
        scores, places = scores[kept], places[kept]
        classes, cell = places // (rows * columns), places % (rows * columns)
        y, x = cell // columns, cell % columns
        middle = (torch.stack([x, y], dim=1) + offset[:, y, x].T) * STRIDE
        # A box is at least one pixel wide and high, and at most as large as the image.
        limit = torch.tensor([width, height], device=size.device)
        extent = torch.minimum((size[:, y, x].T * STRIDE).clamp(min=1), limit)
        results.append(Centres(torch.cat([middle, extent], dim=1), scores, classes, len(scores) == top))
    return results
