"""Detectron2 evaluators for images full of small objects: label-map metrics, and COCO AP without its detection cap."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from pffnet_d2.data.coco import annotations_to_label_map
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.inference.label_map import Window, instances_to_label_map, render_windows

logger = logging.getLogger(__name__)

# Reported names and the functions behind them; PQ, DQ and SQ come from one call.
LABEL_MAP_METRICS: dict[str, Callable[[ContingencyTable], float]] = {
    "AJI": metrics.aji,
    "AJI+": metrics.aji_plus,
    "Dice": metrics.dice,
    "F1": metrics.object_f1,
    "PQ": lambda table: metrics.panoptic_quality(table).pq,
    "DQ": lambda table: metrics.panoptic_quality(table).dq,
    "SQ": lambda table: metrics.panoptic_quality(table).sq,
}


class LabelMapEvaluator(DatasetEvaluator):
    """Scores each image's label map against the flattened truth and averages over images, as the papers do.

    Results are ``{"label_map": {"AJI", "AJI+", "Dice", "F1" (object-level), "PQ", "DQ", "SQ"}}``, means over images as
    fractions in [0, 1] (NaN without images). With ``output_dir`` the main process writes ``label_map.csv``, one row an
    image, and ``label_map.json``: mean and population standard deviation. Only one row an image is kept in memory.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        score_threshold: float = 0.5,
        mask_threshold: float = 0.5,
        max_covered: float = 0.7,
        output_dir: str | os.PathLike[str] | None = None,
        distributed: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: a name in ``DatasetCatalog`` whose annotations are the truth.
            score_threshold, mask_threshold, max_covered: of
                :func:`~pffnet_d2.inference.label_map.instances_to_label_map`.
            output_dir: where the two files go; None writes none.
            distributed: collect the rows of all ranks; False scores this process alone.
        """
        self._dataset_name = dataset_name
        self._rule: dict[str, Any] = {
            "score_threshold": score_threshold,
            "mask_threshold": mask_threshold,
            "max_covered": max_covered,
        }
        self._output_dir = Path(output_dir) if output_dir else None
        self._distributed = distributed
        self._truth: dict[Any, dict[str, Any]] = {
            entry["image_id"]: entry for entry in DatasetCatalog.get(dataset_name)
        }
        self.reset()

    def reset(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Score a batch; ``outputs`` hold ``Instances`` with ROI masks or pasted masks.

        Raises:
            InputError: an image the data set does not have, one without annotations, or one of another size.
        """
        for image, output in zip(inputs, outputs, strict=True):
            truth = self._truth.get(image["image_id"])
            name = image.get("file_name", f"image {image['image_id']}")
            if truth is None:
                raise InputError(
                    f"{name}: {self._dataset_name} has no image {image['image_id']!r}; "
                    "evaluate with the loader of the same data set"
                )
            if "annotations" not in truth:
                raise InputError(f"{name}: {self._dataset_name} has no annotations for it; only annotated images score")
            size = truth["height"], truth["width"]
            instances = output["instances"]
            if tuple(instances.image_size) != size:
                raise InputError(
                    f"{name}: the prediction has {tuple(instances.image_size)} pixels, the truth {size} "
                    "(height, width); predict in the size of the original image"
                )
            table = ContingencyTable.from_labels(
                annotations_to_label_map(truth["annotations"], *size),
                instances_to_label_map(instances, **self._rule),
            )
            row = {"image_id": image["image_id"], "file_name": name, "truths": table.n_gt, "predictions": table.n_pred}
            self._rows.append(row | {key: metric(table) for key, metric in LABEL_MAP_METRICS.items()})

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Mean scores on the main process, an empty dict on the others."""
        rows = self._rows
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(rows, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            rows = [row for part in gathered for row in part]
        # In the data set's order, whatever rank scored them; an image that two ranks saw counts once.
        scored = {row["image_id"]: row for row in rows}
        rows = [scored[image_id] for image_id in self._truth if image_id in scored]
        if len(rows) < len(self._truth):
            logger.warning(f"{self._dataset_name}: {len(rows)} of {len(self._truth)} images were scored")

        values = {key: np.array([row[key] for row in rows], dtype=np.float64) for key in LABEL_MAP_METRICS}
        mean = OrderedDict((key, float(value.mean()) if rows else float("nan")) for key, value in values.items())
        if self._output_dir:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, ["image_id", "file_name", "truths", "predictions", *LABEL_MAP_METRICS])
            writer.writeheader()
            writer.writerows(rows)
            _write(self._output_dir / "label_map.csv", text.getvalue())
            summary = {
                "dataset": self._dataset_name,
                "images": len(rows),
                **self._rule,
                # JSON has no NaN.
                "mean": {key: value if rows else None for key, value in mean.items()},
                "std": {key: float(value.std()) if rows else None for key, value in values.items()},
            }
            _write(self._output_dir / "label_map.json", json.dumps(summary, indent=2) + "\n")
        logger.info(f"label maps of {self._dataset_name}, mean of {len(rows)} images:\n{create_small_table(mean)}")
        return OrderedDict(label_map=mean)


class DenseCOCOEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` (box and mask AP, 0..100) for images with more than COCO's 100 detections.

    The cap is ``max_detections``; an image that reaches it is named in a warning, for detections beyond it are lost to
    the score. Masks are encoded from their windows, so that no N x H x W stack is made.
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
            max_detections: detections an image that count, at least 1; TEST.DETECTIONS_PER_IMAGE of the model.
            output_dir: where upstream's files go; needed where the data set has no ``json_file`` in its metadata.
            distributed: collect the predictions of all ranks.
        """
        # The official implementation, the only one that can count more than 100.
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
        """Keep the boxes, scores and encoded masks of a batch; masks are ROI masks or pasted masks."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            if len(instances) >= self._max_detections:
                logger.warning(
                    f"{image.get('file_name', image['image_id'])}: {len(instances)} detections reach the cap of "
                    f"{self._max_detections}, so AP may leave some out; raise TEST.DETECTIONS_PER_IMAGE"
                )
            boxes = Instances(
                instances.image_size,
                pred_boxes=instances.pred_boxes,
                scores=instances.scores,
                pred_classes=instances.pred_classes,
            )
            records = instances_to_coco_json(boxes.to("cpu"), image["image_id"])
            segmentations = windows_to_rle(render_windows(instances), *instances.image_size)
            for record, segmentation in zip(records, segmentations, strict=True):
                record["segmentation"] = segmentation
            self._predictions.append({"image_id": image["image_id"], "instances": records})


def windows_to_rle(windows: Sequence[Window], height: int, width: int) -> list[dict[str, Any]]:
    """COCO run lengths of masks given by their windows (y0, x0, mask).

    Returns:
        ``{"size": [height, width], "counts": str}`` for each, byte for byte what ``pycocotools.mask.encode`` gives for
        the (height, width) masks.
    """
    uncompressed = []
    for y0, x0, mask in windows:
        # COCO counts down the columns; an unset pixel at both ends of each keeps its runs apart.
        columns = np.zeros((mask.shape[1], mask.shape[0] + 2), dtype=bool)
        columns[:, 1:-1] = mask.T
        flat = columns.ravel()
        column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), columns.shape[1])
        edges = (x0 + column) * height + y0 + row  # run starts and ends by turns, in pixels of the whole image
        # A run that reaches the bottom of the image goes on at the top of the next column.
        joined = np.flatnonzero(edges[1:] == edges[:-1])
        edges = np.delete(edges, np.concatenate([joined, joined + 1]))
        if not len(edges) or edges[-1] < height * width:
            edges = np.append(edges, height * width)
        uncompressed.append({"size": [height, width], "counts": np.diff(edges, prepend=0)})
    # pycocotools cannot take an empty list.
    encoded = mask_util.frPyObjects(uncompressed, height, width) if uncompressed else []
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in encoded]


def _write(path: Path, text: str) -> None:
    """A text file that is either whole or not there."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8", newline="")
    os.replace(beside, path)
