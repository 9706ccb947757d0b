"""PFFNet's ROI heads: they decide which heads run on which ROIs."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from pffnet_d2.errors import InputError

from .box_refinement import RefinedBoxROIHeads
from .mask_head import gt_areas, mask_loss, mask_targets
from .mask_quality_head import build_mask_quality_head, quality_loss, quality_target

BOXES = ("proposal", "predicted")
ROIS = ("all", "best")

# The number of detections that pass through the mask and quality heads together. At the paper's widths the largest
# activation, 1024 x 14 x 14 floats per detection, is then 205 MB.
ROIS_PER_CHUNK = 256


@ROI_HEADS_REGISTRY.register()
class PFFNetROIHeads(RefinedBoxROIHeads):
    """Box head on all sampled ROIs; mask head, quality head and fusion on the positive ones.

    Training returns the losses and each image's positive ROIs, with ``mask_logits`` (k, C, m, m) and ``fusion_boxes``
    (k, 4), in the order in which the fusion head writes them (:func:`set_fusion_order`). Inference refines the boxes of
    detections. It returns instances with ``class_scores`` s_cls, ``mask_quality`` s_qua, ``scores`` =
    s_conf = s_cls * s_qua ([P] Eq. 6; NMS uses only s_cls) and ``pred_masks`` (k, 1, m, m) probabilities.
    """

    @configurable
    def __init__(
        self,
        *,
        mask_quality_head: nn.Module | None = None,
        mask_loss_weight: float = 1.0,
        mask_quality_loss_weight: float = 1.0,
        fusion_boxes: str = "proposal",
        fusion_rois: str = "all",
        keep_mask_logits: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            mask_quality_head: None: ``scores`` = s_cls.
            mask_loss_weight: MODEL.PFFNET.MASK_LOSS_WEIGHT.
            mask_quality_loss_weight: MODEL.ROI_MASK_QUALITY_HEAD.LOSS_WEIGHT.
            fusion_boxes, fusion_rois: MODEL.PFFNET.FUSION.{BOXES, ROIS}.
            keep_mask_logits: inference also returns ``mask_logits`` (k, C, m, m), from which the fused map is made.
            kwargs: passed to ``RefinedBoxROIHeads``.
        """
        super().__init__(**kwargs)
        for key, value, known in (("BOXES", fusion_boxes, BOXES), ("ROIS", fusion_rois, ROIS)):
            if value not in known:
                raise InputError(f"MODEL.PFFNET.FUSION.{key} {value!r} is not one of {', '.join(known)}")
        if self.num_classes != 1:
            raise InputError(
                f"MODEL.ROI_HEADS.NUM_CLASSES {self.num_classes}: PFFNetROIHeads segments one class; set it to 1"
            )
        self.mask_quality_head = mask_quality_head
        self.mask_loss_weight = mask_loss_weight
        self.mask_quality_loss_weight = mask_quality_loss_weight
        self.fusion_boxes = fusion_boxes
        self.fusion_rois = fusion_rois
        self.keep_mask_logits = keep_mask_logits

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            raise InputError("MODEL.MASK_ON False: PFFNetROIHeads needs a mask head; set MODEL.MASK_ON True")
        ret = super().from_config(cfg, input_shape)
        channels = input_shape[ret["mask_in_features"][0]].channels
        side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        ret["mask_quality_head"] = build_mask_quality_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
        ret["mask_loss_weight"] = cfg.MODEL.PFFNET.MASK_LOSS_WEIGHT
        ret["mask_quality_loss_weight"] = cfg.MODEL.ROI_MASK_QUALITY_HEAD.LOSS_WEIGHT
        ret["fusion_boxes"] = cfg.MODEL.PFFNET.FUSION.BOXES
        ret["fusion_rois"] = cfg.MODEL.PFFNET.FUSION.ROIS
        ret["keep_mask_logits"] = "semantic_fused" in cfg.MODEL.PFFNET.OUTPUTS
        return ret

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if not self.training:
            instances = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, instances), {}

        assert targets is not None
        for target in targets:
            target.gt_index = torch.arange(len(target), device=target.gt_boxes.device)
        set_fusion_order(proposals, targets, self.mask_pooler)
        sampled = self.label_and_sample_proposals(proposals, targets)
        losses = self._box_losses(features, sampled)
        positive, _ = select_foreground_proposals(sampled, self.num_classes)
        losses.update(self._mask_losses(features, positive))
        # Sampling has shuffled the ROIs.
        written = [x[x.fusion_order.argsort()] for x in positive]
        return [best_of_each_object(x) for x in written] if self.fusion_rois == "best" else written, losses

    def _box_losses(self, features: dict[str, Tensor], sampled: list[Instances]) -> dict[str, Tensor]:
        """Compute the box losses. Sets ``fusion_boxes`` and ``foreground_score`` on the ROIs."""
        scores, deltas = self._box_predictions(features, sampled)
        losses: dict[str, Tensor] = self.box_predictor.losses((scores, deltas), sampled)
        with torch.no_grad():
            foreground = 1 - scores.float().softmax(1)[:, -1]
            if self.fusion_boxes == "predicted":
                boxes = self.box_predictor.predict_boxes_for_gt_classes((scores, deltas), sampled)
            else:
                boxes = [x.proposal_boxes.tensor for x in sampled]
            counts = [len(x) for x in sampled]
            for roi, box, score in zip(sampled, boxes, foreground.split(counts), strict=True):
                height, width = roi.image_size
                # Not Boxes.clip, which waits for the device to check that all boxes are finite.
                x, y = box[:, 0::2].clamp(0, width), box[:, 1::2].clamp(0, height)
                roi.fusion_boxes = torch.stack([x, y], dim=2).flatten(1)
                roi.foreground_score = score
        return losses

    def _mask_losses(self, features: dict[str, Tensor], positive: list[Instances]) -> dict[str, Tensor]:
        """Compute the mask and quality losses. Sets ``mask_logits`` on the ROIs."""
        pooled = self._pool_masks(features, [x.proposal_boxes for x in positive])
        logits = self.mask_head.layers(pooled)
        for roi, mask in zip(positive, logits.split([len(x) for x in positive]), strict=True):
            roi.mask_logits = mask
        foreground = logits[:, -1]
        targets = mask_targets(positive, foreground.shape[-1])
        losses = {"loss_mask": mask_loss(foreground, targets) * self.mask_loss_weight}
        if self.mask_quality_head is not None:
            quality = self.mask_quality_head(pooled, foreground.sigmoid()[:, None])
            box_areas = torch.cat([x.proposal_boxes.area() for x in positive])
            target = quality_target(foreground, targets, gt_areas(positive), box_areas)
            losses["loss_mask_quality"] = quality_loss(quality, target) * self.mask_quality_loss_weight
        return losses

    def _pool_masks(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        return self.mask_pooler([features[f] for f in self.mask_in_features], boxes)

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Predict masks and quality of instances with ``pred_boxes``, ``pred_classes`` and ``scores``.

        ``scores`` are s_cls, unless the instances have ``class_scores`` already (test-time augmentation calls this on
        its own results). Either way ``scores`` become ``class_scores`` * ``mask_quality`` once.
        """
        assert not self.training
        boxes = [x.pred_boxes.tensor for x in instances]
        counts = [len(b) for b in boxes]
        total = sum(counts)
        logits, masks, qualities = [], [], []
        # At least one round, so that the tensors have the right shape even without detections.
        for start in range(0, max(total, 1), ROIS_PER_CHUNK):
            stop, before, chunk = start + ROIS_PER_CHUNK, 0, []
            for box in boxes:
                chunk.append(Boxes(box[max(start - before, 0) : max(stop - before, 0)]))
                before += len(box)
            pooled = self._pool_masks(features, chunk)
            logits.append(self.mask_head.layers(pooled))
            masks.append(logits[-1][:, -1:].sigmoid())
            if self.mask_quality_head is not None:
                qualities.append(self.mask_quality_head(pooled, masks[-1]))

        for x, mask in zip(instances, torch.cat(masks).split(counts), strict=True):
            x.pred_masks = mask
            if not x.has("class_scores"):
                x.class_scores = x.scores
        if self.keep_mask_logits:
            for x, logit in zip(instances, torch.cat(logits).split(counts), strict=True):
                x.mask_logits = logit
        if qualities:
            for x, quality in zip(instances, torch.cat(qualities).split(counts), strict=True):
                x.mask_quality = quality.to(x.class_scores.dtype)
                x.scores = x.class_scores * x.mask_quality
        return instances


def set_fusion_order(proposals: list[Instances], targets: list[Instances], pooler: ROIPooler) -> None:
    """Number the ROIs of each image in the order in which they are written into F_0, as ``fusion_order`` (k,) int64.

    The order is the release's: FPN levels from the finest to the coarsest, within a level the highest objectness
    first, and then the ground truth in its own order. In replacement fusion, where the last ROI wins, the truth
    therefore wins. The level is the one the ROI is pooled from, because the RPN does not return the anchor's level.

    Args:
        proposals: with ``proposal_boxes`` and ``objectness_logits``; numbered from 0.
        targets: with ``gt_boxes``; numbered after the proposals.
        pooler: assigns each box to a level.
    """
    for proposal, target in zip(proposals, targets, strict=True):
        device = target.gt_boxes.device
        level = assign_boxes_to_levels(
            [proposal.proposal_boxes],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        order = proposal.objectness_logits.argsort(descending=True, stable=True)
        order = order[level[order].argsort(stable=True)]
        proposal.fusion_order = order.argsort()
        target.fusion_order = len(proposal) + torch.arange(len(target), device=device)


def best_of_each_object(rois: Instances) -> Instances:
    """Keep the positive ROI with the highest foreground score of each object. The order of the ROIs does not change."""
    if len(rois) == 0:
        return rois
    order = rois.foreground_score.argsort(descending=True, stable=True)
    objects = rois.gt_index[order]
    # In descending order of score, keep an entry if no earlier one belongs to the same object.
    earlier = (objects[:, None] == objects[None]).tril(-1).any(1)
    return rois[order[~earlier].sort().values]
