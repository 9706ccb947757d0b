"""How fast, and in how much memory, does a label map come out of ROI masks, against Detectron2's pasting and a plain
loop of the overlap rule?

    python benchmarks/label_map.py [--size 1000] [--nuclei 700] [--repeat 10] [--device cpu]
    python benchmarks/label_map.py --all      # 700 and 3000 nuclei on 1000 x 1000 and 4000 x 4000

Prints the ratio of times and of peak memories beyond what the process held before: ``paste_masks_in_image`` (full-size
masks, at most 2 GB of them at a time) followed by the rule on these masks, over ``instances_to_label_map`` (median).
Each side runs in a process of its own, on one CPU core or the GPU. All masks at once, as Detectron2 returns them, would
take nuclei x size x size bytes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from report import report

from pffnet_d2.masks.compose import instances_to_label_map

PASTED = 2 * 10**9  # bytes of full-size masks at a time


def nuclei(size: int, count: int, device: str) -> Instances:
    """``count`` round soft masks of 20 to 40 pixels at random places, so that some overlap."""
    torch.manual_seed(0)
    centre = torch.rand(count, 2) * size
    half = torch.rand(count, 2) * 10 + 10
    cell = torch.linspace(-1, 1, 28)
    bump = 1.3 - (cell[:, None] ** 2 + cell**2).sqrt() + 0.1 * torch.randn(count, 1, 28, 28)
    return Instances(
        (size, size),
        pred_boxes=Boxes(torch.cat([centre - half, centre + half], dim=1)),
        scores=torch.rand(count) * 0.5 + 0.5,
        pred_masks=bump.clamp(0, 1),
    ).to(device)


def paste_and_loop(instances: Instances) -> NDArray[np.int32]:
    """The rule of the released code (``removeoverlap``) on full-size masks."""
    kept = instances[instances.scores > 0.5]
    kept = kept[kept.scores.argsort(descending=True, stable=True)]
    height, width = kept.image_size
    label_map = np.zeros((height, width), dtype=np.int32)
    label = 0
    for start in range(0, len(kept), max(1, PASTED // (height * width))):
        some = kept[start : start + max(1, PASTED // (height * width))]
        for mask in paste_masks_in_image(some.pred_masks[:, 0], some.pred_boxes, (height, width)).cpu().numpy():
            free = mask & (label_map == 0)
            if not free.any() or 1 - free.sum() / mask.sum() > 0.7:
                continue
            label += 1
            label_map[free] = label
    return label_map


def peak(device: str, *, reset: bool = False) -> int:
    """Bytes: with ``reset`` those held now, from where the peak is counted; then the peak (of the GPU, or resident)."""
    if device != "cpu":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS" if reset else "VmHWM"].split()[0]) * 1024


def run(fast: bool, size: int, count: int, repeat: int, device: str) -> tuple[float, int, NDArray[np.int32]]:
    """Median seconds, peak bytes beyond those held before the first, and the label map."""
    torch.set_num_threads(1)
    instances = nuclei(size, count, device)
    side = instances_to_label_map if fast else paste_and_loop
    side(nuclei(200, 20, device))  # warms up
    seconds = []
    before = peak(device, reset=True)
    for _ in range(repeat):
        start = time.perf_counter()
        label_map = side(instances)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), peak(device) - before, label_map


def compare(size: int, count: int, repeat: int, device: str) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        fast, fast_peak, ours = pool.submit(run, True, size, count, repeat, device).result()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        slow, slow_peak, plain = pool.submit(run, False, size, count, 1, device).result()
    if not (ours == plain).all():
        raise SystemExit("the two sides disagree")
    case = f"{size}x{size}, {count} detections, {ours.max()} labels, {device}"
    ratios = {"paste and loop / windows, time": slow / fast, "memory": slow_peak / max(fast_peak, 1)}
    details = {"seconds": [fast, slow], "peak_bytes": [fast_peak, slow_peak], "all_at_once_bytes": count * size**2}
    report("label map", case, ratios, **details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="side of the square image")
    parser.add_argument("--nuclei", type=int, default=700)
    parser.add_argument("--all", action="store_true", help="700 and 3000 on 1000 and 4000 pixels; minutes")
    parser.add_argument("--repeat", type=int, default=10, help="runs of the fast side; the median counts")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    cases = [(s, n) for s in (1000, 4000) for n in (700, 3000)] if args.all else [(args.size, args.nuclei)]
    for size, count in cases:
        compare(size, count, args.repeat, args.device)


if __name__ == "__main__":
    main()
