"""How fast does a label map come out of ROI masks, against Detectron2's pasting and a plain loop of the overlap rule?

    python benchmarks/label_map.py [--size 1000] [--nuclei 700] [--repeat 10] [--device cpu]

Prints one line: the median time of ``instances_to_label_map``, the time of ``paste_masks_in_image`` (one full-size mask
an instance) followed by the rule on these masks, and their ratio. Both run in this process, on one CPU core or the GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray

from pffnet_d2.inference.label_map import instances_to_label_map


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
    masks = paste_masks_in_image(kept.pred_masks[:, 0], kept.pred_boxes, kept.image_size).cpu().numpy()
    label_map = np.zeros(kept.image_size, dtype=np.int32)
    label = 0
    for mask in masks:
        free = mask & (label_map == 0)
        if not free.any() or 1 - free.sum() / mask.sum() > 0.7:
            continue
        label += 1
        label_map[free] = label
    return label_map


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="side of the square image")
    parser.add_argument("--nuclei", type=int, default=700)
    parser.add_argument("--repeat", type=int, default=10, help="runs of the fast side; the median counts")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.set_num_threads(1)
    instances = nuclei(args.size, args.nuclei, args.device)
    plain_seconds = []
    for _ in range(2):  # the first run warms up
        start = time.perf_counter()
        plain = paste_and_loop(instances)
        plain_seconds.append(time.perf_counter() - start)
    seconds = []
    for _ in range(args.repeat + 1):
        start = time.perf_counter()
        ours = instances_to_label_map(instances)
        seconds.append(time.perf_counter() - start)
    if not (ours == plain).all():
        raise SystemExit("the two sides disagree")

    fast = statistics.median(seconds[1:])
    print(
        f"label map, {args.size}x{args.size}, {args.nuclei} detections, {ours.max()} labels, {args.device}: "
        f"windows {fast * 1e3:.1f} ms, pasting and plain loop {plain_seconds[-1] * 1e3:.0f} ms, "
        f"ratio {plain_seconds[-1] / fast:.0f}x"
    )


if __name__ == "__main__":
    main()
