"""What finds the objects for Predictor: a network in torch, or one in a file that onnxruntime runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.model_zoo.facts import ModelFacts


@dataclass(frozen=True)
class Detected:
    """What a backend found in one image."""

    instances: Any  # Detectron2's Instances, or Detections, at the size of the image
    capped: tuple[str, ...]  # caps that were reached, as KEY VALUE of the config


class Backend(ABC):
    """A network that is loaded and ready.

    Attributes:
        facts: what its config says of images and label maps, with the thresholds of the options.
        device: the device it runs on, for messages.
        precision: of its convolutions and matrix products, "float32" or "bfloat16".
    """

    facts: ModelFacts
    device: str
    precision: str

    @abstractmethod
    def detect(self, images: Sequence[NDArray[np.uint8]], size: tuple[int, int] | None, above: float) -> list[Detected]:
        """Find the objects of normalised images, (H, W, 3) RGB, all of one size.

        Args:
            images: at least one.
            size: height and width at which the network sees them; None: as its config says.
            above: objects with a class score of at most this may be left out.

        Raises:
            DeviceMemoryError: the device has too little memory for them.
        """

    @abstractmethod
    def chosen(self, instances: Any, indices: Sequence[int]) -> Any:
        """Some of the instances that ``detect`` found, in this order, on the CPU."""

    @abstractmethod
    def identity(self, scale: float) -> str:
        """Differs between backends whose detections may differ, for images enlarged by ``scale``. It does not depend
        on where their files are."""
