"""A detector as a function of one image, tensors in and tensors out, from which files for other programs are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torch import Tensor, nn
from torchvision.ops import nms

from pffnet_d2.errors import InputError

from .roi_heads import PFFNetROIHeads
from .semantic_support import rescored, support_under


def outputs_of(model: GeneralizedRCNN) -> list[str]:
    """Return the names of what :class:`DetectionGraph` returns for a network, in order."""
    heads = model.roi_heads
    rescores = getattr(model, "semantic_power", 0.0) > 0
    classes = ["class_scores"] if isinstance(heads, PFFNetROIHeads) or rescores else []
    quality = ["mask_quality"] if getattr(heads, "mask_quality_head", None) is not None else []
    return ["boxes", *classes, *quality, "scores", "masks", "capped"]


class DetectionGraph(nn.Module):
    """What a GeneralizedRCNN with one class detects in one image.

    Exporters record the operations of one call. Detectron2's code takes lengths of lists and splits by them, which
    would become constants of the file. Here no Python code depends on the size of the image or on what is found. The
    operations and their order are those of the network in evaluation mode, so the results are the same.
    """

    def __init__(self, model: nn.Module, *, bgr: bool, caps_area: int) -> None:
        """
        Args:
            model: the network. Its modules are used, not copied, and set to evaluation mode.
            bgr: whether the network takes BGR images (INPUT.FORMAT).
            caps_area: MODEL.PFFNET.CAPS_AREA; the caps of the network are multiplied as ``inference.caps`` describes.

        Raises:
            InputError: the network is not one that this class can represent.
        """
        super().__init__()
        _check(model)
        assert isinstance(model, GeneralizedRCNN)
        self.model = model
        self.bgr = bgr
        self.caps_area = caps_area
        self.semantic_power: float = getattr(model, "semantic_power", 0.0)
        self.eval()  # exporters restore the mode of the whole

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects of one image.

        Args:
            image: (3, H, W) float32 RGB, 0 to 255 after normalisation.

        Returns:
            Tensors in the order of :func:`outputs_of`: boxes (n, 4) XYXY in pixels; class_scores (n,), descending
            before the semantic branch rescores them, of PFFNetROIHeads; mask_quality (n,) of networks with that head;
            scores (n,), their product before rescoring; masks (n, m, m), probabilities in the frames of the boxes;
            capped (2,) bool, whether MODEL.RPN.PRE_NMS_TOPK_TEST and POST_NMS_TOPK_TEST removed proposals that are
            likely objects.
        """
        size = torch._shape_as_tensor(image)[1:]
        factor = size.prod().double() / self.caps_area if self.caps_area > 0 else torch.ones((), dtype=torch.float64)
        factor = factor.clamp(min=1)
        # In the order of the boxes' coordinates: x, y, x, y.
        limits = size.flip(0).float().repeat(2)
        padded = self.model.preprocess_image([{"image": image.flip(0) if self.bgr else image}])
        features = self.model.backbone(padded.tensor)
        proposals, capped = self._proposals(features, limits, factor)
        boxes, class_scores = self._boxes(features, proposals, limits, factor)
        masks, quality = self._masks(features, boxes)
        results = {
            "boxes": boxes,
            "class_scores": class_scores,
            "scores": class_scores,
            "masks": masks,
            "capped": capped,
        }
        if quality is not None:
            results |= {"mask_quality": quality, "scores": class_scores * quality}
        if self.semantic_power:
            s_sem = self.model.sem_seg_head(features)[0]
            support = support_under(s_sem, F.pad(boxes, (1, 0)), masks[:, None])
            results["class_scores"] = rescored(class_scores, support, self.semantic_power)
        return tuple(results[name] for name in outputs_of(self.model))

    def _proposals(self, features: Mapping[str, Tensor], limits: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals (k, 4) by descending objectness, and which of the RPN's caps were reached (2,).

        Suppression is level by level, as Detectron2 does it on large images. On small ones it shifts the boxes of each
        level by its number times their extent, which rounds them.
        """
        rpn = self.model.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        most, best = (_scaled(cap[False], factor) for cap in (rpn.pre_nms_topk, rpn.post_nms_topk))
        boxes, scores, crowded = [], [], []
        for anchors, logits, deltas in zip(rpn.anchor_generator(maps), *rpn.rpn_head(maps), strict=True):
            score, index = logits.permute(0, 2, 3, 1).flatten().sort(descending=True)
            crowded.append((score > 0).sum() > most)
            score, index = score[:most], index[:most]
            delta = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)[index]
            box = _clipped(rpn.box2box_transform.apply_deltas(delta, anchors.tensor[index]), limits)
            sound = (box[:, 2:] - box[:, :2] > rpn.min_box_size).all(1)
            box, score = box[sound], score[sound]
            kept = nms(box, score, rpn.nms_thresh)
            boxes.append(box[kept])
            scores.append(score[kept])
        score, order = torch.cat(scores).sort(descending=True)
        # All that are kept are likely objects, and they are as many as may be kept.
        full = (score[:best] > 0).sum() >= best
        return torch.cat(boxes)[order[:best]], torch.stack([torch.stack(crowded).any(), full])

    def _boxes(
        self, features: Mapping[str, Tensor], proposals: Tensor, limits: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes (n, 4) of the detections and their class scores (n,), descending."""
        heads = self.model.roi_heads
        predictor = heads.box_predictor
        maps = [features[name] for name in heads.box_in_features]

        def regressed(boxes: Tensor) -> tuple[Tensor, Tensor]:
            logits, deltas = (x[:-1] for x in predictor(heads.box_head(_pool(heads.box_pooler, maps, boxes))))
            return logits, _clipped(predictor.box2box_transform.apply_deltas(deltas, boxes), limits)

        logits, boxes = regressed(proposals)
        scores = (logits.sigmoid() if getattr(predictor, "use_sigmoid_ce", False) else logits.softmax(-1))[:, 0]
        likely = scores > predictor.test_score_thresh
        boxes, scores = boxes[likely], scores[likely]
        kept = nms(boxes, scores, predictor.test_nms_thresh)
        if predictor.test_topk_per_image >= 0:
            kept = kept[: _scaled(predictor.test_topk_per_image, factor)]
        boxes, scores = boxes[kept], scores[kept]
        for _ in range(getattr(heads, "box_refinements", 0)):
            _, boxes = regressed(boxes)
        return boxes, scores

    def _masks(self, features: Mapping[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the masks (n, m, m) of the detections and their quality (n,), None without a quality head."""
        heads = self.model.roi_heads
        pooled = _pool(heads.mask_pooler, [features[name] for name in heads.mask_in_features], boxes)
        masks = heads.mask_head.layers(pooled)[:, -1:].sigmoid()
        head = getattr(heads, "mask_quality_head", None)
        return masks[:-1, 0], None if head is None else head(pooled, masks)[:-1]


def _check(model: nn.Module) -> None:
    """Check that :class:`DetectionGraph` can represent a network. Raises InputError."""
    name = type(model).__name__
    if not isinstance(model, GeneralizedRCNN):
        raise InputError(
            f"MODEL.META_ARCHITECTURE {name}: cannot be exported, because it makes its instances outside the network; "
            "predict with `pffnet predict`, or export PFFNet, Cell R-CNN or Mask R-CNN"
        )
    rpn, heads = model.proposal_generator, model.roi_heads
    for key, module, fits in (
        ("MODEL.PROPOSAL_GENERATOR.NAME", rpn, isinstance(rpn, RPN) and rpn.anchor_generator.box_dim == 4),
        ("MODEL.ROI_HEADS.NAME", heads, isinstance(heads, StandardROIHeads) and not isinstance(heads, CascadeROIHeads)),
    ):
        if not fits:
            raise InputError(
                f"{key} {type(module).__name__}: cannot be exported; export PFFNet, Cell R-CNN or Mask R-CNN"
            )
    if heads.num_classes != 1:
        raise InputError(f"MODEL.ROI_HEADS.NUM_CLASSES {heads.num_classes}: only models of one class can be exported")
    if not heads.mask_on or heads.keypoint_on:
        raise InputError("MODEL.MASK_ON and MODEL.KEYPOINT_ON: only models of masks without keypoints can be exported")
    if not hasattr(heads.mask_head, "layers"):
        raise InputError(f"MODEL.ROI_MASK_HEAD.NAME {type(heads.mask_head).__name__}: cannot be exported")


def _scaled(cap: int, factor: Tensor) -> Tensor:
    """Return ``math.ceil(cap * factor)`` as a tensor."""
    return (cap * factor).ceil().long()


def _clipped(boxes: Tensor, limits: Tensor) -> Tensor:
    """Clip boxes (n, 4) to the image, whose width and height are ``limits`` (4,)."""
    return torch.minimum(boxes.clamp(min=0), limits)


def _pool(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Pool the features of boxes (n, 4), and last those of an empty box: (n + 1, C, h, w).

    With the empty box no layer of a head gets zero ROIs, which ONNX's form of GroupNorm cannot take.
    """
    rois = F.pad(boxes, (1, 0, 0, 1))  # in front the number of the image
    layers: Any = pooler.level_poolers
    if len(layers) == 1:
        return layers[0](maps[0], rois)
    # Detectron2 takes floor(level + log2(side / size)). Comparing with powers of two needs no logarithm, of which
    # libraries round the last digit differently.
    sides = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt() / pooler.canonical_box_size + 1e-8
    steps = [2.0 ** (level - pooler.canonical_level) for level in range(pooler.min_level + 1, pooler.max_level + 1)]
    level = torch.stack([sides >= step for step in steps]).sum(0)
    places = [(level == number).nonzero()[:, 0] for number in range(len(layers))]
    pooled = [layer(each, rois[place]) for layer, each, place in zip(layers, maps, places, strict=True)]
    return torch.cat(pooled)[torch.cat(places).argsort()]
