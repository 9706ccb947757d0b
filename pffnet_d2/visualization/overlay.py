"""Figures for judging a run by eye: outlines over images, learning curves, and scores of objects and images."""

from __future__ import annotations

import colorsys
import csv
import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from skimage.segmentation import find_boundaries

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError

logger = logging.getLogger(__name__)

GOLDEN_RATIO = 0.618033988749895
LAST_HUE = 0.55  # azure; 0 is red, 1/3 green, 2/3 blue
GAP = 4  # white pixels between the panels
PANEL = 512  # pixels; smaller images are enlarged to at most this side, so that outlines can be seen
# Names of the scores that get a curve; "<task>/<name>" in metrics.json.
SCORES = ("AJI", "Dice", "F1", "PQ")


def colours(count: int) -> npt.NDArray[np.uint8]:
    """Return (count, 3) uint8 RGB colours from red to azure.

    Blue and violet are not used, because they are hard to see on stained or dark nuclei. Consecutive hues differ by the
    golden section of the range.
    """
    table = [colorsys.hsv_to_rgb(i * GOLDEN_RATIO % 1 * LAST_HUE, 1.0 - 0.35 * (i % 2), 1.0) for i in range(count)]
    return np.rint(255 * np.array(table).reshape(count, 3)).astype(np.uint8)


def overlay(image: npt.NDArray[np.uint8], label_map: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Draw the outline of every object on the image, one pixel wide, inside the object, each in its own colour.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        label_map: (H, W) integers, 0 background.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: the image and the label map differ in size.
    """
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"image {image.shape[:2]} and label map {label_map.shape} differ in size")
    drawn = np.array(np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image)
    outline = find_boundaries(label_map, mode="inner", background=0)
    ids = label_map[outline]
    drawn[outline] = colours(int(label_map.max(initial=0)) + 1)[ids]
    return drawn


def side_by_side(
    image: npt.NDArray[np.uint8], truth: npt.NDArray[Any], prediction: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    """Draw the image, the image with the outlines of the truth, and the image with those of the prediction.

    Each panel is enlarged by the same whole number.

    Returns:
        (f H, 3 f W + gaps, 3) uint8, f the largest enlargement to ``PANEL``, at least 1.
    """
    factor = max(PANEL // max(truth.shape), 1)
    image, truth, prediction = (x.repeat(factor, 0).repeat(factor, 1) for x in (image, truth, prediction))
    plain = overlay(image, np.zeros_like(truth))
    gap = np.full((len(plain), GAP, 3), 255, np.uint8)
    return np.concatenate([plain, gap, overlay(image, truth), gap, overlay(image, prediction)], axis=1)


def write_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 as PNG, whole or not at all. Missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, "wb") as file:
        Image.fromarray(picture).save(file, format="PNG")


def read_metrics(metrics_json: Path) -> list[dict[str, float]]:
    """Read Detectron2's metrics.json, which has one dict per line, sorted by iteration.

    If a resumed run repeats iterations, the last line of an iteration counts.

    Raises:
        InputError: the file does not exist, or nothing in it can be read.
    """
    try:
        lines = metrics_json.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{metrics_json}: {error.strerror}; give the metrics.json of a training run") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{metrics_json}: is not text; give the metrics.json of a training run") from error
    by_iteration: dict[int, dict[str, float]] = defaultdict(dict)
    left_out = []
    for number, line in enumerate(lines, start=1):
        try:
            scalars = {key: float(value) for key, value in json.loads(line).items()}
            iteration = int(scalars["iteration"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # A run killed while writing leaves half a line, and the resumed run continues in the same line.
            left_out.append(number)
            continue
        by_iteration[iteration].update(scalars)
    if not by_iteration:
        raise InputError(f"{metrics_json}: contains no iterations; give the metrics.json of a training run")
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        logger.warning("%s, line %d%s: not readable, ignored", metrics_json, left_out[0], more)
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def learning_curve(metrics_json: Path, out_png: Path) -> None:
    """Draw the total loss and its parts, and below them the scores of every evaluation, over the iterations.

    Args:
        metrics_json: the file of Detectron2's JSONWriter; its losses are medians of 20 iterations.
        out_png: written whole or not at all.

    Raises:
        InputError: see :func:`read_metrics`.
    """
    metrics = read_metrics(metrics_json)
    keys = sorted({key for scalars in metrics for key in scalars})
    losses = [key for key in keys if "loss" in key and key != "total_loss"]
    scores = [key for key in keys if "/" in key and key.rsplit("/", 1)[1] in SCORES]

    figure = Figure(figsize=(9, 8 if scores else 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if scores else 1, 1, sharex=True, squeeze=False)[:, 0]
    for key in [*(["total_loss"] if "total_loss" in keys else []), *losses]:
        total = key == "total_loss"
        _draw(axes[0], metrics, key, key, color="black" if total else None, linewidth=2 if total else 1)
    axes[0].set(ylabel="loss", yscale="log")
    for key in scores:
        _draw(axes[1], metrics, key, key.rsplit("/", 1)[1], marker="o")
    if scores:
        axes[1].set(ylabel="score")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set(xlabel="iteration")
    _save(figure, out_png)


def calibration(table: dict[str, npt.NDArray[np.float64]], out_png: Path) -> list[str]:
    """Draw each score against the true IoU of every object, and the mean IoU in tenths of the score.

    Args:
        table: the columns of ``evaluation.calibration.measure``: scores and ``iou``, each (n,), n >= 1.
        out_png: written whole or not at all.

    Returns:
        One line per score: Pearson's correlation with the IoU; the calibration error (the absolute difference of mean
        score and mean IoU in each tenth, weighted by its number of objects); the mean difference, which is positive if
        the score is too high.
    """
    iou = table["iou"]
    scores = [key for key in ("mask_quality", "class_score", "score") if key in table]
    figure = Figure(figsize=(4.2 * len(scores), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    lines = []
    for axis, key in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        score = table[key]
        tenth = np.clip((score * 10).astype(int), 0, 9)
        filled, members = np.unique(tenth, return_inverse=True)
        count = np.bincount(members)
        mean_score, mean_iou = (np.bincount(members, weights=values) / count for values in (score, iou))
        error = float((np.abs(mean_score - mean_iou) * count).sum() / len(iou))
        varied = len(iou) > 1 and score.std() > 0 and iou.std() > 0
        correlation = f"{np.corrcoef(score, iou)[0, 1]:.3f}" if varied else "undefined"
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        axis.scatter(score, iou, s=4, alpha=0.25, linewidths=0)
        axis.plot(mean_score, mean_iou, "o-", color="black", markersize=4)
        axis.set(xlabel=key.replace("_", " "), ylabel="true IoU", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect=1)
        axis.set_title(f"r {correlation}, calibration error {error:.3f}", fontsize="medium")
        lines.append(
            f"{key}: r {correlation}, calibration error {error:.3f}, mean minus true IoU "
            f"{(score - iou).mean():+.3f} ({len(iou)} objects, {len(filled)} tenths)"
        )
    _save(figure, out_png)
    return lines


def image_scatter(label_map_csv: Path, out_png: Path) -> None:
    """Draw one point per image of an evaluation's ``label_map.csv``.

    One panel shows the number of predicted objects against the number of true ones, the other AJI and PQ against the
    number of true objects.

    Raises:
        InputError: the file does not exist, or lacks these columns or has no rows.
    """
    try:
        with open(label_map_csv, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {key: np.array([float(row[key]) for row in rows]) for key in ("truths", "predictions", "AJI", "PQ")}
    except OSError as error:
        raise InputError(f"{label_map_csv}: {error.strerror}; give the label_map.csv of an evaluation") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{label_map_csv}: is not the label_map.csv of an evaluation; evaluate again") from error
    if not rows:
        raise InputError(f"{label_map_csv}: contains no images; evaluate again")
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    counts, scores = figure.subplots(1, 2)
    end = 1.05 * max(columns["truths"].max(), columns["predictions"].max(), 1)
    counts.plot([0, end], [0, end], color="0.6", linewidth=1)
    counts.scatter(columns["truths"], columns["predictions"], s=14, alpha=0.7)
    counts.set(xlabel="true objects", ylabel="objects found", xlim=(0, end), ylim=(0, end), aspect=1)
    for key in ("AJI", "PQ"):
        scores.scatter(columns["truths"], columns[key], s=14, alpha=0.7, label=f"{key}, mean {columns[key].mean():.3f}")
    scores.set(xlabel="true objects", ylim=(-0.02, 1.02))
    scores.legend(fontsize="small")
    for axis in (counts, scores):
        axis.grid(alpha=0.3)
    _save(figure, out_png)


def _save(figure: Figure, out_png: Path) -> None:
    """Write a PNG, whole or not at all. Missing folders are created. Raises InputError if it cannot be written."""
    try:
        out_png.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out_png}: cannot be written ({error.strerror}); choose another folder") from error
    with whole_file(out_png, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _draw(axis: Axes, metrics: list[dict[str, float]], key: str, label: str, **style: Any) -> None:
    points = [(scalars["iteration"], scalars[key]) for scalars in metrics if key in scalars]
    axis.plot(*zip(*points, strict=True), label=label, **style)
