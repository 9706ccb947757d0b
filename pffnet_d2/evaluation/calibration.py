"""Compares the scores of a model with the true quality of its masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AUTO, to_rgb8
from pffnet_d2.imaging.read import read_image
from pffnet_d2.masks.coco import annotations_to_label_map
from pffnet_d2.masks.instance_mask import InstanceMask
from pffnet_d2.masks.paste import instance_masks


def measure(predictor: Any, dataset: str, *, limit: int | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the scores and the true quality of every object in the label maps that a predictor makes of a data set.

    Args:
        predictor: :class:`~pffnet_d2.inference.predictor.Predictor`.
        dataset: a prepared data set with truth.
        limit: use only this many images, the first ones.

    Returns:
        (n,) columns: those of ``Prediction.scores``, and ``iou``, the IoU of the object's mask with the best matching
        true object; 0 if the mask overlaps none. The mask is the one before better objects cut it.

    Raises:
        InputError: the data set does not exist or has no truth, or nothing was found in its images.
    """
    if dataset not in DatasetCatalog.list():
        raise InputError(f"{dataset}: no such data set; name a prepared one, such as bbbc039_val")
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for record in DatasetCatalog.get(dataset)[:limit]:
        if "annotations" not in record:
            raise InputError(f"{dataset}: {record['file_name']} has no truth to compare with")
        truth = annotations_to_label_map(record["annotations"], record["height"], record["width"])
        # As evaluation reads it: the images of a prepared data set are normalised already.
        (prediction,) = predictor.predict([to_rgb8(read_image(record["file_name"]), AUTO)])
        masks = instance_masks(prediction.instances, predictor.rule.mask_threshold)
        columns = {**prediction.scores, "iou": best_ious(masks, truth)}
        for key, column in columns.items():
            rows.setdefault(key, []).append(np.asarray(column, dtype=np.float64))
    table = {key: np.concatenate(columns) for key, columns in rows.items()}
    if not table or not len(table["iou"]):
        raise InputError(f"{dataset}: nothing was found in its images; lower SCORE_THRESH, or train longer")
    return table


def best_ious(masks: list[InstanceMask], truth: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return each mask's highest intersection over union with an object of ``truth``, a label map."""
    areas = np.bincount(truth.ravel())
    ious = np.zeros(len(masks))
    for i, each in enumerate(masks):
        inside = truth[each.window][each.mask]
        shared = np.bincount(inside, minlength=len(areas)).astype(np.float64)
        shared[0] = 0
        ious[i] = (shared / np.maximum(areas + each.area - shared, 1)).max(initial=0)
    return ious
