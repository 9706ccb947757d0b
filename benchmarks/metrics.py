"""How fast are all table-based metrics together, against plain loops over full-frame masks and stardist.matching?

    python benchmarks/metrics.py [--size 1000] [--nuclei 700] [--repeat 20]

Prints ratios of medians of runs in this process, on one core where the environment says so (OMP_NUM_THREADS=1): AJI, PQ
and Dice computed mask by mask as HoVer-Net's published code does, over one contingency table and every metric read off
it; the DSB score from stardist.matching, where that is installed, over the same score of ours. The values of both sides
are compared before anything is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from report import report

from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.scores import TABLE_METRICS

try:
    from stardist.matching import matching
except ImportError:
    matching = None

Result = TypeVar("Result")


def discs(size: int, count: int, jitter: float, rng: np.random.Generator) -> NDArray[np.int32]:
    """A label map of about ``count`` discs on a grid, moved and resized at random, some of them missing."""
    step = size / np.sqrt(count)
    centres = np.stack(np.meshgrid(*[np.arange(step / 2, size, step)] * 2), axis=-1).reshape(-1, 2)
    labels = np.zeros((size, size), dtype=np.int32)
    y, x = np.mgrid[:size, :size]
    for label, (cy, cx) in enumerate(centres + rng.uniform(-jitter, jitter, centres.shape) * step, start=1):
        radius = step * rng.uniform(0.3, 0.5)
        if rng.random() < 0.95:
            window = np.s_[max(int(cy - step), 0) : int(cy + step) + 1, max(int(cx - step), 0) : int(cx + step) + 1]
            labels[window][(y[window] - cy) ** 2 + (x[window] - cx) ** 2 < radius**2] = label
    return labels


def from_table(gt: NDArray[np.int32], pred: NDArray[np.int32]) -> dict[str, float]:
    table = ContingencyTable.from_labels(gt, pred)
    return {name: metric.of(table) for name, metric in TABLE_METRICS.items()}


def our_dsb(gt: NDArray[np.int32], pred: NDArray[np.int32]) -> float:
    return metrics.dsb_average_precision(gt, pred)


def stardist_dsb(gt: NDArray[np.int32], pred: NDArray[np.int32]) -> float:
    found = matching(gt, pred, thresh=metrics.DSB_THRESHOLDS)
    return float(np.mean([result.accuracy for result in found]))


def plain_loops(gt: NDArray[np.int32], pred: NDArray[np.int32]) -> tuple[float, float, float]:
    """AJI (best IoU, predictions reused), PQ and Dice, object by object on full-frame masks."""
    truths = [gt == label for label in np.unique(gt) if label]
    predictions = {label: pred == label for label in np.unique(pred) if label}
    used: set[int | None] = set()
    hits: list[float] = []
    intersection = union = 0
    for truth in truths:
        best: tuple[float, int, int, int | None] = (0.0, 0, int(truth.sum()), None)
        for label in np.unique(pred[truth]):
            if label:
                shared = int((truth & predictions[label]).sum())
                joined = int((truth | predictions[label]).sum())
                best = max(best, (shared / joined, shared, joined, label), key=lambda item: item[0])
        intersection, union = intersection + best[1], union + best[2]
        used.add(best[3])
        hits += [best[0]] if best[0] > 0.5 else []
    union += sum(int(mask.sum()) for label, mask in predictions.items() if label not in used)
    pq = sum(hits) / (0.5 * (len(truths) + len(predictions)))
    return intersection / union, pq, float(2 * ((gt > 0) & (pred > 0)).sum() / ((gt > 0).sum() + (pred > 0).sum()))


def median_time(
    function: Callable[[NDArray[np.int32], NDArray[np.int32]], Result],
    gt: NDArray[np.int32],
    pred: NDArray[np.int32],
    repeat: int,
) -> tuple[Result, float]:
    """What the function returns, and the median of its milliseconds after one run to warm up."""
    function(gt, pred)
    milliseconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = function(gt, pred)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return result, statistics.median(milliseconds)


def agree(ours: ArrayLike, theirs: ArrayLike) -> None:
    if not np.allclose(ours, theirs, atol=1e-9):
        raise SystemExit(f"the two sides disagree: {ours!r} and {theirs!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="side of the square image")
    parser.add_argument("--nuclei", type=int, default=700)
    parser.add_argument("--repeat", type=int, default=20, help="runs of the fast sides; the median counts")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    gt, pred = discs(args.size, args.nuclei, 0.1, rng), discs(args.size, args.nuclei, 0.2, rng)
    case = f"{args.size}x{args.size}, {len(np.unique(gt)) - 1} truths, {len(np.unique(pred)) - 1} predictions"
    ours, milliseconds = median_time(from_table, gt, pred, args.repeat)
    plain, plain_milliseconds = median_time(plain_loops, gt, pred, 1)
    agree([ours["AJI_reuse"], ours["PQ"], ours["Dice"]], plain)
    ratios = {f"plain loops of AJI, PQ and Dice / all {len(ours)} of the table": plain_milliseconds / milliseconds}
    dsb, dsb_milliseconds = median_time(our_dsb, gt, pred, args.repeat)
    if matching is None:
        print("metrics: stardist is not installed, its matching is left out")
    else:
        theirs, their_milliseconds = median_time(stardist_dsb, gt, pred, args.repeat)
        agree(dsb, theirs)
        ratios["stardist.matching at 10 thresholds / DSB score"] = their_milliseconds / dsb_milliseconds
    _, hausdorff_milliseconds = median_time(metrics.object_hausdorff, gt, pred, 3)
    report("metrics", case, ratios, table_ms=milliseconds, dsb_ms=dsb_milliseconds, hausdorff_ms=hausdorff_milliseconds)


if __name__ == "__main__":
    main()
