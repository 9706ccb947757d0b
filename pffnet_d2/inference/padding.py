"""What lies beyond an image's right and bottom edge, where its sides are no multiple of the network's stride.

Detectron2 pads there with zeros after the mean is subtracted: with grey. Training crops of a whole number of strides
never show the network such an edge, and objects that touch it are scored low. The mirrored image has none.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import ImageList
from torch import Tensor, nn

from pffnet_d2.errors import InputError

PADDINGS = ("zero", "mirror")


def padded(model: nn.Module, cfg: Any) -> nn.Module:
    """The model itself, which from now on pads by MODEL.PFFNET.TEST_PADDING outside training.

    Raises:
        InputError: a padding that is unknown, or that the model cannot have.
    """
    padding = cfg.MODEL.PFFNET.TEST_PADDING
    if padding not in PADDINGS:
        raise InputError(f"MODEL.PFFNET.TEST_PADDING {padding!r} is not one of {', '.join(PADDINGS)}")
    if padding == "zero":
        return model
    if not isinstance(model, GeneralizedRCNN):
        raise InputError(f"MODEL.PFFNET.TEST_PADDING: {cfg.MODEL.META_ARCHITECTURE} pads by itself; set it to zero")
    plain = model.preprocess_image

    def preprocess_image(batched_inputs: list[dict[str, Any]]) -> ImageList:
        images = plain(batched_inputs)
        if not model.training:
            for image, size in zip(images.tensor, images.image_sizes, strict=True):
                mirror(image, size)
        return images

    model.preprocess_image = preprocess_image
    return model


def mirror(image: Tensor, size: tuple[int, int]) -> None:
    """Fill (C, H, W) in place beyond its first ``size`` (height, width) pixels with their reflection; the last row and
    column are the mirrors and not repeated."""
    rows, columns = (
        _reflected(padded_side, side).to(image.device) for padded_side, side in zip(image.shape[-2:], size, strict=True)
    )
    image.copy_(image[:, rows][:, :, columns])


def _reflected(padded_side: int, side: int) -> Tensor:
    """For each of ``padded_side`` places the place among the first ``side`` that it shows."""
    place = torch.arange(padded_side) % max(2 * (side - 1), 1)
    return torch.where(place < side, place, 2 * (side - 1) - place)
