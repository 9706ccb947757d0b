"""Chooses beta and the mask threshold of the label maps on validation images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from numpy.typing import NDArray
from tqdm import tqdm

from pffnet_d2.atomic_write import whole_file, write_text
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.scores import TABLE_METRICS
from pffnet_d2.masks.coco import annotations_to_label_map
from pffnet_d2.masks.compose import LabelMapRule, compose
from pffnet_d2.masks.paste import instance_masks

SCORE_THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
MASK_THRESHOLDS = tuple(round(0.3 + 0.05 * i, 2) for i in range(9))
DEFAULTS = (0.5, 0.5)


class PredictionStore(DatasetEvaluator):
    """Stores the predictions of a model in one file per image (``<image id>.npz``), so that it need not run again.

    A file contains ``size`` (H, W), ``boxes`` (N, 4) XYXY float32, ``scores`` and ``class_scores`` (N,) float32 and
    ``masks`` as predicted: ROI masks (N, 1, m, m) float32, or pasted masks (N, H, W) bool, to which a threshold was
    applied already.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reset(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            file = stored_file(self._folder, image["image_id"])
            with whole_file(file, "wb") as stream:
                np.savez_compressed(
                    stream,
                    size=np.array(instances.image_size),
                    boxes=instances.pred_boxes.tensor.numpy(),
                    scores=instances.scores.numpy(),
                    class_scores=(
                        instances.class_scores if instances.has("class_scores") else instances.scores
                    ).numpy(),
                    masks=getattr(instances.pred_masks, "tensor", instances.pred_masks).numpy(),
                )

    def evaluate(self) -> dict[str, Any]:
        comm.synchronize()
        return {}


def stored_file(folder: Path, image_id: Any) -> Path:
    """Return the path of the stored prediction of an image."""
    return folder / f"{image_id}.npz"


def read_stored(file: Path) -> Instances:
    """Read a file of :class:`PredictionStore`.

    Raises:
        InputError: the file does not exist or is damaged.
    """
    try:
        with np.load(file) as stored:
            instances = Instances(tuple(stored["size"].tolist()), pred_boxes=Boxes(torch.from_numpy(stored["boxes"])))
            instances.scores = torch.from_numpy(stored["scores"])
            instances.class_scores = torch.from_numpy(stored["class_scores"])
            instances.pred_masks = torch.from_numpy(stored["masks"])
    except Exception as error:  # zipfile, zlib and numpy raise different exceptions
        raise InputError(f"{file}: no stored prediction can be read from it; run without --stored") from error
    return instances


class Choice(NamedTuple):
    """The best thresholds of a grid.

    Attributes:
        score_threshold, mask_threshold: beta and the mask threshold.
        value: mean of the metric over images with these thresholds.
        default: the same with ``DEFAULTS``.
        images: number of images.
        grid: (len(SCORE_THRESHOLDS), len(MASK_THRESHOLDS)), all means.
    """

    score_threshold: float
    mask_threshold: float
    value: float
    default: float
    images: int
    grid: NDArray[np.float64]


def choose(dataset_name: str, folder: Path, metric: str, rule: LabelMapRule) -> Choice:
    """Find the thresholds with the best mean of a metric. Each stored prediction is read once.

    Of equally good thresholds the nearest to ``DEFAULTS`` are taken. Do not report results on the same data set
    afterwards.

    Args:
        dataset_name: a name in ``DatasetCatalog`` whose annotations are the truth.
        folder: the folder of :class:`PredictionStore` for this data set.
        metric: a name of ``scores.TABLE_METRICS`` whose higher or lower values are better.
        rule: the rule of the label maps; its thresholds are replaced.

    Raises:
        InputError: the metric is unknown, the data set has no images, or an image has no stored prediction.
    """
    known = [name for name in TABLE_METRICS if TABLE_METRICS[name].better != "neither"]
    if metric not in known:
        raise InputError(f"--metric {metric}: choose one of {', '.join(known)}")
    entries = DatasetCatalog.get(dataset_name)
    if not entries:
        raise InputError(f"{dataset_name}: has no images to choose thresholds on")
    total = np.zeros((len(SCORE_THRESHOLDS), len(MASK_THRESHOLDS)))
    for entry in tqdm(entries, desc="thresholds", unit="image", disable=None):
        instances = read_stored(stored_file(folder, entry["image_id"]))
        size = entry["height"], entry["width"]
        truth = annotations_to_label_map(entry["annotations"], *size)
        instances = instances[instances.class_scores > SCORE_THRESHOLDS[0]]
        instances = instances[torch.argsort(instances.scores, descending=True, stable=True)]
        class_scores = instances.class_scores.numpy()
        for column, mask_threshold in enumerate(MASK_THRESHOLDS):
            masks = instance_masks(instances, mask_threshold)
            for row, score_threshold in enumerate(SCORE_THRESHOLDS):
                kept = np.flatnonzero(class_scores > score_threshold).tolist()
                labels, _ = compose([masks[i] for i in kept], size, rule)
                total[row, column] += TABLE_METRICS[metric].of(ContingencyTable.from_labels(truth, labels))
    grid = total / len(entries)
    worth = -grid if TABLE_METRICS[metric].better == "lower" else grid
    best = np.argwhere(worth >= worth.max() - 1e-12)
    distance = [
        abs(SCORE_THRESHOLDS[row] - DEFAULTS[0]) + abs(MASK_THRESHOLDS[column] - DEFAULTS[1]) for row, column in best
    ]
    row, column = best[int(np.argmin(distance))].tolist()
    default = grid[SCORE_THRESHOLDS.index(DEFAULTS[0]), MASK_THRESHOLDS.index(DEFAULTS[1])]
    return Choice(
        SCORE_THRESHOLDS[row],
        MASK_THRESHOLDS[column],
        float(grid[row, column]),
        float(default),
        len(entries),
        grid,
    )


def write_choice(path: Path, choice: Choice, *, metric: str, dataset_name: str, base: Path) -> None:
    """Write a yaml that adds the two keys to the config of a run, for --config-file, and the grid as csv next to it.

    Args:
        path: thresholds.yaml; written whole or not at all.
        base: the config of the run; the yaml names it relative to ``path``.
    """
    lines = [
        f"# Chosen on {dataset_name} ({choice.images} images): mean {metric} {choice.value:.4f}; "
        f"with {DEFAULTS[0]} and {DEFAULTS[1]} it is {choice.default:.4f}.",
        f"_BASE_: {os.path.relpath(base, path.parent)}",
        "MODEL:",
        "  PFFNET:",
        "    LABEL_MAP:",
        f"      SCORE_THRESH: {choice.score_threshold}",
        f"      MASK_THRESH: {choice.mask_threshold}",
    ]
    write_text(path, "\n".join(lines) + "\n")
    rows = [",".join(["SCORE_THRESH \\ MASK_THRESH", *map(str, MASK_THRESHOLDS)])]
    rows += [
        ",".join([str(threshold), *(f"{value:.6f}" for value in values)])
        for threshold, values in zip(SCORE_THRESHOLDS, choice.grid, strict=True)
    ]
    write_text(path.with_suffix(".csv"), "\n".join(rows) + "\n")
