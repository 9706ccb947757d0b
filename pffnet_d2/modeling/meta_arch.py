"""PFFNet: one backbone pass, an instance branch, a semantic branch, and their consistency loss ([P] Fig. 2, Eq. 5)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_sem_seg_head
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from pffnet_d2.errors import InputError
from pffnet_d2.masks.compose import LabelMapRule, instances_to_label_map

from .fusion_head import build_feature_fusion_head
from .inputs import AsTrained
from .roi_heads import PFFNetROIHeads
from .roi_masks import with_roi_masks
from .semantic_support import rescore

OUTPUTS = ("instances", "semantic", "semantic_fused", "panoptic")


def consistency_loss(s_sem: Tensor, s_ins: Tensor, valid: Tensor) -> Tensor:
    """Mean squared difference of the two branches' class probabilities over the valid pixels ([P] Eq. 4).

    Args:
        s_sem, s_ins: logits (N, C, H, W); both receive a gradient.
        valid: (N, H, W) bool, False on padding.
    """
    difference = s_sem.float().softmax(1) - s_ins.float().softmax(1)
    return (difference.square().mean(1) * valid).sum() / valid.sum().clamp(min=1)


def _check_roi_heads(cfg: Any, roi_heads: nn.Module) -> None:
    """Check that the fusion and quality heads can use the output of the ROI heads. Raises InputError."""
    fusion = cfg.MODEL.PFFNET.FUSION
    if not isinstance(roi_heads, PFFNetROIHeads):
        for key, name in (
            ("MODEL.PFFNET.FUSION.NAME", fusion.NAME),
            ("MODEL.ROI_MASK_QUALITY_HEAD.NAME", cfg.MODEL.ROI_MASK_QUALITY_HEAD.NAME),
        ):
            if name:
                raise InputError(
                    f"{key} {name}: MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} does not give it masks; "
                    f'set MODEL.ROI_HEADS.NAME PFFNetROIHeads, or {key} ""'
                )
        return
    if not fusion.NAME or fusion.CHANNELS != "per_channel":
        return
    masks = getattr(getattr(roi_heads.mask_head, "predictor", None), "out_channels", None)
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if masks is not None and masks != classes:
        raise InputError(
            f"MODEL.PFFNET.FUSION.CHANNELS per_channel: the masks have {masks} channels, but "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}; set MODEL.PFFNET.FUSION.CHANNELS foreground, or "
            "MODEL.ROI_MASK_HEAD.NAME DualModalMaskHead or TwoChannelMaskHead and 2 classes"
        )


@META_ARCH_REGISTRY.register()
class PFFNet(GeneralizedRCNN):
    """Panoptic Feature Fusion Net. Without some of its heads it is one of its predecessors."""

    @configurable
    def __init__(
        self,
        *,
        sem_seg_head: nn.Module | None = None,
        fusion_head: nn.Module | None = None,
        consistency_loss_weight: float = 0.0,
        semantic_power: float = 0.0,
        ignore_value: int = 255,
        outputs: tuple[str, ...] = ("instances",),
        label_map: LabelMapRule | None = None,
        as_trained: AsTrained | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            sem_seg_head: S_sem; called with (features, targets or None), returns (logits at input size, losses).
            fusion_head: S_ins; called with (features, instances, targets or None), returns the same.
            consistency_loss_weight: alpha_2 of [P] Eq. 5; above 0 both heads are needed.
            semantic_power: MODEL.PFFNET.SEMANTIC_POWER; above 0 ``sem_seg_head`` is needed.
            ignore_value: the value of pixels without truth in semantic targets, the same as in the heads.
            outputs: what inference returns, some of ``OUTPUTS``.
            label_map: the rule of the panoptic output; None: the default rule.
            as_trained: applied to the inputs of inference first, and checks those of training; None: neither.
            kwargs: passed to ``GeneralizedRCNN``.
        """
        super().__init__(**kwargs)
        unknown = set(outputs) - set(OUTPUTS)
        if unknown:
            raise InputError(f"MODEL.PFFNET.OUTPUTS {sorted(unknown)} is unknown; choose from {', '.join(OUTPUTS)}")
        if {"semantic", "semantic_fused"} <= set(outputs):
            raise InputError("MODEL.PFFNET.OUTPUTS names two semantic maps; keep semantic or semantic_fused")
        for output, head, key in (
            ("semantic", sem_seg_head, "MODEL.SEM_SEG_HEAD.NAME GCNHead"),
            ("semantic_fused", fusion_head, "MODEL.PFFNET.FUSION.NAME RAFFHead"),
        ):
            if output in outputs and head is None:
                raise InputError(
                    f"MODEL.PFFNET.OUTPUTS asks for {output} without its branch; set {key}, or remove {output}"
                )
        if semantic_power and sem_seg_head is None:
            raise InputError(
                "MODEL.PFFNET.SEMANTIC_POWER rescores detections by the branch of MODEL.SEM_SEG_HEAD.NAME, which is "
                "empty; set it to GCNHead, or MODEL.PFFNET.SEMANTIC_POWER 0.0"
            )
        if consistency_loss_weight > 0 and (sem_seg_head is None or fusion_head is None):
            raise InputError(
                "MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT compares the maps of both branches, MODEL.SEM_SEG_HEAD.NAME and "
                "MODEL.PFFNET.FUSION.NAME, of which one is empty; set MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT 0.0"
            )
        self.sem_seg_head = sem_seg_head
        self.fusion_head = fusion_head
        self.consistency_loss_weight = consistency_loss_weight
        self.semantic_power = semantic_power
        self.ignore_value = ignore_value
        self.outputs = tuple(outputs)
        self.label_map = label_map or LabelMapRule()
        self.as_trained = as_trained

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        ret = super().from_config(cfg)
        shape = ret["backbone"].output_shape()
        _check_roi_heads(cfg, ret["roi_heads"])
        pffnet = cfg.MODEL.PFFNET
        return {
            **ret,
            "sem_seg_head": build_sem_seg_head(cfg, shape) if cfg.MODEL.SEM_SEG_HEAD.NAME else None,
            "fusion_head": build_feature_fusion_head(cfg, shape),
            "consistency_loss_weight": pffnet.CONSISTENCY_LOSS_WEIGHT,
            "semantic_power": pffnet.SEMANTIC_POWER,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "outputs": tuple(pffnet.OUTPUTS),
            "label_map": LabelMapRule.from_config(cfg),
            "as_trained": AsTrained(cfg),
        }

    def forward(self, batched_inputs: list[dict[str, Any]], paste_masks: bool = True) -> Any:
        """
        Args:
            batched_inputs: one dict per image, as in Detectron2: ``image`` (C, H, W); in training also ``sem_seg``
                (H, W) int64 and ``instances`` (possibly empty) with ``gt_boxes``, ``gt_classes`` and ``gt_masks``
                (BitMasks).
            paste_masks: True returns (k, H, W) bool masks, as Detectron2 does; False leaves ``pred_masks`` as
                (k, 1, m, m) probabilities in the frame of ``pred_boxes``, without a k x H x W stack. Ignored in
                training.

        Returns:
            In training a dict of weighted losses. Otherwise one dict per image: ``instances``, and as
            MODEL.PFFNET.OUTPUTS asks ``sem_seg`` (classes, H, W), logits of either branch, and ``panoptic_seg`` (see
            ``inference``).
        """
        if not self.training:
            return self.inference(batched_inputs, paste_masks=paste_masks)

        if self.as_trained is not None:
            self.as_trained.check_training(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        instances, detector_losses = self.roi_heads(images, features, proposals, targets)
        losses = {**losses, **detector_losses}

        if self.sem_seg_head is None and self.fusion_head is None:
            return losses
        s_sem = s_ins = None
        semantic = self._semantic_targets(batched_inputs, images)
        if self.sem_seg_head is not None:
            s_sem, sem_losses = self.sem_seg_head(features, semantic)
            losses.update(sem_losses)
        if self.fusion_head is not None:
            s_ins, fusion_losses = self.fusion_head(features, instances, semantic)
            losses.update(fusion_losses)
        if s_sem is not None and s_ins is not None and self.consistency_loss_weight > 0:
            consistency = consistency_loss(s_sem, s_ins, semantic != self.ignore_value)
            losses["loss_consistency"] = consistency * self.consistency_loss_weight
        return losses

    def _semantic_targets(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> Tensor:
        """Return the targets (N, H, W) int64 at the padded size; padding is ``ignore_value``."""
        maps = [x["sem_seg"].to(self.device) for x in batched_inputs]
        return ImageList.from_tensors(maps, self.backbone.size_divisibility, self.ignore_value).tensor

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
        paste_masks: bool = True,
    ) -> list[Any]:
        """Do the same as ``GeneralizedRCNN.inference``, and return the other outputs as well.

        The panoptic output is (H, W) int32 segment ids, where 0 is void, and their infos. All segments are instances,
        because the only class is a thing.
        """
        assert not self.training
        if self.as_trained is not None:
            batched_inputs = [self.as_trained(x) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        s_sem = None
        if self.sem_seg_head is not None and (self.semantic_power or "semantic" in self.outputs):
            s_sem = self.sem_seg_head(features, None)[0]
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            instances, _ = self.roi_heads(images, features, proposals, None)
            if s_sem is not None and self.semantic_power:
                rescore(instances, s_sem, self.semantic_power)
        else:
            given = [x.to(self.device) for x in detected_instances]
            instances = self.roi_heads.forward_with_given_boxes(features, given)
        if not do_postprocess:
            return instances

        sizes = [
            (x.get("height", size[0]), x.get("width", size[1]))
            for x, size in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        semantic = s_sem if "semantic" in self.outputs else self._s_ins(features, instances)
        # Only once, because Detectron2 scales boxes in place.
        instances = [with_roi_masks(x, *size) for x, size in zip(instances, sizes, strict=True)]
        results: list[dict[str, Any]] = [{"instances": x} for x in instances]
        if "panoptic" in self.outputs:
            for result, x in zip(results, instances, strict=True):
                result["panoptic_seg"] = self._panoptic(x)
        if paste_masks:
            for result, x in zip(results, instances, strict=True):
                result["instances"] = detector_postprocess(x, *x.image_size)
        if semantic is not None:
            for result, logits, net, size in zip(results, semantic, images.image_sizes, sizes, strict=True):
                result["sem_seg"] = sem_seg_postprocess(logits, net, *size)
        return results

    def _s_ins(self, features: dict[str, Tensor], instances: list[Instances]) -> Tensor | None:
        """Return S_ins (N, classes, H, W) if MODEL.PFFNET.OUTPUTS asks for it. Removes ``mask_logits``.

        It is fused from the detections that go into a label map (class score above beta); the best is written last.
        """
        if "semantic_fused" not in self.outputs:
            return None
        assert self.fusion_head is not None
        written = []
        for x in instances:
            rois = Instances(x.image_size, mask_logits=x.mask_logits, fusion_boxes=x.pred_boxes.tensor)
            order = x.scores.argsort(stable=True)
            written.append(rois[order[(x.class_scores > self.label_map.score_threshold)[order]]])
            x.remove("mask_logits")
        return self.fusion_head(features, written, None)[0]

    def _panoptic(self, instances: Instances) -> tuple[Tensor, list[dict[str, Any]]]:
        segments = torch.from_numpy(instances_to_label_map(instances, self.label_map))
        infos = [
            {"id": i, "isthing": True, "category_id": 0, "area": int(area)}
            for i, area in enumerate(torch.bincount(segments.flatten().long())[1:].tolist(), start=1)
        ]
        return segments.to(self.device), infos
