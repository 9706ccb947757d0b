"""FCN-8s on VGG-16 and the erosion that splits its foreground into nuclei: the baseline of the DSB2018 coursework.

[C] Zhang, Wei, Yue: MLP Coursework 4, Instance Segmentation of Nucleus Images (2018). Details that [C] does not give
follow [T], the code it names as its source (Teichmann et al., MultiNet, arXiv 1612.07695). The layers are those of
Shelhamer, Long, Darrell, IEEE TPAMI 39, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import scipy
import skimage
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from numpy.typing import NDArray
from torch import Tensor, nn

from pffnet_d2.errors import InputError
from pffnet_d2.masks.instance_mask import InstanceMask, InstanceMasks

from .inputs import AsTrained

CONVS = (2, 2, 3, 3, 3)  # convolutions in each stage of VGG-16
CLASSES = 2  # background and nucleus
DROPOUT = 0.5  # after fc6 and fc7 [C]

# The linear layers of torchvision's vgg16 that are convolutions here. Its last one, ImageNet's classes, is not used.
TORCHVISION = {"classifier.0": "fc6", "classifier.3": "fc7"}


class VGG16(nn.Module):
    """VGG-16 whose fully connected layers are convolutions. ``features`` is numbered as in torchvision.

    Pooling rounds odd sizes up, so that no image needs padding ([T]'s "SAME").
    """

    def __init__(self, widths: Sequence[int], fc_dim: int, norm: str = "") -> None:
        """
        Args:
            widths: channels of the five stages; VGG: 64, 128, 256, 512, 512.
            fc_dim: channels of fc6 and fc7; VGG: 4096.
            norm: the norm of all convolutions; VGG has none.
        """
        super().__init__()
        layers: list[nn.Module] = []
        self.pools: list[int] = []  # the indices of the pooling layers in ``features``
        channels = 3
        for width, convs in zip(widths, CONVS, strict=True):
            for _ in range(convs):
                conv = Conv2d(channels, width, kernel_size=3, padding=1, norm=get_norm(norm, width))
                layers += [conv, nn.ReLU(inplace=True)]
                channels = width
            self.pools.append(len(layers))
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.fc6 = Conv2d(channels, fc_dim, kernel_size=7, padding=3, norm=get_norm(norm, fc_dim))
        self.fc7 = Conv2d(fc_dim, fc_dim, kernel_size=1, norm=get_norm(norm, fc_dim))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn (N, 3, H, W) into pool3, pool4 and fc7, which have ceil(H / 8), ceil(H / 16) and ceil(H / 32) rows."""
        pooled = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.pools:
                pooled.append(x)
        x = F.dropout(F.relu(self.fc6(x)), DROPOUT, self.training)
        x = F.dropout(F.relu(self.fc7(x)), DROPOUT, self.training)
        return pooled[2], pooled[3], x


def bilinear_upsampling(factor: int) -> nn.ConvTranspose2d:
    """Build a learnable transposed convolution from (N, 2, h, w) to (N, 2, factor h, factor w).

    It is initialised as bilinear interpolation of each class.
    """
    up = nn.ConvTranspose2d(CLASSES, CLASSES, 2 * factor, stride=factor, padding=factor // 2, bias=False)
    line = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    with torch.no_grad():
        up.weight.copy_(torch.einsum("ij,y,x->ijyx", torch.eye(CLASSES), line, line))
    return up


def erode_label_grow(foreground: NDArray[np.bool_], radius: int) -> NDArray[np.int32]:
    """Split a foreground where it is thin: erode it, label the parts, grow them back at equal speed ([C] 2.1).

    The parts grow until they fill exactly the foreground. [C] grows only as far as it erodes, and so loses corners,
    thin parts, and nuclei narrower than 2 ``radius`` + 1, which the erosion removes whole. Here these nuclei are parts
    too. The parts must be labelled between erosion and growth: growing first would join them again.

    Args:
        foreground: (H, W).
        radius: of the eroding disc, in pixels; 0 labels the foreground without erosion. The foreground is not eroded
            at the border of the image.

    Returns:
        (H, W) int32, 0 is background. Every part is 4-connected; the labels are in no particular order.
    """
    whole = skimage.measure.label(foreground, connectivity=1)
    seeds = skimage.measure.label(
        scipy.ndimage.binary_erosion(foreground, skimage.morphology.disk(radius), border_value=1), connectivity=1
    )
    seeded = np.zeros(whole.max() + 1, dtype=bool)
    seeded[whole[seeds > 0]] = True
    gone = foreground & ~seeded[whole]
    seeds[gone] = seeds.max() + whole[gone]
    if not seeds.any():
        return np.zeros(foreground.shape, np.int32)
    parts: NDArray[np.int32] = skimage.segmentation.watershed(
        scipy.ndimage.distance_transform_edt(seeds == 0), seeds, mask=foreground
    )
    return parts.astype(np.int32, copy=False)


@META_ARCH_REGISTRY.register()
class FCN8s(nn.Module):
    """FCN-8s, and the instances made from its foreground.

    The instances do not overlap. They have ``pred_boxes`` (extents of the masks, pixels), ``pred_classes`` (0),
    ``scores`` (mean foreground probability in the mask, in (0.5, 1]; descending) and ``pred_masks``.
    """

    @configurable
    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        fc_dim: int = 4096,
        norm: str = "",
        erosion_radius: int = 2,
        max_instances: int = 1000,
        ignore_value: int = 255,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        as_trained: AsTrained | None = None,
    ) -> None:
        """
        Args:
            widths, fc_dim, norm: see :class:`VGG16`.
            erosion_radius: see :func:`erode_label_grow`.
            max_instances: the largest number of instances per image; those with the best scores are kept.
            ignore_value: the value of pixels without truth in semantic targets.
            pixel_mean, pixel_std: one value per channel.
            as_trained: applied to the inputs of inference first; None: they are used as they are.
        """
        super().__init__()
        self.as_trained = as_trained
        self.backbone = VGG16(widths, fc_dim, norm)
        # [T]: these read the pools' maps without a norm, and are initialised close to zero.
        self.score_fc7 = nn.Conv2d(fc_dim, CLASSES, kernel_size=1)
        self.score_pool4 = nn.Conv2d(widths[3], CLASSES, kernel_size=1)
        self.score_pool3 = nn.Conv2d(widths[2], CLASSES, kernel_size=1)
        deviations = {self.score_fc7: math.sqrt(2 / fc_dim), self.score_pool4: 1e-3, self.score_pool3: 1e-4}
        for score, deviation in deviations.items():
            nn.init.trunc_normal_(score.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            nn.init.zeros_(cast(Tensor, score.bias))
        self.up_fc7 = bilinear_upsampling(2)
        self.up_pool4 = bilinear_upsampling(2)
        self.up_pool3 = bilinear_upsampling(8)
        self.erosion_radius = erosion_radius
        self.max_instances = max_instances
        self.ignore_value = ignore_value
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        keys = cfg.MODEL.FCN8S
        if "panoptic" in cfg.MODEL.PFFNET.OUTPUTS:
            raise InputError("MODEL.PFFNET.OUTPUTS: FCN8s has no panoptic output; leave it at instances and semantic")
        return {
            "widths": keys.WIDTHS,
            "fc_dim": keys.FC_DIM,
            "norm": keys.NORM,
            "erosion_radius": keys.EROSION_RADIUS,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "as_trained": AsTrained(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.score_fc7.weight.device

    def without_weight_decay(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but the weights of VGG's 13 convolutions and of the scores: [T] decays only those."""
        for module in (self.backbone.fc6, self.backbone.fc7, self.up_fc7, self.up_pool4, self.up_pool3):
            yield from module.parameters()

    def logits(self, images: Tensor) -> Tensor:
        """Turn a normalised (N, 3, H, W) into logits (N, 2, H, W), for any H and W."""
        pool3, pool4, fc7 = self.backbone(images)
        # Each coarser map starts at the upper left corner of the finer one and, if its size is odd, reaches beyond it.
        x = self.score_pool4(pool4)
        x = x + self.up_fc7(self.score_fc7(fc7))[..., : x.shape[-2], : x.shape[-1]]
        y = self.score_pool3(pool3)
        y = y + self.up_pool4(x)[..., : y.shape[-2], : y.shape[-1]]
        logits: Tensor = self.up_pool3(y)[..., : images.shape[-2], : images.shape[-1]]
        return logits

    def forward(self, batched_inputs: list[dict[str, Any]], paste_masks: bool = True) -> Any:
        """
        Args:
            batched_inputs: one dict per image, as in Detectron2: ``image`` (3, H, W); in training also ``sem_seg``
                (H, W) int64. Images of different sizes are padded to the largest; a single image is not padded.
            paste_masks: True returns (k, H, W) bool masks, as Detectron2 does; False returns ``InstanceMasks``.

        Returns:
            In training ``{"loss_sem_seg": ...}``, the mean cross-entropy over the pixels that have a truth. Otherwise
            one dict per image, at its original size: ``instances`` and ``sem_seg`` (2, H, W) logits.
        """
        if self.as_trained is not None and self.training:
            self.as_trained.check_training(batched_inputs)
        elif self.as_trained is not None:
            batched_inputs = [self.as_trained(x) for x in batched_inputs]
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        padded = ImageList.from_tensors(images)
        logits = self.logits(padded.tensor).float()
        if self.training:
            maps = [x["sem_seg"].to(self.device) for x in batched_inputs]
            targets = ImageList.from_tensors(maps, pad_value=self.ignore_value).tensor
            return {"loss_sem_seg": F.cross_entropy(logits, targets, ignore_index=self.ignore_value)}

        results = []
        for each, inputs, size in zip(logits, batched_inputs, padded.image_sizes, strict=True):
            height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
            sem_seg = sem_seg_postprocess(each, size, height, width)
            results.append({"instances": self._instances(sem_seg.softmax(0)[1], paste_masks), "sem_seg": sem_seg})
        return results

    def _instances(self, probability: Tensor, paste_masks: bool) -> Instances:
        """Make the instances of one image from its foreground probabilities (H, W)."""
        found = probability.detach().cpu().numpy()
        parts = erode_label_grow(found > 0.5, self.erosion_radius)
        sums = np.bincount(parts.ravel(), weights=found.ravel())
        areas = np.bincount(parts.ravel())
        extents = {
            i: window for i, window in enumerate(scipy.ndimage.find_objects(parts), start=1) if window is not None
        }
        order = sorted(extents, key=lambda i: -sums[i] / areas[i])[: self.max_instances]

        boxes, cut = np.zeros((len(order), 4), np.float32), []
        for box, i in zip(boxes, order, strict=True):
            rows, columns = extents[i]
            box[:] = columns.start, rows.start, columns.stop, rows.stop
            cut.append(InstanceMask(rows.start, columns.start, parts[rows, columns] == i))
        masks = InstanceMasks(cut, parts.shape)
        instances = Instances(parts.shape, pred_boxes=Boxes(torch.from_numpy(boxes).to(self.device)))
        instances.scores = torch.from_numpy((sums / np.maximum(areas, 1))[order].astype(np.float32)).to(self.device)
        instances.pred_classes = torch.zeros(len(order), dtype=torch.int64, device=self.device)
        instances.pred_masks = masks.tensor.to(self.device) if paste_masks else masks
        return instances

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict as ``nn.Module`` does, or the weights of torchvision's vgg16 into the backbone.

        Raises:
            ValueError: the weights have other widths, or values that are not finite.
        """
        if any(name.startswith("features.") for name in state_dict):
            state_dict = self._from_torchvision(state_dict)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _from_torchvision(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = self.backbone.state_dict()
        found = {}
        for name, value in given.items():
            layer, _, kind = name.rpartition(".")
            target = f"{TORCHVISION.get(layer, layer)}.{kind}"
            if target not in own:
                continue
            shape = own[target].shape
            if value.shape[0] != shape[0] or value.numel() != shape.numel():
                raise ValueError(f"{name} has the shape {tuple(value.shape)} in the file, {tuple(shape)} here.")
            if not value.isfinite().all():
                # torchvision's file that has only the features fills the other layers with NaN
                raise ValueError(f"{name} holds values that are not finite; take torchvision's IMAGENET1K_V1.")
            found[f"backbone.{target}"] = value.reshape(shape)
        return found
