"""How do time and memory grow with the batch, with the objects of an image and with the processes that train?

    python benchmarks/scaling.py [--config Base-PFFNet-Compact.yaml] [--device cpu] [--all]

Training steps of batches of 1 to 16 images of 256 pixels, of one image of 512 pixels with 10 to 3000 objects, and of 1
and 2 ranks with a batch of 2 each, which exchange gradients over gloo (CPU only; needs a core a rank). Random weights,
one CPU core a process or the GPU. Each case runs in processes of its own; its memory is the first one's peak beyond
what it held before the first step (weights are held by then, their gradients and momenta are not). Prints for each the
time per image and the memory relative to the first case, and a json line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from inputs import as_mapped
from label_map import peak
from report import report

import pffnet_d2  # noqa: F401  (registers)
from pffnet_d2.config import config_path, read_config
from pffnet_d2.parallel.launch import launch_over_gloo


class Case(NamedTuple):
    """A batch a rank, its images' side in pixels and objects, and the number of ranks."""

    batch: int
    size: int
    objects: int
    ranks: int = 1


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


def run(config: str, device: str, case: Case, repeat: int, result: Path) -> None:
    """Write the median seconds of a training step and its peak bytes, as the first rank sees them, to ``result``."""
    torch.set_num_threads(1)
    if device == "cpu":
        torch.set_flush_denormal(True)
    cfg = read_config(str(config_path(config)), ["MODEL.DEVICE", device])
    torch.manual_seed(0)
    model: Any = create_ddp_model(build_model(cfg).train(), device_ids=None)  # of a CPU
    optimizer = build_optimizer(cfg, model)
    inputs = [image_of(case.size, case.objects, case.batch * comm.get_rank() + i) for i in range(case.batch)]
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
    if comm.is_main_process():
        result.write_text(json.dumps([statistics.median(seconds[1:]), peak(device) - before]))


def sweep(args: argparse.Namespace, title: str, cases: list[Case]) -> None:
    first: tuple[float, int] | None = None
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            launch_over_gloo(run, case.ranks, args=(args.config, args.device, case, args.repeat, result))
            seconds, memory = json.loads(result.read_text())
        an_image = seconds / (case.batch * case.ranks)
        first = first or (an_image, memory)
        what = f"{case.ranks} x batch {case.batch}" if title == "ranks" else f"batch {case.batch}"
        name = f"{title}, {what}, {case.size}x{case.size}, {case.objects} objects, {args.device}"
        ratios = {"time per image": an_image / first[0], "memory": memory / first[1]}
        report("scaling (to the first)", name, ratios, seconds=seconds, peak_bytes=memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="Base-PFFNet-Compact.yaml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=3, help="steps; the median counts")
    parser.add_argument("--all", action="store_true", help="more cases; minutes")
    args = parser.parse_args()
    batches = (1, 2, 4, 8, 16) if args.all else (1, 4)
    counts = (10, 100, 300, 1000, 3000) if args.all else (10, 1000)
    sweep(args, "batch", [Case(batch, 256, 30) for batch in batches])
    sweep(args, "objects", [Case(1, 512, count) for count in counts])
    if args.device != "cpu" or (os.cpu_count() or 1) < 2:
        print("ranks: left out, they are measured on a CPU of two cores or more")
        return
    sweep(args, "ranks", [Case(2, 256, 30, ranks) for ranks in (1, 2)])


if __name__ == "__main__":
    main()
