"""Turns the masks of a network into :class:`InstanceMask`: ROI masks are sampled in their boxes, full masks cropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .instance_mask import InstanceMask, InstanceMasks

# Masks are grouped by the sides of their windows, rounded up to a multiple of this.
_STEP = 16
# The largest number of pixels that are sampled together; each needs about 10 bytes.
_CHUNK = 2**22

EMPTY = InstanceMask(0, 0, np.zeros((0, 0), dtype=bool))


def instance_masks(
    instances: Any, mask_threshold: float = 0.5, chosen: Sequence[int] | None = None
) -> list[InstanceMask]:
    """Return the mask of each instance.

    Args:
        instances: Detectron2's ``Instances`` on any device, with ``image_size`` (H, W) and ``pred_masks``. These are
            ROI masks, floating-point probabilities (N, 1, m, m) or (N, m, m) in the frame of ``pred_boxes`` (N boxes
            XYXY in pixels); or masks of the whole image, (N, H, W) bool or integers; or :class:`InstanceMasks`, which
            are returned as they are. Or an object with these fields as numpy arrays, masks and boxes floating-point
            (``onnx_backend.Detections``).
        mask_threshold: probability from which a pixel of a ROI mask is set.
        chosen: indices of the instances; None: all.

    Returns:
        N masks inside the image. A box without area or with NaN gives an empty mask.
    """
    indices = list(range(len(instances)) if chosen is None else chosen)
    masks = instances.pred_masks
    if isinstance(masks, InstanceMasks):
        return [masks.masks[index] for index in indices]
    masks = getattr(masks, "tensor", masks)
    if not isinstance(masks, np.ndarray) and not masks.dtype.is_floating_point:
        # One by one, so that a stack of full-size masks is not copied.
        return [InstanceMask.of(masks[index].cpu().numpy().astype(bool, copy=False)) for index in indices]
    probabilities = as_array(masks[indices]).reshape(len(indices), *masks.shape[-2:])
    boxes = as_array(getattr(instances.pred_boxes, "tensor", instances.pred_boxes)[indices])
    return paste(probabilities, boxes, instances.image_size, mask_threshold)


def as_array(values: Any) -> NDArray[np.float32]:
    """The values of a tensor on any device, or of an array."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float32, copy=False)
    array: NDArray[np.float32] = values.detach().float().cpu().numpy()
    return array


def paste(
    probabilities: NDArray[np.float32], boxes: NDArray[np.float32], image_size: tuple[int, int], threshold: float
) -> list[InstanceMask]:
    """Sample ROI masks at the centres of the image's pixels (bilinear) and compare the samples with a threshold.

    The result equals that of ``detectron2.layers.paste_masks_in_image`` on the CPU, but only a window around each box
    is computed. (On the GPU Detectron2's function differs for thresholds below 0.5: there it also sets pixels further
    outside of large boxes.)

    Args:
        probabilities: (N, m, m); zero outside.
        boxes: (N, 4) XYXY in pixels, the frames of the masks.
        image_size: height and width.
        threshold: probability from which a pixel is set.
    """
    pasted = [EMPTY] * len(boxes)
    sound = np.asarray(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    # Bilinear sampling with zeros outside the mask reaches half a cell beyond the box, but the values there are below
    # one half. The pixel on each side is Detectron2's margin.
    limits = np.array([image_size[1], image_size[0]])
    low = np.clip(np.floor(np.where(sound[:, None], boxes[:, :2], 0)) - 1, 0, limits).astype(np.int64)
    high = np.clip(np.ceil(np.where(sound[:, None], boxes[:, 2:], 0)) + 1, 0, limits).astype(np.int64)
    sides = np.where(sound[:, None], np.maximum(high - low, 0), 0)
    for chosen in _of_like_size(sides):
        columns, rows = (
            _Axis.of(low[chosen, i], sides[chosen, i].max(), boxes[chosen, i], boxes[chosen, 2 + i], cells)
            for i, cells in ((0, probabilities.shape[2]), (1, probabilities.shape[1]))
        )
        masks = probabilities[chosen]
        values = rows.weights(masks.shape[1]) @ masks @ columns.weights(masks.shape[2]).transpose(0, 2, 1)
        above = values >= threshold
        # A sum in another order than Detectron2's may round to the other side of a threshold that it nearly equals.
        close = np.nonzero(np.abs(values - threshold) < 1e-5)
        above[close] = _sample(masks, close, rows, columns) >= threshold
        for index, mask in zip(chosen.tolist(), above, strict=True):
            (x0, y0), (w, h) = low[index].tolist(), sides[index].tolist()
            pasted[index] = InstanceMask(y0, x0, mask[:h, :w])
    return pasted


def _of_like_size(sides: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Group the indices of windows (N, 2) that have pixels by similar size, to sample a limited number together."""
    filled = np.flatnonzero(sides.all(axis=1))
    steps = -(-sides[filled] // _STEP)
    order = np.lexsort((steps[:, 1], steps[:, 0]))
    filled, steps = filled[order], steps[order]
    for group in np.split(filled, np.flatnonzero((np.diff(steps, axis=0) != 0).any(axis=1)) + 1):
        if len(group):
            yield from np.array_split(
                group, min(-(-len(group) * sides[group].max(axis=0).prod() // _CHUNK), len(group))
            )


class _Axis(NamedTuple):
    """The positions at which the pixels of windows sample the cells of their masks, along one axis."""

    cell: NDArray[np.int64]  # (n, pixels) the cell below each pixel's centre, from -2 (outside) to the number of cells
    fraction: NDArray[np.float32]  # (n, pixels) the fraction of the distance to the next cell

    @classmethod
    def of(
        cls,
        start: NDArray[np.int64],
        pixels: int,
        low: NDArray[np.float32],
        high: NDArray[np.float32],
        cells: int,
    ) -> _Axis:
        """Compute the positions of windows that begin at the pixels ``start`` (n,), for boxes ``low`` to ``high``."""
        centre = (start[:, None] + np.arange(pixels)).astype(np.float32) + np.float32(0.5)
        # The operations of torch's grid_sample in the same order, so that they round in the same way.
        place = (centre - low[:, None]) / (high - low)[:, None] * np.float32(2) - np.float32(1)
        place = _fused(place + np.float32(1), np.float32(cells / 2), np.float32(-0.5))
        below = np.floor(place)
        return cls(np.clip(below, -2, cells).astype(np.int64), place - below)

    def weights(self, cells: int) -> NDArray[np.float32]:
        """Return (n, pixels, cells): the weight of each cell for each pixel."""
        padded = np.zeros((*self.cell.shape, cells + 4), np.float32)
        place = np.arange(0, padded.size, cells + 4) + self.cell.ravel() + 2
        padded.ravel()[place] = np.float32(1) - self.fraction.ravel()
        padded.ravel()[place + 1] = self.fraction.ravel()
        return padded[..., 2:-2]


def _sample(
    masks: NDArray[np.float32], places: tuple[NDArray[np.int64], ...], rows: _Axis, columns: _Axis
) -> NDArray[np.float32]:
    """Return (k,) values at pixels (mask, row, column), rounded as in torch's grid_sample."""
    n, row, column = places
    y, south, x, east = rows.cell[n, row], rows.fraction[n, row], columns.cell[n, column], columns.fraction[n, column]
    north, west = np.float32(1) - south, np.float32(1) - east
    padded = np.pad(masks, ((0, 0), (2, 3), (2, 3)))
    value: NDArray[np.float32] = padded[n, y + 2, x + 2] * (west * north)
    for down, right, weight in ((0, 1, east * north), (1, 0, west * south), (1, 1, east * south)):
        value = _fused(padded[n, y + 2 + down, x + 2 + right], weight, value)
    return value


def _fused(a: NDArray[np.float32], b: Any, c: Any) -> NDArray[np.float32]:
    """Compute a * b + c, rounded once, as a processor's fused multiply-add does."""
    return (a.astype(np.float64) * b + c).astype(np.float32)
