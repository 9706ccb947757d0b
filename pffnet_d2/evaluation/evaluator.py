"""Detectron2 evaluators for images full of small objects: label-map metrics, and COCO AP without its detection cap."""

from __future__ import annotations

import copy
import json
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets, instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray
from pycocotools.coco import COCO

from pffnet_d2.atomic_write import write_text
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.metrics import DSB_THRESHOLDS, area_under_precision, voc_hits
from pffnet_d2.evaluation.scores import METRICS, Row, read_groups, score, summaries, table_of, write_scores
from pffnet_d2.imaging.read import AUTO, read_image, to_rgb8
from pffnet_d2.masks.coco import annotations_to_label_map, annotations_to_masks
from pffnet_d2.masks.compose import LabelMapRule, instances_to_label_map
from pffnet_d2.masks.paste import instance_masks
from pffnet_d2.masks.rle import encode_masks
from pffnet_d2.visualization.overlay import side_by_side, write_png

try:  # the same numbers, some fifty times faster
    import faster_coco_eval
except ImportError:
    faster_coco_eval = None

logger = logging.getLogger(__name__)


class _Scored(NamedTuple):
    """An image's scores and what was found in it."""

    image_id: Any
    row: Row
    label_map: bytes  # int32, compressed


class LabelMapEvaluator(DatasetEvaluator):
    """Scores each image's label map against the flattened truth and averages over images, as the papers do.

    Results are ``{"label_map": {name: mean}}`` for the names of ``scores.METRICS`` (docs/metrics.md), means over the
    images whose score is a number, fractions in [0, 1] except counts and distances (NaN without images). With
    ``output_dir`` the main process writes ``label_map.csv``, one row an image, ``label_map.json``: mean, population
    standard deviation and scores left out, also by the ``group`` of the prepared json, and
    ``examples/{best,median,worst}.png``: image | truth | prediction of three images with objects, by AJI. Of each image
    its row and its label map, compressed, are kept in memory.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | os.PathLike[str] | None = None,
        distributed: bool = True,
        rule: LabelMapRule | None = None,
    ) -> None:
        """
        Args:
            dataset_name: a name in ``DatasetCatalog`` whose annotations are the truth.
            output_dir: where the files go; None writes none.
            distributed: collect the rows of all ranks; False scores this process alone.
            rule: how detections become a label map; None: the default.
        """
        self._dataset_name = dataset_name
        self._rule = rule or LabelMapRule()
        self._output_dir = Path(output_dir) if output_dir else None
        self._distributed = distributed
        self._truth: dict[Any, dict[str, Any]] = {
            entry["image_id"]: entry for entry in DatasetCatalog.get(dataset_name)
        }
        json_file = Path(getattr(MetadataCatalog.get(dataset_name), "json_file", ""))
        self._groups = read_groups(json_file) if json_file.is_file() else {}
        self.reset()

    def reset(self) -> None:
        self._scored: dict[Any, _Scored] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Score a batch; ``outputs`` hold ``Instances`` with ROI masks or pasted masks.

        Raises:
            InputError: an image the data set does not have, one without annotations, or one of another size.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            annotations = _truth_of(image, instances, self._truth, self._dataset_name)
            stem = Path(image.get("file_name", f"image {image['image_id']}")).stem
            truth = annotations_to_label_map(annotations, *instances.image_size)
            found = instances_to_label_map(instances, self._rule)
            row = score(stem, truth, found, self._groups.get(stem, ""))
            packed = zlib.compress(found.astype(np.int32).tobytes(), level=1) if self._output_dir else b""
            self._scored[image["image_id"]] = _Scored(image["image_id"], row, packed)

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Mean scores on the main process, an empty dict on the others."""
        scored = _of_all_ranks(self._scored, self._truth, self._dataset_name, self._distributed)
        if scored is None:
            return OrderedDict()
        rows = [each.row for each in scored]
        found = summaries(rows)
        mean = OrderedDict((name, found[name].mean) for name in METRICS)
        if self._output_dir:
            write_scores(self._output_dir, rows, {"dataset": self._dataset_name, **asdict(self._rule)})
            self._draw_examples(scored, self._output_dir / "examples")
        logger.info(f"label maps of {self._dataset_name}, mean of images:\n{table_of(rows)}")
        return OrderedDict(label_map=mean)

    def _draw_examples(self, scored: Sequence[_Scored], folder: Path) -> None:
        with_objects = sorted((each for each in scored if each.row["truths"]), key=lambda each: each.row["AJI"])
        if not with_objects:
            return
        for name, place in (("best", -1), ("median", len(with_objects) // 2), ("worst", 0)):
            image_id, row, packed = with_objects[place]
            entry = self._truth[image_id]
            size = entry["height"], entry["width"]
            try:
                image = to_rgb8(read_image(entry["file_name"]), AUTO)
            except InputError as error:  # the scores are there, only the picture is not
                logger.warning(f"no picture of the {name} image: {error}")
                continue
            truth = annotations_to_label_map(entry["annotations"], *size)
            found = np.frombuffer(zlib.decompress(packed), np.int32).reshape(size)
            write_png(folder / f"{name}.png", side_by_side(image, truth, found))
            logger.info(f"{folder / name}.png: {row['image']}, AJI {row['AJI']:.4f}")


T = TypeVar("T")


def _of_all_ranks(own: dict[Any, T], truth: Iterable[Any], dataset_name: str, distributed: bool) -> list[T] | None:
    """What all ranks have for the images of ``truth``, in that order, whatever rank had it; None but on the main
    process."""
    found = own
    if distributed:
        comm.synchronize()
        gathered = comm.gather(own, dst=0)
        if not comm.is_main_process():
            return None
        # An image that two ranks saw counts once.
        found = {image_id: each for part in gathered for image_id, each in part.items()}
    images = list(truth)
    ordered = [found[image_id] for image_id in images if image_id in found]
    if len(ordered) < len(images):
        logger.warning(f"{dataset_name}: {len(ordered)} of {len(images)} images were scored")
    return ordered


def _truth_of(
    image: dict[str, Any], instances: Instances, truth: dict[Any, dict[str, Any]], dataset_name: str
) -> list[dict[str, Any]]:
    """The annotations of the image that instances were found in.

    Raises:
        InputError: the data set has no such image, it is without annotations, or of another size.
    """
    name = image.get("file_name", f"image {image['image_id']}")
    own = truth.get(image["image_id"])
    if own is None:
        raise InputError(
            f"{name}: {dataset_name} has no image {image['image_id']!r}; evaluate with the loader of the same data set"
        )
    if "annotations" not in own:
        raise InputError(f"{name}: {dataset_name} has no annotations for it; only annotated images score")
    size = own["height"], own["width"]
    if tuple(instances.image_size) != size:
        raise InputError(
            f"{name}: the prediction has {tuple(instances.image_size)} pixels, the truth {size} "
            "(height, width); predict in the size of the original image"
        )
    annotations: list[dict[str, Any]] = own["annotations"]
    return annotations


class _Detections(NamedTuple):
    """What an image adds to average precision, its detections by descending score."""

    truths: int
    scores: NDArray[np.float64]  # (P,)
    mask_hits: NDArray[np.bool_]  # (10, P): which are TP, by threshold
    box_hits: NDArray[np.bool_]  # (10, P)


class VOCEvaluator(DatasetEvaluator):
    """Average precision as object-guided instance segmentation reports it (Yi et al., IEEE TMI 40, 2021), 0..100.

    Results are ``{"voc": {"mask_AP", "mask_AP50", "mask_AP75", "box_AP", "box_AP50", "box_AP75"}}``: Pascal VOC 2010's
    all-point AP (:func:`~pffnet_d2.evaluation.metrics.area_under_precision`) at IoU 0.5, at 0.75, and the mean of those
    at 0.5, 0.55 ... 0.95; 100 without truth and detections, 0 with only one of them. Boxes are the extents of the masks
    in whole pixels, of truth and prediction alike. As in the released code a mask needs an IoU above the threshold, a
    box one of at least the threshold. All detections count, and all objects but crowds; classes are not told apart.
    """

    def __init__(
        self, dataset_name: str, *, output_dir: str | os.PathLike[str] | None = None, distributed: bool = True
    ) -> None:
        """
        Args:
            dataset_name: a name in ``DatasetCatalog`` whose annotations are the truth, whole where they overlap.
            output_dir: where voc.json goes; None writes none.
            distributed: collect the detections of all ranks.
        """
        self._dataset_name = dataset_name
        self._output_dir = Path(output_dir) if output_dir else None
        self._distributed = distributed
        self._truth = {entry["image_id"]: entry for entry in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        self._found: dict[Any, _Detections] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Compare a batch; ``outputs`` hold ``Instances`` with masks in any form that ``instance_masks`` takes.

        Raises:
            InputError: an image the data set does not have, one without annotations, or one of another size.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            annotations = _truth_of(image, instances, self._truth, self._dataset_name)
            size = instances.image_size
            objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
            truth = encode_masks(annotations_to_masks(objects, *size), *size)
            found = encode_masks(instance_masks(instances), *size)
            scores = instances.scores.cpu().numpy().astype(np.float64)
            order = np.argsort(-scores, kind="stable")
            mask_iou = box_iou = np.zeros((len(found), len(truth)))
            if mask_iou.size:  # pycocotools cannot take empty lists
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
        """AP on the main process, an empty dict on the others."""
        images = _of_all_ranks(self._found, self._truth, self._dataset_name, self._distributed)
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


class DenseCOCOEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` (box and mask AP, 0..100) for images with more than COCO's 100 detections.

    The cap is ``max_detections``; an image that reaches it is named in a warning, for detections beyond it are lost to
    the score. Masks are encoded from their windows, so that no N x H x W stack is made. faster-coco-eval counts where
    it is installed, else pycocotools; the values are the same.
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
        # Upstream's own fast implementation cannot count more than 100.
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
            segmentations = encode_masks(instance_masks(instances), *instances.image_size)
            for record, segmentation in zip(records, segmentations, strict=True):
                record["segmentation"] = segmentation
            self._predictions.append({"image_id": image["image_id"], "instances": records})

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        """Upstream's, but for the choice of what counts."""
        records = [record for prediction in predictions for record in prediction["instances"]]
        to_dataset = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if to_dataset is not None:
            from_contiguous = {contiguous: own for own, contiguous in to_dataset.items()}
            for record in records:
                record["category_id"] = from_contiguous[record["category_id"]]
        if self._output_dir:
            write_text(Path(self._output_dir) / "coco_instances_results.json", json.dumps(records))
        if not self._do_evaluation:
            logger.warning(f"{self._metadata.name} has no annotations: no AP")
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
    """The summarised COCOeval (pycocotools' or faster-coco-eval's) of detections; None without any.

    Args:
        records: COCO results, with boxes and masks.
        task: "bbox" or "segm".
        max_detections: detections an image and class that count.
        img_ids: images that count; None: all.
    """
    if not records:
        return None  # neither takes an empty list
    records = copy.deepcopy(list(records))
    if task == "segm":
        for record in records:
            record.pop("bbox", None)  # else the size classes would go by the box
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
