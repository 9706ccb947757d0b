"""Instances to one label map by the papers' overlap rule, without ever holding N full-size masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from pffnet_d2.config_values import check_value

Window = tuple[int, int, NDArray[np.bool_]]

# Window sides are rounded up to a multiple of this, so that masks of like size are sampled in one call.
_SIDE = 16
# At most this many pixels are sampled in one call: 16 bytes of scratch each.
_CHUNK = 2**22


class WindowMasks:
    """``pred_masks`` of an ``Instances`` as the windows (y0, x0, mask) inside its image: exact, and without an
    N x H x W stack where a model finds masks of the whole image. They stay on the CPU."""

    def __init__(self, windows: Sequence[Window], image_size: tuple[int, int]) -> None:
        self.windows, self.image_size = list(windows), image_size

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: slice | torch.Tensor) -> WindowMasks:
        """Those of a slice, of indices or where a (N,) bool tensor is True."""
        chosen = torch.arange(len(self))[item.cpu() if isinstance(item, torch.Tensor) else item]
        return WindowMasks([self.windows[index] for index in chosen.tolist()], self.image_size)

    @property
    def tensor(self) -> torch.Tensor:
        """(N, H, W) bool."""
        masks = torch.zeros(len(self), *self.image_size, dtype=torch.bool)
        for full, (y0, x0, mask) in zip(masks, self.windows, strict=True):
            full[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = torch.from_numpy(mask)
        return masks


def instances_to_label_map(
    instances: Any,
    *,
    score_threshold: float = 0.5,
    mask_threshold: float = 0.5,
    max_covered: float = 0.7,
    fill_holes: bool = False,
    largest_component: bool = False,
    min_size: int = 0,
    largest_first: bool = False,
) -> NDArray[np.int32]:
    """Label map of one image's detections; the work is proportional to the sum of their box areas.

    Instances of a class score above ``score_threshold`` (beta) are laid down by descending ``scores`` (of equals the
    earlier first): one that better ones cover by more than ``max_covered`` of its pixels is dropped, else it keeps the
    pixels that are still free. ([P] III-E gives a contested pixel to the higher score; dropping covered instances comes
    from the released code, ``removeoverlap``.)

    Args:
        instances: detectron2 ``Instances`` on any device with ``image_size`` (H, W), ``scores`` (N,), ``class_scores``
            (N,) where they differ from ``scores``, and what :func:`render_windows` needs.
        score_threshold: beta in [0, 1]; strict.
        mask_threshold: mask probability from which a pixel belongs to an instance; ROI masks only.
        max_covered: fraction in [0, 1]; strict.
        fill_holes: a mask's holes (background it encloses, pixels that touch at corners enclose) become part of it
            before it is laid down; better instances inside keep their pixels.
        largest_component: of the pixels an instance keeps, only the largest part stays (4-connected; of equals the
            first in row order).
        min_size: an instance that keeps fewer pixels is dropped and hides nothing.
        largest_first: lay them down by descending area instead (of equals the better one first): the largest of
            overlapping masks stays whole (Zhang, Wei, Yue, MLP Coursework 4, 2018, 2.2). Labels still go by score.

    Returns:
        (H, W) int32, 0 background, ids 1..n contiguous, 1 the most confident.

    Raises:
        InputError: a threshold or size out of its range.
    """
    label_map, _ = label_map_and_indices(
        instances,
        score_threshold=score_threshold,
        mask_threshold=mask_threshold,
        max_covered=max_covered,
        fill_holes=fill_holes,
        largest_component=largest_component,
        min_size=min_size,
        largest_first=largest_first,
    )
    return label_map


def label_map_and_indices(
    instances: Any, *, score_threshold: float = 0.5, mask_threshold: float = 0.5, **rule: Any
) -> tuple[NDArray[np.int32], list[int]]:
    """:func:`instances_to_label_map`, and for the labels 1..n the index of the instance each came from.

    Args:
        rule: the other keyword arguments, those of :func:`lay_windows`.

    Raises:
        InputError: a value out of its range, with which there would be no object at all.
    """
    for key, value in {"score_thresh": score_threshold, "mask_thresh": mask_threshold, **rule}.items():
        check_value(f"MODEL.PFFNET.LABEL_MAP.{key.upper()}", value, key.replace("thresh", "threshold"))
    class_scores = instances.class_scores if instances.has("class_scores") else instances.scores
    kept = torch.nonzero(class_scores > score_threshold).flatten()
    kept = kept[torch.argsort(instances.scores[kept], descending=True, stable=True)]
    label_map, laid = lay_windows(_windows(instances, kept, mask_threshold), instances.image_size, **rule)
    return label_map, kept[laid].tolist()


def lay_windows(
    windows: Iterable[Window],
    image_size: tuple[int, int],
    *,
    max_covered: float = 0.7,
    fill_holes: bool = False,
    largest_component: bool = False,
    min_size: int = 0,
    largest_first: bool = False,
) -> tuple[NDArray[np.int32], list[int]]:
    """The label map of masks (y0, x0, mask) given in order of confidence, and which mask each label is.

    See :func:`instances_to_label_map` for the rule.
    """
    label_map = np.zeros(image_size, dtype=np.int32)
    laid: list[int] = []
    given = enumerate(windows)
    for index, (y0, x0, mask) in (
        sorted(given, key=lambda each: -np.count_nonzero(each[1][2])) if largest_first else given
    ):
        if fill_holes and mask.size:
            mask = ndimage.binary_fill_holes(mask)
        area = int(np.count_nonzero(mask))
        if not area:
            continue
        window = label_map[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]]
        free = mask & (window == 0)
        free_area = int(np.count_nonzero(free))
        if not free_area or (area - free_area) / area > max_covered:
            continue
        if largest_component:
            parts, count = ndimage.label(free)
            if count > 1:
                sizes = np.bincount(parts.ravel())
                sizes[0] = 0
                free = parts == sizes.argmax()
                free_area = int(sizes.max())
        if free_area < min_size:
            continue
        laid.append(index)
        window[free] = len(laid)
    if largest_first:
        order = np.argsort(laid)
        label_of = np.zeros(len(laid) + 1, dtype=np.int32)
        label_of[order + 1] = np.arange(1, len(laid) + 1)
        return label_of[label_map], sorted(laid)
    return label_map, laid


def render_windows(instances: Any, mask_threshold: float = 0.5) -> list[Window]:
    """The binary mask of each instance, cut out of the image around it.

    Args:
        instances: detectron2 ``Instances`` with ``image_size`` and ``pred_masks``, which are either ROI masks, floating
            (N, 1, m, m) or (N, m, m) probabilities in the frame of ``pred_boxes`` (N boxes XYXY in pixels), or masks of
            the whole image, (N, H, W) of bool or integers, or :class:`WindowMasks`, handed on as they are.
        mask_threshold: probability from which a pixel of a ROI mask is set.

    Returns:
        N tuples (y0, x0, mask): ``mask`` (h, w) bool lies at rows y0..y0+h and columns x0..x0+w of the image, inside
        it; all pixels outside are unset. A box without area or with NaN, and an empty mask, give a window without set
        pixels. ROI masks come out exactly as ``detectron2.layers.paste_masks_in_image`` pastes them on the CPU (on the
        GPU it differs for thresholds below 0.5 only: there upstream also sets pixels further outside large boxes).
    """
    return _windows(instances, torch.arange(len(instances)), mask_threshold)


def _windows(instances: Any, chosen: torch.Tensor, mask_threshold: float) -> list[Window]:
    """:func:`render_windows` of the instances of some indices, in their order; full-size masks are not copied."""
    if not len(chosen):
        return []
    if isinstance(instances.pred_masks, WindowMasks):
        return [instances.pred_masks.windows[index] for index in chosen.tolist()]
    masks = getattr(instances.pred_masks, "tensor", instances.pred_masks).detach()
    if not masks.dtype.is_floating_point:
        return [_crop(masks[index]) for index in chosen.tolist()]
    masks = masks[chosen.to(masks.device)]
    boxes = instances.pred_boxes.tensor.detach()
    return _render_roi_masks(
        masks.reshape(len(masks), 1, *masks.shape[-2:]).float(),
        boxes[chosen.to(boxes.device)],
        instances.image_size,
        mask_threshold,
    )


def _crop(mask: torch.Tensor) -> Window:
    """A full-size mask (H, W) as its tight window."""
    ys = np.flatnonzero(mask.any(dim=1).cpu().numpy())
    if not len(ys):
        return 0, 0, np.zeros((0, 0), dtype=bool)
    band = mask[ys[0] : ys[-1] + 1].cpu().numpy().astype(bool, copy=False)
    xs = np.flatnonzero(band.any(axis=0))
    return int(ys[0]), int(xs[0]), band[:, xs[0] : xs[-1] + 1]


def _render_roi_masks(
    masks: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], threshold: float
) -> list[Window]:
    """Windows of (N, 1, m, m) probabilities in their boxes (N, 4) XYXY, sampled in groups of like size."""
    height, width = image_size
    corners = boxes.cpu().double().numpy()
    sound = np.isfinite(corners).all(axis=1) & (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    corners = np.where(sound[:, None], corners, 0)
    # Bilinear sampling with zeros outside the mask reaches half a mask cell beyond the box, but values there stay below
    # one half; the pixel on each side is upstream's margin.
    low = np.clip(np.floor(corners[:, :2]) - 1, 0, (width, height)).astype(np.int64)
    high = np.clip(np.ceil(corners[:, 2:]) + 1, 0, (width, height)).astype(np.int64)
    sides = np.where(sound[:, None], np.maximum(high - low, 0), 0)

    windows: list[Window] = [(0, 0, np.zeros((0, 0), dtype=bool))] * len(masks)
    filled = np.flatnonzero(sides.all(axis=1))
    cells = -(-sides[filled] // _SIDE)
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    filled, cells = filled[order], cells[order]
    changes = np.flatnonzero((np.diff(cells, axis=0) != 0).any(axis=1)) + 1
    for group in np.split(filled, changes):
        if not len(group):
            continue
        columns, rows = sides[group].max(axis=0)
        for chunk in np.array_split(group, -(-len(group) * columns * rows // _CHUNK)):
            if not len(chunk):
                continue
            pasted = _sample(masks, boxes, chunk, low[chunk], (int(rows), int(columns))) >= threshold
            for index, mask in zip(chunk.tolist(), pasted.cpu().numpy(), strict=True):
                (x0, y0), (w, h) = low[index].tolist(), sides[index].tolist()
                windows[index] = (y0, x0, mask[:h, :w])
    return windows


def _sample(
    masks: torch.Tensor, boxes: torch.Tensor, chunk: NDArray[np.int64], low: NDArray[np.int64], shape: tuple[int, int]
) -> torch.Tensor:
    """(n, rows, columns) values of the chosen masks at the pixel centres of windows that start at ``low`` (n, 2) xy."""
    index = torch.from_numpy(chunk).to(masks.device)
    x0, y0, x1, y1 = boxes[index].unsqueeze(2).unbind(dim=1)  # each (n, 1)
    start = torch.from_numpy(low).to(boxes.device)
    # The same operations in the same order as upstream's _do_paste_mask, so that results are equal to the last bit.
    x = (torch.arange(shape[1], device=boxes.device) + start[:, :1]).to(torch.float32) + 0.5
    y = (torch.arange(shape[0], device=boxes.device) + start[:, 1:]).to(torch.float32) + 0.5
    x = (x - x0) / (x1 - x0) * 2 - 1
    y = (y - y0) / (y1 - y0) * 2 - 1
    size = (len(chunk), *shape)
    grid = torch.stack([x[:, None, :].expand(size), y[:, :, None].expand(size)], dim=3)
    return F.grid_sample(masks[index], grid, align_corners=False)[:, 0]
