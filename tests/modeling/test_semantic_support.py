"""The support of a detection by the semantic branch, by hand."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances

from pffnet_d2.modeling.semantic_support import rescore, semantic_support


def detections(boxes: list[list[float]], masks: torch.Tensor) -> Instances:
    return Instances((8, 8), pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)), pred_masks=masks)


def test_mean_under_the_mask() -> None:
    """A map of 1 on the left and 0.2 on the right; a mask on the left, one on both halves, and an empty one."""
    objects = torch.full((2, 1, 8, 8), 0.2)
    objects[0, :, :, :4] = 1
    logits = torch.cat([1 - objects, objects], dim=1).log()
    whole, left, none = torch.ones(1, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    left[:, :, :2] = 0.9
    boxes = [[0.0, 0.0, 8.0, 8.0]] * 3
    first = detections(boxes, torch.stack([left, whole, none]))
    found = semantic_support(logits, [first, detections(boxes[:1], whole[None])])
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.6, 0.0]))
    torch.testing.assert_close(found[1], torch.tensor([0.2]))


def test_rescoring() -> None:
    logits = torch.zeros(1, 2, 8, 8)  # probability 1/2 everywhere
    instances = detections([[1.0, 1.0, 7.0, 7.0]], torch.ones(1, 1, 4, 4))
    instances.scores, instances.class_scores = torch.tensor([0.6]), torch.tensor([0.8])
    rescore([instances], logits, 2.0)
    assert instances.scores.tolist() == torch.tensor([0.6]).tolist()
    torch.testing.assert_close(instances.class_scores, torch.tensor([0.2]))
