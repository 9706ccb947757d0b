"""Panoptic quality of a model's panoptic output over a data set.

Detectron2 uses panopticapi, which is not on the package index.
"""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray

from pffnet_d2.atomic_write import write_text
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.truth import Truth
from pffnet_d2.masks.coco import paint

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of things (Kirillov et al., CVPR 2019), pooled over the data set, 0..100 as Detectron2 prints them.

    Results are ``{"panoptic_seg": {"PQ", "SQ", "RQ"}}``. With several classes these are means over classes, and there
    is also ``PQ-<class>`` for each. A segment and an object of the same class match if their IoU is above 0.5. The PQ
    of ``label_map`` is a mean over images; here the counts of all images are summed first. Segments of stuff do not
    count, because PFFNet predicts none. The memory does not depend on the number of images.
    """

    def __init__(
        self, dataset_name: str, *, output_dir: str | os.PathLike[str] | None = None, distributed: bool = True
    ) -> None:
        """
        Args:
            dataset_name: a name in ``DatasetCatalog``; its annotations, as painted by ``coco.paint``, are the truth.
            output_dir: folder for panoptic_seg.json; None: it is not written.
            distributed: sum the counts of all ranks.
        """
        self._dataset_name = dataset_name
        self._output_dir = Path(output_dir) if output_dir else None
        self._distributed = distributed
        self._classes: list[str] = MetadataCatalog.get(dataset_name).thing_classes
        self._truth = Truth(dataset_name)
        self.reset()

    def reset(self) -> None:
        # Columns: sum of IoU, TP, truths, predictions.
        self._counts: NDArray[np.float64] = np.zeros((len(self._classes), 4))

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Count a batch. ``outputs`` contain ``panoptic_seg``: segment ids (H, W), 0 void, and their infos.

        Raises:
            InputError: an image is not in the data set, has no annotations, or has another size.
        """
        for image, output in zip(inputs, outputs, strict=True):
            segments, infos = output["panoptic_seg"]
            size = segments.shape
            annotations = self._truth.annotations_of(image, size)
            labels, _ = paint(annotations, *size)
            class_of_truth = np.array([annotation["category_id"] for annotation in annotations], dtype=np.int64)
            ids = segments.cpu().numpy()
            things = {info["id"]: info["category_id"] for info in infos if info["isthing"]}
            table = ContingencyTable.from_labels(labels, np.where(np.isin(ids, list(things)), ids, 0))
            # The ids of the truth are positions in the list of annotations, starting at 1.
            gt_class = class_of_truth[table.gt_ids - 1]
            pred_class = np.array([things[i] for i in table.pred_ids.tolist()], dtype=np.int64)
            hit = (table.iou > 0.5) & (gt_class[table.gt_index] == pred_class[table.pred_index])
            matched = gt_class[table.gt_index[hit]]
            n = len(self._classes)
            self._counts += np.stack(
                [
                    np.bincount(matched, weights=table.iou[hit], minlength=n),
                    np.bincount(matched, minlength=n),
                    np.bincount(gt_class, minlength=n),
                    np.bincount(pred_class, minlength=n),
                ],
                axis=1,
            )

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Return the scores on the main process and an empty dict on the others.

        The scores are NaN if there was neither truth nor prediction.
        """
        counts = self._counts
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(counts, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            counts = np.sum(gathered, axis=0)
        iou, tp, truths, predictions = counts.T
        objects = truths + predictions
        with np.errstate(invalid="ignore"):
            rq = 200 * tp / objects  # in percent; NaN without objects
        sq = np.where(objects > 0, 100 * iou / np.maximum(tp, 1), np.nan)
        pq = rq * sq / 100
        there = objects > 0
        result = OrderedDict(
            (name, float(values[there].mean()) if there.any() else float("nan"))
            for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq))
        )
        if len(self._classes) > 1:
            result.update((f"PQ-{name}", float(value)) for name, value in zip(self._classes, pq, strict=True))
        if self._output_dir:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            written = {name: None if np.isnan(value) else value for name, value in result.items()}  # JSON has no NaN
            write_text(self._output_dir / "panoptic_seg.json", json.dumps(written, indent=2) + "\n")
        logger.info(f"panoptic quality on {self._dataset_name}, pooled:\n{create_small_table(result)}")
        return OrderedDict(panoptic_seg=result)
