"""Networks whose masks stay in the frame of their boxes: no stack of N image-sized masks is ever made."""

from __future__ import annotations

import inspect
from typing import Any

from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn

from pffnet_d2.device import denormals_flushed, device_of


def with_roi_masks(instances: Instances, height: int, width: int) -> Instances:
    """``detector_postprocess`` (boxes in pixels of the original image) that leaves the masks in their boxes' frame."""
    # Upstream pastes what is called pred_masks; under another name the masks only follow the boxes it keeps.
    held = Instances(instances.image_size, **instances.get_fields())
    held.roi_masks = held.pred_masks
    held.remove("pred_masks")
    held = detector_postprocess(held, height, width)
    held.pred_masks = held.roi_masks
    held.remove("roi_masks")
    return held


class Unpasted(nn.Module):
    """A network of ours, called with ``paste_masks=False``: its ``pred_masks`` are (k, 1, m, m) probabilities in the
    frame of ``pred_boxes``, or ``InstanceMasks``. Others, Detectron2's own, are called as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        takes = inspect.signature(self.model.forward).parameters
        self._arguments = {"paste_masks": False} if "paste_masks" in takes else {}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """What the network returns in evaluation mode."""
        with denormals_flushed(device_of(self.model)):
            return self.model(batched_inputs, **self._arguments)
