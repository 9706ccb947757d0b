"""Bring images from elsewhere, such as Detectron2's ``DefaultPredictor``, to the grey values and size of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AUTO, BY_DEPTH, to_rgb8
from pffnet_d2.imaging.square import resize_to_square


class AsTrained:
    """Prepares one input of a model for inference.

    Grey values are normalised as MODEL.PFFNET.NORMALISATION says, unless the input has ``"normalised": True``.
    Prepared data sets and ``pffnet_d2.Predictor`` set it, because normalising twice would stretch the noise of an
    empty image. The image is resized as INPUT.SQUARE says, unless it already has that size.
    """

    def __init__(self, cfg: Any) -> None:
        self.normalisation = BY_DEPTH.get(cfg.MODEL.PFFNET.NORMALISATION, AUTO)
        self.side, self.stretch = int(cfg.INPUT.SQUARE.TEST), bool(cfg.INPUT.SQUARE.STRETCH)
        self.training_side = int(cfg.INPUT.SQUARE.TRAIN)
        self.resize = resize_to_square(self.side, stretch=self.stretch) if self.side else None

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            inputs: a dict as in Detectron2, with ``image`` (C, H, W), uint8 or floating point.

        Returns:
            The same dict with the prepared image. ``height`` and ``width``, if missing, are set to the original size.
        """
        image: Tensor = inputs["image"]
        height, width = image.shape[-2:]
        if not inputs.get("normalised"):
            image = self._normalise(image)
        if self.resize is not None and not self._has_size(height, width):
            given = T.AugInput(np.ascontiguousarray(_values(image).transpose(1, 2, 0)))
            self.resize(given)
            image = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1))).to(image)
        return {"height": height, "width": width, **inputs, "image": image}

    def check_training(self, inputs: list[dict[str, Any]]) -> None:
        """Check that training images have the size of INPUT.SQUARE.TRAIN. Detectron2's own mapper ignores that key.

        Args:
            inputs: a training batch, each with ``image`` (C, H, W).

        Raises:
            InputError: an image is not a square of INPUT.SQUARE.TRAIN pixels.
        """
        side = self.training_side
        for height, width in (each["image"].shape[-2:] for each in inputs if side):
            if (height, width) != (side, side):
                raise InputError(
                    f"INPUT.SQUARE.TRAIN {side}: a training image has {height} x {width} pixels; train with "
                    "`pffnet train` or pffnet_d2.engine.Trainer, which make it square, or set INPUT.SQUARE.TRAIN 0"
                )

    def _has_size(self, height: int, width: int) -> bool:
        return max(height, width) == self.side and (min(height, width) == self.side or not self.stretch)

    def _normalise(self, image: Tensor) -> Tensor:
        """Normalise an image of 8 or 16 bit whole numbers. Other values were changed before and stay as they are."""
        values = _values(image)
        if values.dtype.kind != "u" or (values.dtype == np.uint8 and self.normalisation == AUTO):
            return image
        if (values == values[:1]).all():  # a grey image has the percentiles of one of its channels
            values = values[:1]
        rgb = to_rgb8(values.transpose(1, 2, 0), self.normalisation)
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).to(image)


def _values(image: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Convert (C, H, W) to numpy: whole numbers from 0 to 255 become uint8, those from 0 to 65535 uint16."""
    values = image.cpu().numpy()
    if values.dtype.kind != "f" or not values.size:
        return values
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535 or (values != np.rint(values)).any():
        return values
    return values.astype(np.uint8 if high <= 255 else np.uint16)
