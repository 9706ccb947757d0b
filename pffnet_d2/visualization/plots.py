"""Diagrams of a run: learning curves, calibration of scores, counts and scores per image."""

from __future__ import annotations

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

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError

logger = logging.getLogger(__name__)

# The scores that get a curve; "<task>/<name>" in metrics.json.
SCORES = ("AJI", "Dice", "F1", "PQ")


def read_metrics(metrics_json: Path) -> list[dict[str, float]]:
    """The scalars in Detectron2's metrics.json by iteration. Where a resumed run repeats an iteration, the last counts.

    Raises:
        InputError: there is no such file, or none of its lines can be read.
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
            # A run that is killed while writing leaves half a line, to which the resumed run appends.
            left_out.append(number)
            continue
        by_iteration[iteration].update(scalars)
    if not by_iteration:
        raise InputError(f"{metrics_json}: contains no iterations; give the metrics.json of a training run")
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        logger.warning("%s, line %d%s: not readable, left out", metrics_json, left_out[0], more)
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def learning_curve(metrics_json: Path, out_png: Path) -> None:
    """Draw the total loss, its parts and, below them, the scores of every evaluation over the iterations.

    Args:
        metrics_json: file of Detectron2's JSONWriter, in which losses are medians of 20 iterations.
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
    """Draw each score against the true IoU of the objects, and the mean IoU per tenth of the score.

    Args:
        table: the columns of ``evaluation.calibration.measure``: scores and ``iou``, each (n,), n >= 1.
        out_png: written whole or not at all.

    Returns:
        One line per score: Pearson's correlation with the IoU; the calibration error (the difference of mean score and
        mean IoU in each tenth, weighted by its number of objects); the mean difference, which is positive where the
        score is too high.
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
    """Draw one point per image of ``label_map.csv``: objects found against true objects, and AJI and PQ against the
    number of true objects.

    Raises:
        InputError: there is no such file, or it lacks these columns or has no rows.
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
    """Write a PNG, whole or not at all, and make its folders. Raises InputError where it cannot be written."""
    try:
        out_png.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out_png}: cannot be written ({error.strerror}); choose another folder") from error
    with whole_file(out_png, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _draw(axis: Axes, metrics: list[dict[str, float]], key: str, label: str, **style: Any) -> None:
    points = [(scalars["iteration"], scalars[key]) for scalars in metrics if key in scalars]
    axis.plot(*zip(*points, strict=True), label=label, **style)
