"""Label-map metrics as a Detectron2 evaluator."""

from __future__ import annotations

import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.error_kinds import Fates, fates_of, in_words, write_errors
from pffnet_d2.evaluation.scores import METRICS, Row, read_groups, score, summaries, table_of, write_scores
from pffnet_d2.evaluation.truth import Truth
from pffnet_d2.imaging.normalisation import AUTO, to_rgb8
from pffnet_d2.imaging.read import read_image
from pffnet_d2.masks.coco import annotations_to_label_map
from pffnet_d2.masks.compose import LabelMapRule, instances_to_label_map
from pffnet_d2.visualization.overlay import side_by_side, write_png

logger = logging.getLogger(__name__)


class _Scored(NamedTuple):
    """The scores of an image, what became of its objects, and its predicted label map."""

    image_id: Any
    row: Row
    fates: Fates
    label_map: bytes  # int32, compressed


class LabelMapEvaluator(DatasetEvaluator):
    """Scores the label map of each image against the flattened truth and averages over images, as the papers do.

    Results are ``{"label_map": {name: mean}}`` for the names of ``scores.METRICS`` (docs/metrics.md). Means are over
    the images whose score is a number. They are fractions in [0, 1], except counts and distances; NaN without images.
    With ``output_dir`` the main process writes:

    - ``label_map.csv``: one row per image;
    - ``label_map.json``: mean, population standard deviation and number of scores left out (NaN), also for each
      ``group`` of the prepared json;
    - ``label_map_errors.csv``: what became of the objects, by size (``error_kinds``);
    - ``examples/{best,median,worst}.png``: image | truth | prediction of three images with objects, chosen by AJI.

    The row and the compressed label map of every image are kept in memory.
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
            output_dir: folder for the files; None: no files are written.
            distributed: collect the rows of all ranks; False scores only this process.
            rule: how detections become a label map; None: the default rule.
        """
        self._dataset_name = dataset_name
        self._rule = rule or LabelMapRule()
        self._output_dir = Path(output_dir) if output_dir else None
        self._distributed = distributed
        self._truth = Truth(dataset_name)
        json_file = Path(getattr(MetadataCatalog.get(dataset_name), "json_file", ""))
        self._groups = read_groups(json_file) if json_file.is_file() else {}
        self.reset()

    def reset(self) -> None:
        self._scored: dict[Any, _Scored] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Score a batch. ``outputs`` contain ``Instances`` with ROI masks or pasted masks.

        Raises:
            InputError: an image is not in the data set, has no annotations, or has another size.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            annotations = self._truth.annotations_of(image, instances.image_size)
            stem = Path(image.get("file_name", f"image {image['image_id']}")).stem
            truth = annotations_to_label_map(annotations, *instances.image_size)
            found = instances_to_label_map(instances, self._rule)
            table = ContingencyTable.from_labels(truth, found)
            row = score(stem, truth, found, self._groups.get(stem, ""), table=table)
            packed = zlib.compress(found.astype(np.int32).tobytes(), level=1) if self._output_dir else b""
            self._scored[image["image_id"]] = _Scored(image["image_id"], row, fates_of(table), packed)

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Return the mean scores on the main process and an empty dict on the others."""
        scored = self._truth.in_order(self._scored, self._distributed)
        if scored is None:
            return OrderedDict()
        rows, fates = [each.row for each in scored], [each.fates for each in scored]
        found = summaries(rows)
        mean = OrderedDict((name, found[name].mean) for name in METRICS)
        if self._output_dir:
            write_scores(self._output_dir, rows, {"dataset": self._dataset_name, **asdict(self._rule)})
            write_errors(self._output_dir, fates)
            self._draw_examples(scored, self._output_dir / "examples")
        logger.info(f"label maps of {self._dataset_name}, mean over images:\n{table_of(rows)}\n{in_words(fates)}")
        return OrderedDict(label_map=mean)

    def _draw_examples(self, scored: Sequence[_Scored], folder: Path) -> None:
        with_objects = sorted((each for each in scored if each.row["truths"]), key=lambda each: each.row["AJI"])
        if not with_objects:
            return
        for name, place in (("best", -1), ("median", len(with_objects) // 2), ("worst", 0)):
            image_id, row, _, packed = with_objects[place]
            entry = self._truth.images[image_id]
            size = entry["height"], entry["width"]
            try:
                image = to_rgb8(read_image(entry["file_name"]), AUTO)
            except InputError as error:  # the scores are complete, only the picture is missing
                logger.warning(f"no picture of the {name} image: {error}")
                continue
            truth = annotations_to_label_map(entry["annotations"], *size)
            found = np.frombuffer(zlib.decompress(packed), np.int32).reshape(size)
            write_png(folder / f"{name}.png", side_by_side(image, truth, found))
            logger.info(f"{folder / name}.png: {row['image']}, AJI {row['AJI']:.4f}")
