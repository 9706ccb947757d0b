"""How fast are all table-based metrics together, against plain loops over full-frame masks?

    python benchmarks/metrics.py [--size 1000] [--nuclei 700] [--repeat 20]

Prints one line: the median time of one contingency table and every metric read off it, the time of the same AJI, PQ and
Dice computed mask by mask as HoVer-Net's published code does, and their ratio. Both run in this process on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.contingency import ContingencyTable


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


def from_table(gt: NDArray[np.int32], pred: NDArray[np.int32]) -> tuple[float, float, float]:
    table = ContingencyTable.from_labels(gt, pred)
    for metric in (
        metrics.aji_plus,
        metrics.aji_pffnet,
        metrics.object_f1,
        metrics.f1_at_iou,
        metrics.dsb_average_precision,
        metrics.symmetric_best_dice,
        metrics.difference_in_count,
        metrics.object_dice,
        metrics.dice_2,
    ):
        metric(table)
    return metrics.aji_reuse(table), metrics.panoptic_quality(table).pq, metrics.dice(table)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="side of the square image")
    parser.add_argument("--nuclei", type=int, default=700)
    parser.add_argument("--repeat", type=int, default=20, help="runs of the fast side; the median counts")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    gt, pred = discs(args.size, args.nuclei, 0.1, rng), discs(args.size, args.nuclei, 0.2, rng)
    seconds = []
    for _ in range(args.repeat):
        start = time.perf_counter()
        ours = from_table(gt, pred)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    plain = plain_loops(gt, pred)
    plain_seconds = time.perf_counter() - start
    if not np.allclose(ours, plain, atol=1e-9):
        raise SystemExit(f"the two sides disagree: {ours} and {plain}")

    fast = statistics.median(seconds)
    print(
        f"metrics, {args.size}x{args.size}, {len(np.unique(gt)) - 1} truths, {len(np.unique(pred)) - 1} predictions: "
        f"all metrics {fast * 1e3:.1f} ms, AJI + PQ + Dice by plain loops {plain_seconds * 1e3:.0f} ms, "
        f"ratio {plain_seconds / fast:.0f}x"
    )


if __name__ == "__main__":
    main()
