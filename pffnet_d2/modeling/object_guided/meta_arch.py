"""ObjectGuided: finds centres without anchors, then a mask for each from object-guided features ([OG] Fig. 1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from pffnet_d2.errors import InputError
from pffnet_d2.masks.instance_mask import InstanceMask
from pffnet_d2.masks.paste import instance_masks
from pffnet_d2.modeling.inputs import AsTrained

from .backbone import LEVELS
from .centre_head import CentreHead, CentreLosses, Centres, Gaussian, decode, to_centres, to_corners
from .refinement import PointRefinement
from .rois import Rois, crop_masks, group, read_patches
from .segmentation import SegmentationBranch

logger = logging.getLogger(__name__)

# Smaller images are padded to this size, because normalisation over the ResNet's last map needs more than one cell.
_SMALLEST = 64


@META_ARCH_REGISTRY.register()
class ObjectGuided(nn.Module):
    """Object-guided instance segmentation."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        centre_head: CentreHead,
        segmentation: SegmentationBranch,
        refinement: PointRefinement | None,
        centre_losses: CentreLosses,
        loss_weights: Sequence[float] = (1.0, 0.1, 1.0, 2.0, 1.0),
        reduction: str = "mean",
        expand: float = 1.1,
        roi_size: int | None = None,
        max_train_rois: int = 0,
        min_side: int = 4,
        top: int = 500,
        score_threshold: float = 0.3,
        mask_threshold: float = 0.5,
        mask_nms: float = 0.2,
        mask_size: int = 56,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        as_trained: AsTrained | None = None,
    ) -> None:
        """
        Args:
            backbone: returns c1 .. c5.
            centre_head, segmentation, refinement: modules of this package; without ``refinement`` there is no
                loss_refine.
            centre_losses: the losses of the centre head.
            loss_weights: weights of the losses of heatmap, size, offset, mask and refinement.
            reduction: of the mask and refinement losses: "mean" over pixels and then over objects (code), or "sum" of
                all pixels (paper).
            expand: factor from a box to its region of interest.
            roi_size: None: each region has its own size; otherwise the number of points per side at stride 1.
            max_train_rois: number of objects per image that train the masks, drawn at random; 0: all.
            min_side: objects with a shorter side (pixels of the network's input) are not training targets.
            top: the largest number of detections per image.
            score_threshold: detections have a score above it.
            mask_threshold: probability from which a pixel belongs to a mask, for extents, suppression and pasting.
            mask_nms: IoU of masks above which the mask with the lower score is dropped.
            mask_size: m of the returned masks.
            pixel_mean, pixel_std: one value per channel.
            as_trained: applied to the inputs of inference first; None: they are used as they are.
        """
        super().__init__()
        self.as_trained = as_trained
        self.backbone = backbone
        self.centre_head = centre_head
        self.segmentation = segmentation
        self.refinement = refinement
        self.centre_losses = centre_losses
        self.loss_weights = tuple(loss_weights)
        self.reduction = reduction
        self.expand, self.roi_size, self.max_train_rois, self.min_side = expand, roi_size, max_train_rois, min_side
        self.top, self.score_threshold = top, score_threshold
        self.mask_threshold, self.mask_nms, self.mask_size = mask_threshold, mask_nms, mask_size
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        own = cfg.MODEL.OBJECT_GUIDED
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        channels = [shape[name].channels for name in LEVELS]
        for key, value, known in (
            ("RADIUS", own.RADIUS, ("cornernet", "exact")),
            ("SIGMA", own.SIGMA, ("code", "paper")),
            ("REGRESSION_LOSS", own.REGRESSION_LOSS, ("l1", "smooth_l1")),
            ("LOSS_REDUCTION", own.LOSS_REDUCTION, ("mean", "sum")),
            ("ROI_MODE", own.ROI_MODE, ("adaptive", "fixed")),
        ):
            if value not in known:
                raise InputError(f"MODEL.OBJECT_GUIDED.{key} {value!r} is unknown; use {' or '.join(known)}")
        refine = own.REFINE
        return {
            "backbone": backbone,
            "centre_head": CentreHead(
                channels[2],
                num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                dim=own.HEAD_DIM,
                large_kernel=own.LARGE_KERNEL,
            ),
            "segmentation": SegmentationBranch(channels, affine=own.NORM_AFFINE),
            "refinement": PointRefinement(
                (channels[0], channels[1]),
                divisor=refine.D,
                oversample=refine.K,
                keep=refine.BETA,
                heads=refine.HEADS,
                uncertainty=refine.UNCERTAINTY,
            )
            if refine.ENABLED
            else None,
            "centre_losses": CentreLosses(
                Gaussian(own.MIN_OVERLAP, own.RADIUS == "exact", own.SIGMA), own.REGRESSION_LOSS, own.LOSS_REDUCTION
            ),
            "loss_weights": own.LOSS_WEIGHTS,
            "reduction": own.LOSS_REDUCTION,
            "expand": own.ROI_EXPAND,
            "roi_size": own.ROI_SIZE if own.ROI_MODE == "fixed" else None,
            "max_train_rois": own.MAX_TRAIN_ROIS,
            "min_side": own.MIN_SIDE,
            "top": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": own.SCORE_THRESH_TEST,
            "mask_threshold": cfg.MODEL.PFFNET.LABEL_MAP.MASK_THRESH,
            "mask_nms": own.MASK_NMS,
            "mask_size": own.MASK_SIZE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "as_trained": AsTrained(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Pad images with black to one size, a multiple of 32 and at least 64, and normalise them."""
        raw = [x["image"].to(self.device).float() for x in batched_inputs]
        images = ImageList.from_tensors(raw, self.backbone.size_divisibility)
        height, width = images.tensor.shape[-2:]
        padded = F.pad(images.tensor, (0, max(0, _SMALLEST - width), 0, max(0, _SMALLEST - height)))
        return ImageList((padded - self.pixel_mean) / self.pixel_std, images.image_sizes)

    def forward(self, batched_inputs: list[dict[str, Any]], paste_masks: bool = True) -> Any:
        """
        Args:
            batched_inputs: one dict per image, as in Detectron2: ``image`` (3, H, W); in training also ``instances``
                (possibly empty) with ``gt_boxes``, ``gt_classes`` and ``gt_masks`` (BitMasks).
            paste_masks: True returns (k, H, W) bool masks, as Detectron2 does; False leaves ``pred_masks`` as
                (k, 1, m, m) probabilities in the frame of ``pred_boxes``, without a k x H x W stack. Ignored in
                training.

        Returns:
            In training a dict of weighted losses. Otherwise one dict per image: ``instances`` with ``pred_boxes`` (the
            extents of the masks), ``scores`` (of the heatmap), ``pred_classes``, ``pred_masks``.
        """
        if not self.training:
            return self.inference(batched_inputs, paste_masks=paste_masks)
        if self.as_trained is not None:
            self.as_trained.check_training(batched_inputs)
        _, maps, levels = self._look(batched_inputs)
        return self.losses(maps, levels, [x["instances"].to(self.device) for x in batched_inputs])

    def _look(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[ImageList, tuple[Tensor, Tensor, Tensor], list[tuple[Tensor, ...]]]:
        """Return the preprocessed images, the maps of the centre head, and the features of every level by image."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        # The features are split by image, so that the gradient of a crop has the size of one image, not of the batch.
        return images, self.centre_head(features["c3"]), [features[name].unbind(0) for name in LEVELS]

    def losses(
        self, maps: tuple[Tensor, Tensor, Tensor], levels: Sequence[Sequence[Tensor]], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Return {"loss_heatmap", "loss_size", "loss_offset", "loss_mask", "loss_refine"}.

        Every parameter gets a gradient.
        """
        kept = [x[(x.gt_boxes.tensor[:, 2:] - x.gt_boxes.tensor[:, :2] >= self.min_side).all(1)] for x in targets]
        centres = [to_centres(x.gt_boxes.tensor) for x in kept]
        heatmap, size, offset = self.centre_losses(maps, centres, [x.gt_classes for x in kept])
        mask, refine = self._mask_losses(levels, kept, centres)
        names = ("heatmap", "size", "offset", "mask", "refine")
        losses = zip(names, (heatmap, size, offset, mask, refine), self.loss_weights, strict=True)
        return {f"loss_{name}": loss * weight for name, loss, weight in losses if loss is not None}

    def _mask_losses(
        self, levels: Sequence[Sequence[Tensor]], targets: Sequence[Instances], centres: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        chosen = [torch.arange(len(x), device=self.device) for x in centres]
        if self.max_train_rois:
            chosen = [x[torch.randperm(len(x), device=self.device)[: self.max_train_rois]] for x in chosen]
        number = torch.cat(chosen)
        masks = [x.gt_masks.tensor for x in targets]

        # Every parameter needs a gradient even if the batch of this process has no objects, or only small ones.
        nothing = _zero(self.segmentation)
        for level in levels:
            nothing = nothing + torch.stack([each[:, 0, 0].sum() for each in level]).sum() * 0.0
        mask_sums, mask_counts = [nothing[None]], [number.new_zeros(1)]
        refine_sums, refine_counts = [], []
        if self.refinement is not None:
            refine_sums.append(_zero(self.refinement).expand(1, 2))
            refine_counts.append(number.new_zeros(1, 2))
        for rois in self._group([c[i] for c, i in zip(centres, chosen, strict=True)]):
            logits, e1, e2 = self.segmentation(levels, rois)
            truth = crop_masks(masks, number[rois.index], rois)
            loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * rois.mask(0)[:, 0]
            mask_sums.append(loss.sum((1, 2)))
            mask_counts.append(rois.sizes[0].prod(1))
            if self.refinement is not None:
                sums, counts = self.refinement(logits, e1, e2, truth, rois)
                refine_sums.append(sums)
                refine_counts.append(counts)
        mask = self._reduce(torch.cat(mask_sums), torch.cat(mask_counts))
        if self.refinement is None:
            return mask, None
        return mask, self._reduce(torch.cat(refine_sums), torch.cat(refine_counts))

    def _reduce(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Return the mean over terms of each term's mean, ignoring terms without points; or the sum of all terms."""
        if self.reduction == "sum":
            return sums.sum()
        return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)

    def _group(self, centres: Sequence[Tensor]) -> list[Rois]:
        return group(centres, expand=self.expand, fixed=self.roi_size)

    def inference(
        self, batched_inputs: list[dict[str, Any]], *, paste_masks: bool = True
    ) -> list[dict[str, Instances]]:
        """Return the detections of each image in pixels of its file, best first; see ``forward``."""
        if self.as_trained is not None:
            batched_inputs = [self.as_trained(x) for x in batched_inputs]
        images, maps, levels = self._look(batched_inputs)
        found = decode(maps, images.image_sizes, self.top, self.score_threshold)
        self._warn_of_cap(batched_inputs, found)
        patches = []
        for rois in self._group([each.centres for each in found]):
            logits, _, _ = self.segmentation(levels, rois)
            patches.append((rois, logits.sigmoid() * rois.mask(0)[:, 0]))

        sizes = [
            (x.get("height", net[0]), x.get("width", net[1]))
            for x, net in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        scales = [
            maps[0].new_tensor([size[1] / net[1], size[0] / net[0]] * 2)
            for size, net in zip(sizes, images.image_sizes, strict=True)
        ]
        boxes, kept = [], []
        for each, frame, mask, scale, size in zip(*self._first_masks(found, patches), scales, sizes, strict=True):
            whole = Instances(size, pred_boxes=Boxes(frame * scale), pred_masks=mask[:, None])
            tight = [InstanceMask.of(m.mask, m.y0, m.x0) for m in instance_masks(whole, self.mask_threshold)]
            stay = mask_nms(tight, each.classes.tolist(), self.mask_nms)
            kept.append(torch.tensor(stay, dtype=torch.int64, device=self.device))
            extents = [(m.x0, m.y0, m.x0 + m.mask.shape[1], m.y0 + m.mask.shape[0]) for m in tight]
            boxes.append(frame.new_tensor(extents).reshape(-1, 4))
        # Read from the patches again, not from the masks, so that nothing is interpolated twice.
        frames = torch.cat([box / scale for box, scale in zip(boxes, scales, strict=True)])
        masks = self._read(patches, frames).split([len(box) for box in boxes])

        results = []
        for each, box, mask, keep, size in zip(found, boxes, masks, kept, sizes, strict=True):
            instances = Instances(
                size,
                pred_boxes=Boxes(box[keep]),
                scores=each.scores[keep],
                pred_classes=each.classes[keep],
                pred_masks=mask[keep][:, None],
            )
            if paste_masks:
                instances = detector_postprocess(instances, *size, mask_threshold=self.mask_threshold)
            results.append({"instances": instances})
        return results

    def _first_masks(
        self, found: Sequence[Centres], patches: Sequence[tuple[Rois, Tensor]]
    ) -> tuple[Sequence[Centres], list[Tensor], Sequence[Tensor]]:
        """Return the detections, and for each image the frames (k, 4), enlarged boxes, and their masks (k, m, m)."""
        frames = [
            to_corners(each.centres * each.centres.new_tensor([1, 1, self.expand, self.expand])) for each in found
        ]
        return found, frames, self._read(patches, torch.cat(frames)).split([len(x) for x in frames])

    def _warn_of_cap(self, batched_inputs: list[dict[str, Any]], found: Sequence[Centres]) -> None:
        for x, each in zip(batched_inputs, found, strict=True):
            if each.full:
                name = x.get("image_id", x.get("file_name", "an image"))
                logger.warning(
                    f"image {name}: reached the limit of {self.top} detections, so objects may be missing; raise "
                    "TEST.DETECTIONS_PER_IMAGE or MODEL.OBJECT_GUIDED.SCORE_THRESH_TEST"
                )

    def _read(self, patches: Sequence[tuple[Rois, Tensor]], frames: Tensor) -> Tensor:
        """Read the masks (K, m, m) of all objects in their frames (K, 4), in pixels of the network's input."""
        masks = frames.new_zeros(len(frames), self.mask_size, self.mask_size)
        for rois, patch in patches:
            masks[rois.index] = read_patches(patch, rois, frames[rois.index], self.mask_size)
        return masks


def _zero(module: nn.Module) -> Tensor:
    """Return 0 with a gradient of 0 for every parameter."""
    return torch.stack([parameter.sum() for parameter in module.parameters()]).sum() * 0.0


def mask_nms(masks: Sequence[InstanceMask], classes: Sequence[int], threshold: float) -> list[int]:
    """Greedy suppression by the IoU of masks.

    Args:
        masks: by descending score, in the smallest windows that contain them. Masks without pixels are dropped.
        classes: the class of each mask; masks suppress only masks of their own class.
        threshold: a mask is dropped if its IoU with a better mask that was kept is above it.

    Returns:
        The indices of the masks that are kept, ascending.
    """
    corner = np.array([(each.y0, each.x0) for each in masks]).reshape(-1, 2)
    far = corner + np.array([each.mask.shape for each in masks]).reshape(-1, 2)
    area = [each.area for each in masks]
    kind = np.asarray(classes)
    kept: list[int] = []
    for i, (y0, x0, mask) in enumerate(masks):
        if not area[i]:
            continue
        better = np.array(kept, dtype=np.int64)
        low, high = np.maximum(corner[better], corner[i]), np.minimum(far[better], far[i])
        touching = (low < high).all(axis=1) & (kind[better] == kind[i])
        for j, (top, left), (bottom, right) in zip(better[touching], low[touching], high[touching], strict=True):
            other_y, other_x, other = masks[j]
            own = mask[top - y0 : bottom - y0, left - x0 : right - x0]
            shared = np.count_nonzero(own & other[top - other_y : bottom - other_y, left - other_x : right - other_x])
            if shared > threshold * (area[i] + area[j] - shared):
                break
        else:
            kept.append(i)
    return kept
