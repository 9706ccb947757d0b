"""Do the scores of a model say how good its masks are?"""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import read_image
from pffnet_d2.masks.coco import annotations_to_label_map
from pffnet_d2.masks.instance_mask import InstanceMask
from pffnet_d2.masks.paste import instance_masks


def measure(predictor: Any, dataset: str, *, limit: int | None = None) -> dict[str, NDArray[np.float64]]:
    """Scores and true quality of every object that a predictor lays into the label maps of a data set.

    Args:
        predictor: :class:`~pffnet_d2.inference.predictor.Predictor`.
        dataset: a prepared data set with truth.
        limit: only the first so many images.

    Returns:
        (n,) columns: those of ``Prediction.scores``, and ``iou``: of the object's mask, before better ones cut it, with
        the true object that it fits best; 0 where it meets none.

    Raises:
        InputError: no such data set, one without truth, or nothing found.
    """
    if dataset not in DatasetCatalog.list():
        raise InputError(f"{dataset}: no such data set; name a prepared one, such as bbbc039_val")
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for record in DatasetCatalog.get(dataset)[:limit]:
        if "annotations" not in record:
            raise InputError(f"{dataset}: {record['file_name']} has no truth to compare with")
        truth = annotations_to_label_map(record["annotations"], record["height"], record["width"])
        prediction = predictor(read_image(record["file_name"]))
        masks = instance_masks(prediction.instances, predictor.rule.mask_threshold)
        columns = {**prediction.scores, "iou": best_ious(masks, truth)}
        for key, column in columns.items():
            rows.setdefault(key, []).append(np.asarray(column, dtype=np.float64))
    table = {key: np.concatenate(columns) for key, columns in rows.items()}
    if not table or not len(table["iou"]):
        raise InputError(f"{dataset}: nothing was found in its images; lower SCORE_THRESH, or train longer")
    return table


def best_ious(masks: list[InstanceMask], truth: NDArray[np.int32]) -> NDArray[np.float64]:
    """The highest intersection over union of each mask with an object of ``truth``, a label map."""
    areas = np.bincount(truth.ravel())
    ious = np.zeros(len(masks))
    for i, each in enumerate(masks):
        inside = truth[each.window][each.mask]
        shared = np.bincount(inside, minlength=len(areas)).astype(np.float64)
        shared[0] = 0
        ious[i] = (shared / np.maximum(areas + each.area - shared, 1)).max(initial=0)
    return ious
