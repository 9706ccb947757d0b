"""How do time and memory grow with the batch and with the objects of an image?

    python benchmarks/scaling.py [--config Base-PFFNet-Compact.yaml] [--device cpu] [--all]

Training steps of batches of 1 to 16 images of 256 pixels, and of one image of 512 pixels with 10 to 3000 objects,
random weights, one CPU core or the GPU. Each case runs in a process of its own; its memory is the peak beyond what the
process held before the first step (weights are held by then, their gradients and momenta are not). Prints for each the
time an image and the memory relative to the first case, and a json line.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from inputs import as_mapped
from label_map import peak
from report import report

import pffnet_d2  # noqa: F401  (registers)
from pffnet_d2.config import config_path, read_config


def image_of(size: int, objects: int, seed: int) -> dict[str, Any]:
    """Bright discs on a grid with a quarter of it between them, in noise, as the mapper hands them on."""
    cells = int(np.ceil(np.sqrt(objects)))
    cell = size / cells
    rows, columns = np.indices((size, size)) // cell
    y, x = (np.indices((size, size)) % cell) - cell / 2
    ids = np.where(y**2 + x**2 < (0.4 * cell) ** 2, rows * cells + columns + 1, 0).astype(np.int64)
    labels = np.where(ids <= objects, ids, 0)
    noise = np.random.default_rng(seed).integers(0, 20, (size, size))
    grey = (noise + 150 * (labels > 0)).astype(np.uint8)
    return as_mapped(np.repeat(grey[:, :, None], 3, axis=2), labels)


def run(config: str, device: str, batch: int, size: int, objects: int, repeat: int) -> tuple[float, int]:
    """Median seconds of a training step, and its peak bytes."""
    torch.set_num_threads(1)
    if device == "cpu":
        torch.set_flush_denormal(True)
    cfg = read_config(str(config_path(config)), ["MODEL.DEVICE", device])
    torch.manual_seed(0)
    model: Any = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    inputs = [image_of(size, objects, seed) for seed in range(batch)]
    before, seconds = peak(device, reset=True), []
    for _ in range(repeat + 1):  # the first warms up
        start = time.perf_counter()
        with EventStorage():
            losses = model(inputs)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), peak(device) - before


def sweep(args: argparse.Namespace, title: str, cases: list[tuple[int, int, int]]) -> None:
    first: tuple[float, int] | None = None
    for batch, size, objects in cases:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, memory = pool.submit(run, args.config, args.device, batch, size, objects, args.repeat).result()
        first = first or (seconds / batch, memory)
        case = f"{title}, batch {batch}, {size}x{size}, {objects} objects, {args.device}"
        ratios = {"time an image": seconds / batch / first[0], "memory": memory / first[1]}
        report("scaling (to the first)", case, ratios, seconds=seconds, peak_bytes=memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="Base-PFFNet-Compact.yaml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=3, help="steps; the median counts")
    parser.add_argument("--all", action="store_true", help="more cases; minutes")
    args = parser.parse_args()
    batches = (1, 2, 4, 8, 16) if args.all else (1, 4)
    counts = (10, 100, 300, 1000, 3000) if args.all else (10, 1000)
    sweep(args, "batch", [(batch, 256, 30) for batch in batches])
    sweep(args, "objects", [(1, 512, count) for count in counts])


if __name__ == "__main__":
    main()
