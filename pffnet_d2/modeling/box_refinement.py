"""Boxes that are regressed more than once in prediction (Gidaris and Komodakis 2015, arXiv 1505.01749)."""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor


@ROI_HEADS_REGISTRY.register()
class RefinedBoxROIHeads(StandardROIHeads):
    """Detectron2's ROI heads, whose box head regresses the boxes of detections again before masks are predicted.

    They train as ``StandardROIHeads`` do and have the same weights.
    """

    @configurable
    def __init__(self, *, box_refinements: int = 0, **kwargs: Any) -> None:
        """
        Args:
            box_refinements: MODEL.PFFNET.BOX_REFINEMENTS, how often.
            kwargs: passed to ``StandardROIHeads``.
        """
        super().__init__(**kwargs)
        self.box_refinements = box_refinements

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret: dict[str, Any] = super().from_config(cfg, input_shape)
        ret["box_refinements"] = cfg.MODEL.PFFNET.BOX_REFINEMENTS
        return ret

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        """Return the box losses in training, otherwise the detections of each image, their boxes refined."""
        found = super()._forward_box(features, proposals)
        if not self.training:
            for _ in range(self.box_refinements):
                self._refine_boxes(features, found)
        return found

    def _refine_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> None:
        """Let the box head regress ``pred_boxes`` once more, as if they were proposals. Class scores stay."""
        # With several classes, a box is regressed for the class that was found in it.
        rois = [Instances(x.image_size, proposal_boxes=x.pred_boxes, gt_classes=x.pred_classes) for x in instances]
        refined = self.box_predictor.predict_boxes_for_gt_classes(self._box_predictions(features, rois), rois)
        for x, box in zip(instances, refined, strict=True):
            x.pred_boxes = Boxes(box)
            x.pred_boxes.clip(x.image_size)

    def _box_predictions(self, features: dict[str, Tensor], rois: list[Instances]) -> tuple[Tensor, Tensor]:
        """Return logits (K, classes + 1) and box deltas (K, classes x 4) of all ``proposal_boxes`` together."""
        pooled = self.box_pooler([features[f] for f in self.box_in_features], [x.proposal_boxes for x in rois])
        scores, deltas = self.box_predictor(self.box_head(pooled))
        return scores, deltas
