"""A Detectron2 evaluator of Pascal VOC's average precision, as object-guided instance segmentation reports it."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray

from pffnet_d2.atomic_write import write_text
from pffnet_d2.evaluation.metrics import DSB_THRESHOLDS, area_under_precision, voc_hits
from pffnet_d2.evaluation.truth import Truth
from pffnet_d2.masks.coco import annotations_to_masks
from pffnet_d2.masks.paste import instance_masks
from pffnet_d2.masks.rle import encode_masks

logger = logging.getLogger(__name__)


class _Detections(NamedTuple):
    """The detections of an image for average precision, by descending score."""

    truths: int
    scores: NDArray[np.float64]  # (P,)
    mask_hits: NDArray[np.bool_]  # (10, P): which are TP, for each threshold
    box_hits: NDArray[np.bool_]  # (10, P)


class VOCEvaluator(DatasetEvaluator):
    """Average precision as object-guided instance segmentation reports it (Yi et al., IEEE TMI 40, 2021), 0..100.

    Results are ``{"voc": {"mask_AP", "mask_AP50", "mask_AP75", "box_AP", "box_AP50", "box_AP75"}}``: the all-point AP
    of Pascal VOC 2010 (:func:`~pffnet_d2.evaluation.metrics.area_under_precision`) at IoU 0.5, at 0.75, and the mean
    over 0.5, 0.55 ... 0.95. It is 100 without truth and detections, and 0 with only one of them. The boxes of truth and
    prediction are the extents of the masks in whole pixels. As in the released code, a mask needs an IoU above the
    threshold, and a box an IoU of at least the threshold. All detections count, and all objects except crowds. Classes
    are not distinguished.
    """

    def __init__(
        self, dataset_name: str, *, output_dir: str | os.PathLike[str] | None = None, distributed: bool = True
    ) -> None:
        """
        Args:
            dataset_name: a name in ``DatasetCatalog`` whose annotations are the truth; overlapping ones are complete.
            output_dir: folder for voc.json; None: it is not written.
            distributed: collect the detections of all ranks.
        """
        self._dataset_name = dataset_name
        self._output_dir = Path(output_dir) if output_dir else None
        self._distributed = distributed
        self._truth = Truth(dataset_name)
        self.reset()

    def reset(self) -> None:
        self._found: dict[Any, _Detections] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Compare a batch. ``outputs`` contain ``Instances`` with masks in any form that ``instance_masks`` accepts.

        Raises:
            InputError: an image is not in the data set, has no annotations, or has another size.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            size = instances.image_size
            annotations = self._truth.annotations_of(image, size)
            objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
            truth = encode_masks(annotations_to_masks(objects, *size), *size)
            found = encode_masks(instance_masks(instances), *size)
            scores = instances.scores.cpu().numpy().astype(np.float64)
            order = np.argsort(-scores, kind="stable")
            mask_iou = box_iou = np.zeros((len(found), len(truth)))
            if mask_iou.size:  # pycocotools does not accept empty lists
                crowds = [False] * len(truth)
                mask_iou = mask_util.iou(found, truth, crowds)
                box_iou = mask_util.iou(mask_util.toBbox(found), mask_util.toBbox(truth), crowds)
            self._found[image["image_id"]] = _Detections(
                len(truth),
                scores[order],
                np.array([voc_hits(mask_iou[order], threshold) for threshold in DSB_THRESHOLDS]),
                np.array([voc_hits(box_iou[order], threshold, strict=False) for threshold in DSB_THRESHOLDS]),
            )

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Return AP on the main process and an empty dict on the others."""
        images = self._truth.in_order(self._found, self._distributed)
        if images is None:
            return OrderedDict()
        truths = sum(image.truths for image in images)
        scores = np.concatenate([np.zeros(0), *(image.scores for image in images)])
        result: OrderedDict[str, float] = OrderedDict()
        for kind in ("mask", "box"):
            none = np.zeros((len(DSB_THRESHOLDS), 0), dtype=bool)
            hits = np.concatenate([none, *(getattr(image, f"{kind}_hits") for image in images)], axis=1)
            values = [100 * area_under_precision(own, scores, truths) for own in hits]
            result[f"{kind}_AP"] = float(np.mean(values))
            result[f"{kind}_AP50"] = values[DSB_THRESHOLDS.index(0.50)]
            result[f"{kind}_AP75"] = values[DSB_THRESHOLDS.index(0.75)]
        if self._output_dir:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            write_text(self._output_dir / "voc.json", json.dumps(result, indent=2) + "\n")
        logger.info(f"VOC 2010 average precision on {self._dataset_name}:\n{create_small_table(result)}")
        return OrderedDict(voc=result)
