"""Networks whose masks stay in the frame of their boxes, which avoids a stack of N masks of the size of the image."""

from __future__ import annotations

import inspect
from typing import Any

from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn

from pffnet_d2.device import denormals_flushed, device_of


def with_roi_masks(instances: Instances, height: int, width: int) -> Instances:
    """Scale boxes to the original image as ``detector_postprocess`` does, but leave masks in the frame of the boxes."""
    # Detectron2 pastes pred_masks. Under another name the masks of the boxes it keeps are only selected.
    held = Instances(instances.image_size, **instances.get_fields())
    held.roi_masks = held.pred_masks
    held.remove("pred_masks")
    held = detector_postprocess(held, height, width)
    held.pred_masks = held.roi_masks
    held.remove("roi_masks")
    return held


class Unpasted(nn.Module):
    """Calls a network of this package with ``paste_masks=False``, and Detectron2's own networks as they are.

    ``pred_masks`` of the former are (k, 1, m, m) probabilities in the frame of ``pred_boxes``, or ``InstanceMasks``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        takes = inspect.signature(self.model.forward).parameters
        self._arguments = {"paste_masks": False} if "paste_masks" in takes else {}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return what the network returns in evaluation mode."""
        with denormals_flushed(device_of(self.model)):
            return self.model(batched_inputs, **self._arguments)
