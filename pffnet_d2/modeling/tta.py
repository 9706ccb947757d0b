"""Test-time augmentation: a model sees flipped and rotated views of an image, and its detections are merged.

Names of the views (MODEL.PFFNET.TTA): "identity", "hflip" (left and right exchanged), "vflip", "rotate90",
"rotate180", "rotate270" (counter-clockwise), "transpose", "antitranspose". All eight are exact: no pixel is
interpolated, in either direction.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from pffnet_d2.device import denormals_flushed, device_of
from pffnet_d2.errors import InputError
from pffnet_d2.modeling.roi_masks import Unpasted, with_roi_masks
from pffnet_d2.modeling.semantic_support import rescored, semantic_support

# (quarters counter-clockwise, whether left and right are exchanged afterwards)
VIEWS: dict[str, tuple[int, bool]] = {
    "identity": (0, False),
    "rotate90": (1, False),
    "rotate180": (2, False),
    "rotate270": (3, False),
    "hflip": (0, True),
    "transpose": (3, True),
    "vflip": (2, True),
    "antitranspose": (1, True),
}


def for_inference(model: nn.Module, cfg: Any) -> nn.Module:
    """Wrap a model as evaluation and prediction call it.

    Networks of this package leave masks in the frame of their boxes. If MODEL.PFFNET.TTA names views, the model runs
    on all of them.

    Raises:
        InputError: MODEL.PFFNET.TTA has an unknown or repeated view, or the model cannot be augmented.
    """
    names = list(cfg.MODEL.PFFNET.TTA)
    if not names:
        return Unpasted(model)
    unknown = [name for name in names if name not in VIEWS]
    if unknown:
        raise InputError(f"MODEL.PFFNET.TTA: unknown view {unknown[0]!r}; choose from {', '.join(VIEWS)}")
    if len(set(names)) < len(names):
        raise InputError(f"MODEL.PFFNET.TTA: {names} names a view twice")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if not isinstance(model, GeneralizedRCNN):
        raise InputError(f"MODEL.PFFNET.TTA: {cfg.MODEL.META_ARCHITECTURE} cannot be augmented; set it to []")
    return TestTimeAugmentation(model, names, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)


class TestTimeAugmentation(nn.Module):
    """Runs a GeneralizedRCNN (PFFNet, Mask R-CNN) on several views of each image. It is called like the model.

    Boxes of all views are matched. The best box is kept; from each other view the box that overlaps it most is matched
    to it, if the overlap is above the threshold of non-maximum suppression. Matched boxes are averaged with their
    class scores as weights. The class score of the merged instance is the sum of their class scores divided by the
    number of views, so that a detection of a single view gets a low score. Masks (and mask quality) are then predicted
    in every view for the merged boxes, and their probabilities are averaged. ``scores`` is ``class_scores`` *
    ``mask_quality`` once, as without augmentation. With MODEL.PFFNET.SEMANTIC_POWER the semantic branch rescores a
    merged instance by the mean of its support in the views.
    """

    __test__ = False  # not a test class for pytest

    def __init__(self, model: GeneralizedRCNN, views: list[str], match_iou: float, max_detections: int) -> None:
        super().__init__()
        self.model = model
        self.views = [VIEWS[name] for name in views]
        self.match_iou = match_iou
        self.max_detections = max_detections

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Return one dict per image with ``instances`` in pixels of the original image, ``pred_masks`` as ROI masks."""
        with denormals_flushed(device_of(self.model)):
            return [{"instances": self._one(inputs)} for inputs in batched_inputs]

    def _one(self, inputs: dict[str, Any]) -> Instances:
        model, image = self.model, inputs["image"]
        size = (image.shape[-2], image.shape[-1])
        features, sizes, found = [], [], []
        for view in self.views:
            images = model.preprocess_image([{"image": turn(image, view)}])
            features.append(model.backbone(images.tensor))
            sizes.append(images.image_sizes[0])
            proposals, _ = model.proposal_generator(images, features[-1], None)
            (instances,) = model.roi_heads._forward_box(features[-1], proposals)
            found.append((turn_boxes_back(instances.pred_boxes.tensor, view, size), instances))

        merged = self._merge(size, found)
        power: float = getattr(model, "semantic_power", 0.0)
        masks, qualities, supports = [], [], []
        for view, view_features, view_size in zip(self.views, features, sizes, strict=True):
            given = Instances(view_size)
            given.pred_boxes = Boxes(turn_boxes(merged.pred_boxes.tensor, view, size))
            given.pred_classes, given.scores = merged.pred_classes, merged.scores
            (given,) = model.roi_heads.forward_with_given_boxes(view_features, [given])
            masks.append(turn_back(given.pred_masks, view))
            if given.has("mask_quality"):
                qualities.append(given.mask_quality)
            if power:
                supports += semantic_support(model.sem_seg_head(view_features, None)[0], [given])
        merged.pred_masks = torch.stack(masks).mean(0)
        if given.has("class_scores"):
            merged.class_scores = merged.scores
        if qualities:
            merged.mask_quality = torch.stack(qualities).mean(0)
            merged.scores = merged.class_scores * merged.mask_quality
        if supports:
            merged.class_scores = rescored(merged.class_scores, torch.stack(supports).mean(0), power)
        return with_roi_masks(merged, inputs.get("height", size[0]), inputs.get("width", size[1]))

    def _merge(self, size: tuple[int, int], found: list[tuple[Tensor, Instances]]) -> Instances:
        """Merge the boxes, classes and class scores (``scores``) of all views."""
        boxes = torch.cat([box for box, _ in found])
        scores = torch.cat([instances.scores for _, instances in found])
        classes = torch.cat([instances.pred_classes for _, instances in found])
        view = torch.cat([torch.full((len(box),), i, device=box.device) for i, (box, _) in enumerate(found)])
        kept = batched_nms(boxes, scores, classes, self.match_iou)
        total = torch.zeros(len(kept), device=boxes.device)
        weighted = torch.zeros(len(kept), 4, device=boxes.device)
        # Every box was either kept or suppressed by a kept box. It belongs to the kept box it overlaps most.
        if len(kept):
            overlap = pairwise_iou(Boxes(boxes), Boxes(boxes[kept]))
            overlap[classes[:, None] != classes[kept]] = 0
            best, owner = overlap.max(1)
            # From each view, only the box that overlaps an owner most counts for it.
            for i in range(len(self.views)):
                own = torch.nonzero((view == i) & (best > self.match_iou)).flatten()
                own = own[best[own].argsort(stable=True)]
                nearest = torch.full((len(kept),), -1, dtype=torch.int64, device=boxes.device)
                for box, to in zip(own.tolist(), owner[own].tolist(), strict=True):
                    nearest[to] = box
                has = nearest >= 0
                total[has] += scores[nearest[has]]
                weighted[has] += boxes[nearest[has]] * scores[nearest[has], None]
        merged = Instances(size)
        mean = total / len(self.views)
        order = mean.argsort(descending=True, stable=True)[: self.max_detections]
        merged.pred_boxes = Boxes((weighted / total.clamp(min=1e-12)[:, None])[order])
        merged.scores = mean[order]
        merged.pred_classes = classes[kept][order]
        return merged


def turn(tensor: Tensor, view: tuple[int, bool]) -> Tensor:
    """Turn (..., H, W) from the image into the view."""
    quarters, mirrored = view
    tensor = torch.rot90(tensor, quarters, (-2, -1))
    return tensor.flip(-1) if mirrored else tensor


def turn_back(tensor: Tensor, view: tuple[int, bool]) -> Tensor:
    """Turn (..., h, w) from the view back into the image."""
    quarters, mirrored = view
    return torch.rot90(tensor.flip(-1) if mirrored else tensor, -quarters, (-2, -1))


def turn_boxes(boxes: Tensor, view: tuple[int, bool], size: tuple[int, int]) -> Tensor:
    """Move boxes (n, 4) XYXY from an image of ``size`` (height, width) into its view."""
    quarters, mirrored = view
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(1)
    for _ in range(quarters):
        x0, y0, x1, y1 = y0, width - x1, y1, width - x0
        height, width = width, height
    if mirrored:
        x0, x1 = width - x1, width - x0
    return torch.stack([x0, y0, x1, y1], dim=1)


def turn_boxes_back(boxes: Tensor, view: tuple[int, bool], size: tuple[int, int]) -> Tensor:
    """Move boxes (n, 4) XYXY from the view of an image of ``size`` (height, width) back into the image."""
    quarters, mirrored = view
    height, width = size if quarters % 2 == 0 else size[::-1]
    if mirrored:
        x0, y0, x1, y1 = boxes.unbind(1)
        boxes = torch.stack([width - x1, y0, width - x0, y1], dim=1)
    return turn_boxes(boxes, (-quarters % 4, False), (height, width))
