"""Rescoring of detections by the semantic branch, which the papers use in training alone."""

from __future__ import annotations

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import roi_align


def semantic_support(objects: Tensor, instances: list[Instances]) -> list[Tensor]:
    """Return the mean probability of the object class under the mask of each detection, (k,) in [0, 1] per image.

    It is sampled at the cells of the ROI masks. A detection without a mask has a support of 0.

    Args:
        objects: (N, 1, H, W), the probability of S_sem that a pixel belongs to an object.
        instances: per image, with ``pred_boxes`` in pixels of that map and ``pred_masks`` (k, 1, m, m).
    """
    masks = torch.cat([x.pred_masks for x in instances]) > 0.5
    boxes = [x.pred_boxes.tensor.to(objects.dtype) for x in instances]
    under = roi_align(objects, boxes, masks.shape[-1], sampling_ratio=1, aligned=True)
    cells = masks.flatten(1).sum(1)
    support = (under * masks).flatten(1).sum(1) / cells.clamp(min=1)
    return list(support.split([len(x) for x in instances]))


def rescore(instances: list[Instances], logits: Tensor, power: float) -> None:
    """Multiply ``class_scores``, which decide what is an object, by the semantic support to a ``power``.

    ``scores``, the order of the detections, stay: the support of different images is not comparable, and COCO AP, which
    ranks the detections of all images together, lost 2.8 points by it.

    Args:
        instances: as :func:`semantic_support` needs them.
        logits: S_sem (N, 2, H, W), class 1 the objects.
    """
    for x, support in zip(instances, semantic_support(logits.float().softmax(1)[:, 1:], instances), strict=True):
        class_scores = x.class_scores if x.has("class_scores") else x.scores
        x.class_scores = class_scores * support.to(class_scores.dtype) ** power
