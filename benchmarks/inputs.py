"""Training inputs as the mapper hands them on, for benchmarks that need no files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Instances
from numpy.typing import NDArray


def as_mapped(image: NDArray[np.uint8], labels: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """An image (H, W, 3) and its label map (H, W), ids with or without gaps, as a Detectron2 dict."""
    height, width = labels.shape
    masks = BitMasks(torch.from_numpy(labels == np.unique(labels[labels > 0])[:, None, None]))
    instances = Instances((height, width), gt_boxes=masks.get_bounding_boxes(), gt_masks=masks)
    instances.gt_classes = torch.zeros(len(instances), dtype=torch.int64)
    return {
        "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
        "height": height,
        "width": width,
        "instances": instances,
        "sem_seg": torch.from_numpy((labels > 0).astype(np.int64)),
    }
