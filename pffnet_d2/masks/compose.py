"""Turns masks into one label map by the papers' overlap rule, without N masks of the size of the image in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from pffnet_d2.config.values import check_value

from .instance_mask import InstanceMask
from .paste import as_array, instance_masks


@dataclass(frozen=True)
class LabelMapRule:
    """How detections become a label map.

    Instances with a class score above ``score_threshold`` (beta) are painted by descending ``scores`` (of equal scores
    the earlier instance first). An instance is dropped if better ones cover more than ``max_covered`` of its pixels;
    otherwise it gets the pixels that are still free. ([P] III-E gives a contested pixel to the higher score; dropping
    covered instances comes from the released code, ``removeoverlap``.)

    Attributes:
        score_threshold: beta in [0, 1); scores must be above it.
        mask_threshold: mask probability from which a pixel belongs to an instance; ROI masks only.
        max_covered: fraction in [0, 1]; an instance covered by exactly this fraction is kept.
        fill_holes: fill the holes of a mask before it is painted; better instances inside keep their pixels. A hole is
            background enclosed by the mask; pixels that touch only at corners enclose it too.
        largest_component: keep only the largest part of the pixels an instance gets (4-connected; of equally large
            parts the first in row order).
        min_size: an instance that gets fewer pixels is dropped, and its pixels stay free.
        largest_first: paint by descending area instead (of equal areas the better instance first), so that the largest
            of overlapping masks is complete (Zhang, Wei, Yue, MLP Coursework 4, 2018, 2.2). Ids still follow the score.

    Raises:
        InputError: a value is out of its range, so that no object could be found.
    """

    score_threshold: float = 0.5
    mask_threshold: float = 0.5
    max_covered: float = 0.7
    fill_holes: bool = False
    largest_component: bool = False
    min_size: int = 0
    largest_first: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            check_value(self._key(field.name), getattr(self, field.name), field.name)

    @classmethod
    def from_config(cls, cfg: Any) -> LabelMapRule:
        """Make the rule from the keys below MODEL.PFFNET.LABEL_MAP."""
        return cls.from_keys(cfg.MODEL.PFFNET.LABEL_MAP)

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> LabelMapRule:
        """Make the rule from a table of all keys, such as {"SCORE_THRESH": 0.4, ...}."""
        return cls(**{field.name: keys[cls._key(field.name).rpartition(".")[2]] for field in fields(cls)})

    def keys(self) -> dict[str, Any]:
        """The table that :meth:`from_keys` reads."""
        return {self._key(field.name).rpartition(".")[2]: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def _key(name: str) -> str:
        return f"MODEL.PFFNET.LABEL_MAP.{name.replace('threshold', 'thresh').upper()}"


def instances_to_label_map(instances: Any, rule: LabelMapRule | None = None, **changes: Any) -> NDArray[np.int32]:
    """Make the label map of one image's detections. The time is proportional to the sum of their box areas.

    Args:
        instances: Detectron2's ``Instances`` on any device with ``image_size`` (H, W), ``scores`` (N,),
            ``class_scores`` (N,) if they differ from ``scores``, and the fields that :func:`instance_masks` needs.
        rule: None: the default rule.
        changes: values of the rule by name, such as ``score_threshold=0.4``.

    Returns:
        (H, W) int32, 0 background, ids 1..n contiguous, 1 the most confident.

    Raises:
        InputError: a threshold or size is out of its range.
    """
    label_map, _ = label_map_and_indices(instances, replace(rule or LabelMapRule(), **changes))
    return label_map


def label_map_and_indices(instances: Any, rule: LabelMapRule) -> tuple[NDArray[np.int32], list[int]]:
    """Do the same as :func:`instances_to_label_map`, and also return the index of the instance of each label 1..n."""
    scores = as_array(instances.scores)
    class_scores = as_array(instances.class_scores) if instances.has("class_scores") else scores
    kept = np.flatnonzero(class_scores > rule.score_threshold)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    masks = instance_masks(instances, rule.mask_threshold, kept.tolist())
    label_map, laid = compose(masks, instances.image_size, rule)
    return label_map, kept[laid].tolist()


def compose(
    masks: Iterable[InstanceMask], image_size: tuple[int, int], rule: LabelMapRule
) -> tuple[NDArray[np.int32], list[int]]:
    """Make the label map of masks given in order of confidence. Also return the index of the mask of each label.

    Follows :class:`LabelMapRule`, except for its thresholds of scores and probabilities.

    >>> better = InstanceMask(y0=0, x0=0, mask=np.ones((1, 3), dtype=bool))
    >>> worse = InstanceMask(y0=0, x0=1, mask=np.ones((1, 3), dtype=bool))  # two thirds are covered
    >>> compose([better, worse], (1, 5), LabelMapRule())
    (array([[1, 1, 1, 2, 0]], dtype=int32), [0, 1])
    >>> compose([better, worse], (1, 5), LabelMapRule(max_covered=0.5))
    (array([[1, 1, 1, 0, 0]], dtype=int32), [0])
    """
    label_map = np.zeros(image_size, dtype=np.int32)
    laid: list[int] = []
    given = enumerate(masks)
    for index, each in sorted(given, key=lambda pair: -pair[1].area) if rule.largest_first else given:
        mask = scipy.ndimage.binary_fill_holes(each.mask) if rule.fill_holes and each.mask.size else each.mask
        area = int(np.count_nonzero(mask))
        if not area:
            continue
        window = label_map[each.window]
        free = mask & (window == 0)
        free_area = int(np.count_nonzero(free))
        if not free_area or (area - free_area) / area > rule.max_covered:
            continue
        if rule.largest_component:
            free = _largest_part(free)
            free_area = int(np.count_nonzero(free))
        if free_area < rule.min_size:
            continue
        laid.append(index)
        window[free] = len(laid)
    if rule.largest_first:
        order = np.argsort(laid)
        label_of = np.zeros(len(laid) + 1, dtype=np.int32)
        label_of[order + 1] = np.arange(1, len(laid) + 1)
        return label_of[label_map], sorted(laid)
    return label_map, laid


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = scipy.ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = parts == sizes.argmax()
    return largest


def contiguous(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Renumber objects to ids 1..n (int32) in the order of their labels.

    Labels are whole numbers >= 0; 0 is the background.
    """
    labels = labels if labels.dtype.kind in "ui" else labels.astype(np.int64)
    highest = int(labels.max(initial=0))
    if highest > labels.size:  # for example colours read as numbers: a table of all ids would be too long
        values, inverse = np.unique(labels, return_inverse=True)
        ids = np.arange(len(values)) + (values[0] != 0)
        return np.ascontiguousarray(ids[inverse].reshape(labels.shape), np.int32)
    present = np.bincount(labels.ravel().astype(np.int64, copy=False), minlength=highest + 1) > 0
    present[0] = False
    if present.sum() == highest:
        return np.ascontiguousarray(labels, np.int32)
    return (np.cumsum(present) * present).astype(np.int32)[labels]
