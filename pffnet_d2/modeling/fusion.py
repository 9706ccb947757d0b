"""Feature fusion of [P] Algorithm 1 and Fig. 10: instance masks are written into a semantic feature map.

The papers describe a loop that changes the map one ROI at a time. Every variant has a closed form over all ROIs of
the batch. It is computed here on the list of pixels that lie inside boxes, so time and memory are proportional to the
sum of the box areas (and of the boxes' heights times the masks' width).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("residual_attention", "attention", "summation", "replacement")

# Residual attention multiplies by up to 2 per ROI, and a training batch can contain more than a hundred ROIs of one
# object. The gain of a pixel is limited to 2^16 so that the map stays finite (float32 overflows at 2^128).
MAX_LOG_GAIN = 16 * 0.6931471805599453
# Attention takes the logarithm of probabilities; smaller ones are raised to this value.
MIN_PROBABILITY = 1e-12


class BoxPixels(NamedTuple):
    """The T pixels inside K boxes, ordered by box and then by line. A line is one row of one box; there are L lines."""

    roi: Tensor  # (L,) int64: the box of each line
    v: Tensor  # (L,) float: vertical position of the line's centre in its box, from 0 to 1
    line: Tensor  # (T,) int64: the line of each pixel
    u: Tensor  # (T,) float: horizontal position of the pixel's centre in its box, from 0 to 1
    pixel: Tensor  # (T,) int64: index into a flattened (N, H, W)


def box_pixels(boxes: Tensor, batch_index: Tensor, shape: tuple[int, int, int]) -> BoxPixels:
    """List the pixels (x, y) whose centres lie in the boxes: x1 <= x + 1/2 < x2, and the same for y.

    Args:
        boxes: (K, 4) float, XYXY in pixels of the map; may extend beyond it.
        batch_index: (K,) int64, the image of each box.
        shape: (N, H, W) of the map.
    """
    _, height, width = shape
    x1, y1, x2, y2 = boxes.unbind(1)
    left, right = (torch.ceil(x - 0.5).clamp(0, width).long() for x in (x1, x2))
    top, bottom = (torch.ceil(y - 0.5).clamp(0, height).long() for y in (y1, y2))
    columns, rows = (right - left).clamp(min=0), (bottom - top).clamp(min=0)
    n_lines, n_pixels = torch.stack([rows.sum(), (rows * columns).sum()]).tolist()

    # One gather of whole rows is several times faster than one gather per column.
    roi = torch.repeat_interleave(rows, output_size=n_lines)
    per_box = torch.stack([rows.cumsum(0) - rows, top, columns, left, batch_index * height], dim=1)
    first_line, top, columns, left, map_top = per_box.index_select(0, roi).unbind(1)
    y = torch.arange(n_lines, device=boxes.device) - first_line + top
    x1, y1, x2, y2 = boxes.index_select(0, roi).unbind(1)

    line = torch.repeat_interleave(columns, output_size=n_pixels)
    per_line = torch.stack([columns.cumsum(0) - columns, (map_top + y) * width + left], dim=1)
    first_pixel, map_pixel = per_line.index_select(0, line).unbind(1)
    column = torch.arange(n_pixels, device=boxes.device) - first_pixel
    # The centre of a line's first pixel and the size of a pixel, in units of the box.
    scale = torch.stack([left + 0.5 - x1, torch.ones_like(x1)], dim=1) / (x2 - x1)[:, None]
    u, size = scale.index_select(0, line).unbind(1)
    return BoxPixels(roi=roi, v=(y + 0.5 - y1) / (y2 - y1), line=line, u=u + column * size, pixel=map_pixel + column)


def resize_into_boxes(masks: Tensor, where: BoxPixels) -> Tensor:
    """R(.) of [P]: resize each mask to its box (bilinear, ``align_corners=False``) and read it at the listed pixels.

    Args:
        masks: (K, C, m, m) float.

    Returns:
        (T, C) in the dtype of ``masks``.
    """
    _, channels, rows, columns = masks.shape

    def between(values: Tensor, first: Tensor, place: Tensor, size: int) -> Tensor:
        """Interpolate linearly, at ``place`` (0 to 1), in the ``size`` rows of ``values`` that start at ``first``."""
        place = (place * size - 0.5).clamp(0, size - 1)
        low = place.long()
        high = (low + 1).clamp(max=size - 1)
        weight = (place - low).to(values.dtype)[:, None]
        return torch.lerp(values.index_select(0, first + low), values.index_select(0, first + high), weight)

    # First vertically, once per line, because there are far fewer lines than pixels; then horizontally.
    lines = masks.permute(0, 2, 3, 1).reshape(-1, columns * channels)
    lines = between(lines, where.roi * rows, where.v, rows)
    return between(lines.view(-1, channels), where.line * columns, where.u, columns)


def fuse(
    features: Tensor, mask_logits: Tensor, boxes: Tensor, batch_index: Tensor, mode: str = "residual_attention"
) -> Tensor:
    """F_K: the semantic map F_0 after all K instance masks M_i have been written into their boxes B_i.

    P_i is sigmoid(M_i) resized into B_i, and M'_i is M_i resized into B_i. Products and sums run over the ROIs whose
    box contains the pixel ([P] Fig. 10):

    ======================  =============================
    ``residual_attention``  F_0 * prod (1 + P_i), the product at most exp(MAX_LOG_GAIN); [P] Algorithm 1
    ``attention``           F_0 * prod P_i, each P_i at least MIN_PROBABILITY
    ``summation``           F_0 + sum M'_i
    ``replacement``         M'_i of the last such ROI in the order given, F_0 outside of all boxes; [V2]
    ======================  =============================

    Args:
        features: F_0, (N, C, H, W).
        mask_logits: M, (K, C, m, m), or (K, 1, m, m) to use one map for all channels. K may be 0.
        boxes: (K, 4) XYXY in pixels of ``features``. A pixel (x, y) is inside when x1 <= x + 1/2 < x2.
        batch_index: (K,) int64, the image of each ROI.
        mode: one of ``MODES``.

    Returns:
        F_K, (N, C, H, W) in the dtype of ``features``; computed in at least float32.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"fusion mode {mode!r} is not one of {', '.join(MODES)}")
    n, _, height, width = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    f0, logits = features.to(dtype), mask_logits.to(dtype)
    channels = logits.shape[1]
    where = box_pixels(boxes.to(dtype), batch_index, (n, height, width))

    def scatter_sum(values: Tensor) -> Tensor:
        total = values.new_zeros(n * height * width, channels).index_add(0, where.pixel, values)
        return total.view(n, height, width, channels).permute(0, 3, 1, 2)

    if mode == "residual_attention":
        log_gain = scatter_sum((1 + resize_into_boxes(logits.sigmoid(), where)).log())
        fused = f0 * log_gain.clamp(max=MAX_LOG_GAIN).exp()
    elif mode == "attention":
        probability = resize_into_boxes(logits.sigmoid(), where).clamp(min=MIN_PROBABILITY)
        fused = f0 * scatter_sum(probability.log()).exp()
    elif mode == "summation":
        fused = f0 + scatter_sum(resize_into_boxes(logits, where))
    else:
        # The last ROI of a pixel is the largest index that covers it. All other entries of the pixel are multiplied by
        # zero: selecting them with a boolean index would have to wait for the device.
        roi = where.roi.index_select(0, where.line)
        last = roi.new_full((n * height * width,), -1).scatter_reduce(0, where.pixel, roi, "amax")
        is_last = (last[where.pixel] == roi)[:, None]
        pasted = scatter_sum(resize_into_boxes(logits, where) * is_last)
        fused = torch.where((last >= 0).view(n, 1, height, width), pasted, f0)
    return fused.to(features.dtype)
