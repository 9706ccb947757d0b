"""A Detectron2 evaluator of COCO's average precision without COCO's limit of 100 detections."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets, instances_to_coco_json
from detectron2.structures import Instances
from pycocotools.coco import COCO

from pffnet_d2.atomic_write import write_text
from pffnet_d2.masks.paste import instance_masks
from pffnet_d2.masks.rle import encode_masks

try:  # the same numbers, about fifty times faster
    import faster_coco_eval
except ImportError:
    faster_coco_eval = None

logger = logging.getLogger(__name__)


class DenseCOCOEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` (box and mask AP, 0..100) for images with more than COCO's 100 detections.

    The limit is ``max_detections``. A warning names each image that reaches it, because detections beyond the limit do
    not count. Masks are encoded from their windows, so that no N x H x W stack is made. faster-coco-eval is used if it
    is installed, otherwise pycocotools; the values are the same.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        max_detections: int,
        output_dir: str | os.PathLike[str] | None = None,
        distributed: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: a name in ``DatasetCatalog``.
            max_detections: number of detections per image that count, at least 1; TEST.DETECTIONS_PER_IMAGE of the
                model.
            output_dir: folder for Detectron2's files; required if the data set has no ``json_file`` in its metadata.
            distributed: collect the predictions of all ranks.
        """
        # Detectron2's own fast implementation cannot count more than 100.
        super().__init__(
            dataset_name,
            tasks=("bbox", "segm"),
            distributed=distributed,
            output_dir=os.fspath(output_dir) if output_dir else None,
            max_dets_per_image=max_detections,
            use_fast_impl=False,
        )
        self._max_detections = max_detections
        self.reset()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Store the boxes, scores and encoded masks of a batch. The masks are ROI masks or pasted masks."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            if len(instances) >= self._max_detections:
                logger.warning(
                    f"{image.get('file_name', image['image_id'])}: {len(instances)} detections reach the limit of "
                    f"{self._max_detections}, so AP may ignore some objects; raise TEST.DETECTIONS_PER_IMAGE"
                )
            boxes = Instances(
                instances.image_size,
                pred_boxes=instances.pred_boxes,
                scores=instances.scores,
                pred_classes=instances.pred_classes,
            )
            records = instances_to_coco_json(boxes.to("cpu"), image["image_id"])
            segmentations = encode_masks(instance_masks(instances), *instances.image_size)
            for record, segmentation in zip(records, segmentations, strict=True):
                record["segmentation"] = segmentation
            self._predictions.append({"image_id": image["image_id"], "instances": records})

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        """Do the same as Detectron2's method, except for the number of detections that count."""
        records = [record for prediction in predictions for record in prediction["instances"]]
        to_dataset = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if to_dataset is not None:
            from_contiguous = {contiguous: own for own, contiguous in to_dataset.items()}
            for record in records:
                record["category_id"] = from_contiguous[record["category_id"]]
        if self._output_dir:
            write_text(Path(self._output_dir) / "coco_instances_results.json", json.dumps(records))
        if not self._do_evaluation:
            logger.warning(f"{self._metadata.name} has no annotations: AP is not computed")
            return
        for task in self._tasks:
            counted = count_average_precision(self._coco_api, records, task, self._max_detections, img_ids)
            self._results[task] = self._derive_coco_results(
                counted, task, class_names=self._metadata.get("thing_classes")
            )


def count_average_precision(
    truth: COCO,
    records: Sequence[dict[str, Any]],
    task: str,
    max_detections: int,
    img_ids: Sequence[int] | None = None,
) -> Any:
    """Return the summarised COCOeval (pycocotools' or faster-coco-eval's) of detections, or None without detections.

    Args:
        records: COCO results, with boxes and masks.
        task: "bbox" or "segm".
        max_detections: number of detections per image and class that count.
        img_ids: images that count; None: all.
    """
    if not records:
        return None  # neither accepts an empty list
    records = copy.deepcopy(list(records))
    if task == "segm":
        for record in records:
            record.pop("bbox", None)  # otherwise the size classes would follow the box
    if faster_coco_eval is not None:
        truth = faster_coco_eval.COCO(truth.dataset)
        counter = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(records), task)
    else:
        counter = COCOevalMaxDets(truth, truth.loadRes(records), task)
    counter.params.maxDets = [1, 10, max_detections]
    if img_ids is not None:
        counter.params.imgIds = list(img_ids)
    counter.evaluate()
    counter.accumulate()
    counter.summarize()
    return counter
