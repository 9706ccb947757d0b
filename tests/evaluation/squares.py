"""A small data set of squares, and perfect detections of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes, BoxMode, Instances

from pffnet_d2.masks.coco import label_map_to_annotations

SIZE = (60, 90)
NAME = "evaluator_test"


def squares(columns: int) -> np.ndarray:
    """Label map with 3 rows of 8x8 squares, 10 pixels apart."""
    labels = np.zeros(SIZE, np.int32)
    for i in range(3 * columns):
        y, x = 10 * (i % 3) + 2, 10 * (i // 3) + 1
        labels[y : y + 8, x : x + 8] = i + 1
    return labels


TRUTHS = {11: squares(4), 12: squares(0), 13: squares(8)}


@contextmanager
def registered() -> Iterator[None]:
    """Three images, the second without objects, in Detectron2's format."""
    dicts = []
    for image_id, labels in TRUTHS.items():
        annotations = label_map_to_annotations(labels, image_id)
        for annotation in annotations:
            annotation |= {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        dicts.append(
            {
                "file_name": f"images/{image_id}.png",
                "image_id": image_id,
                "height": SIZE[0],
                "width": SIZE[1],
                "annotations": annotations,
            }
        )
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).thing_classes = ["nucleus"]
    try:
        yield
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def image(image_id: int) -> dict:
    return {"image_id": image_id, "file_name": f"images/{image_id}.png", "height": SIZE[0], "width": SIZE[1]}


def found(labels: np.ndarray, *, pasted: bool = False, keep: int | None = None) -> dict:
    """Instances of the objects of a label map (the first ``keep``); scores decrease with the label."""
    ids = [label for label in np.unique(labels).tolist() if label][:keep]
    extents = [np.nonzero(labels == label) for label in ids]
    boxes = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in extents], dtype=torch.float32)
    instances = Instances(SIZE, pred_boxes=Boxes(boxes.reshape(-1, 4)))
    instances.scores = torch.linspace(0.95, 0.6, len(ids))
    instances.pred_classes = torch.zeros(len(ids), dtype=torch.int64)
    instances.pred_masks = torch.ones(len(ids), 1, 28, 28)
    if pasted:
        instances.pred_masks = paste_masks_in_image(instances.pred_masks[:, 0], instances.pred_boxes, SIZE)
    else:
        instances.class_scores = instances.scores.sqrt()
    return {"instances": instances}


def nothing() -> dict:
    return found(np.zeros(SIZE, np.int32))
