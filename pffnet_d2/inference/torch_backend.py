"""Predicts with a network that torch and Detectron2 run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray

from pffnet_d2.data.augmentation import build_augmentations
from pffnet_d2.device import faster_in_bfloat16
from pffnet_d2.errors import DeviceMemoryError
from pffnet_d2.inference.backend import Backend, Detected
from pffnet_d2.inference.model_config import config_of
from pffnet_d2.inference.options import ModelOptions
from pffnet_d2.model_zoo.checkpoint import Checkpointer
from pffnet_d2.model_zoo.facts import ModelFacts
from pffnet_d2.modeling.build import build_network
from pffnet_d2.modeling.caps import only_above, scaled_caps
from pffnet_d2.modeling.fast_form import rearrange
from pffnet_d2.modeling.tta import for_inference


class TorchBackend(Backend):
    """A config and its weights.

    Attributes:
        cfg: the merged config, frozen.
        model: the network as prediction calls it (``modeling.tta.for_inference``), on a CPU rearranged for speed.
    """

    def __init__(self, options: ModelOptions) -> None:
        self.cfg = config_of(options)
        network: Any = build_network(self.cfg)
        Checkpointer(network).load(self.cfg.MODEL.WEIGHTS)
        network.eval()
        stride = int(getattr(getattr(network, "backbone", None), "size_divisibility", 0) or 1)
        self.facts = ModelFacts.from_config(self.cfg, stride)
        self.device = self.cfg.MODEL.DEVICE
        self.precision = options.precision
        if options.precision == "auto":
            self.precision = "bfloat16" if faster_in_bfloat16(self.device) else "float32"
        if torch.device(self.device).type == "cpu":
            rearrange(network, autocast=self.precision != "float32")
        self.model = for_inference(network, self.cfg)
        self._resize = T.AugmentationList(build_augmentations(self.cfg, is_train=False))

    @torch.inference_mode()  # what `chosen` returns outside of it are ordinary tensors
    def detect(self, images: Sequence[NDArray[np.uint8]], size: tuple[int, int] | None, above: float) -> list[Detected]:
        inputs = [self.input_of(image, size) for image in images]
        factor = self.facts.cap_factor(*inputs[0]["image"].shape[-2:])
        lower = torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16")
        try:
            with scaled_caps(self.model, self.cfg, factor) as reached, only_above(self.model, above), lower:
                outputs = self.model(inputs)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceMemoryError(str(error)) from None
        found = [_in_float32(output["instances"]) for output in outputs]
        return [Detected(each, reached.of_image(i, len(images), each)) for i, each in enumerate(found)]

    def chosen(self, instances: Instances, indices: Sequence[int]) -> Instances:
        index = torch.tensor(indices, dtype=torch.int64, device=instances.scores.device)
        return instances[index].to("cpu")

    def identity(self, scale: float) -> str:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""
        cfg.MODEL.DEVICE = cfg.MODEL.DEVICE.partition(":")[0]
        digest = hashlib.sha256(f"{cfg.dump()} scale {scale} {self.precision}".encode())
        for key, value in self.model.state_dict().items():
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def input_of(self, rgb: NDArray[np.uint8], size: tuple[int, int] | None) -> dict[str, Any]:
        """The input of the network, as the mapper makes it from a file; ``size`` as in ``detect``."""
        height, width = rgb.shape[:2]
        given = T.AugInput(rgb if self.cfg.INPUT.FORMAT == "RGB" else rgb[:, :, ::-1])
        if size is None:
            self._resize(given)
        else:  # bilinear; when reducing, each pixel is the average of those that it replaces
            given.transform(T.ResizeTransform(height, width, *size))
        tensor = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width, "normalised": True}


def _in_float32(instances: Instances) -> Instances:
    """The same instances; fields in bfloat16, which numpy does not know, become float32."""
    for name, values in instances.get_fields().items():
        if isinstance(values, torch.Tensor) and values.dtype == torch.bfloat16:
            instances.set(name, values.float())
    return instances
