"""How long does a training step on a CPU take, beside the same step as torchvision and torch compute it by themselves?

    python benchmarks/training.py [--config dsb2018/PFFNet_Lite0_FPN.yaml] [--size 256] [--batch 2] [--repeat 12]
    python benchmarks/training.py --all       # also the compact ResNet-18

Forward, backward and optimizer step from random weights on generated images. Ours: ROIs pooled as weighted sums of
rows, the channels of a pixel side by side, Adam in one kernel (``modeling/fast_form.py``, ``engine/optimizer.py``). The
plain side: the same network with Detectron2's poolers, contiguous maps, and Adam as torch chooses it. They take turns
on the same images; the ratio is the median over the turns of CPU times, which other programs disturb least.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from inputs import as_mapped
from report import report
from torch import nn

from pffnet_d2.config import config_path, read_config
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.engine.optimizer import build_optimizer
from pffnet_d2.modeling.build import build_network
from pffnet_d2.modeling.fast_form import lay_out

CONFIGS = ("dsb2018/PFFNet_Lite0_FPN.yaml", "bbbc039/PFFNet_R18_FPN.yaml")


class Side:
    """A network and its optimizer."""

    def __init__(self, network: nn.Module, cfg: Any, **options: Any) -> None:
        self.network = network
        self.optimizer = build_optimizer(cfg, network)
        for group in self.optimizer.param_groups:
            group.update(lr=1e-6, **options)  # the same work at every step

    def step(self, batch: list[dict[str, Any]]) -> float:
        """CPU seconds of a training step."""
        torch.manual_seed(0)  # the choice of the ROIs
        start = time.process_time()
        losses = self.network(batch)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        return time.process_time() - start


def measure(config: str, size: int, count: int, repeat: int) -> None:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    cfg = read_config(str(config_path(config)), opts)
    torch.manual_seed(0)
    network = build_network(cfg).train()
    plain = Side(copy.deepcopy(network), cfg, fused=None)
    lay_out(network)
    ours = Side(network, cfg)
    ratios, seconds = [], []
    with EventStorage():
        for turn in range(repeat + 1):
            batch = [as_mapped(*synthetic_image(turn, i, size=(size, size))) for i in range(count)]
            times = plain.step(batch), ours.step(batch)
            if turn:  # the first warms up
                ratios.append(times[0] / times[1])
                seconds.append(times)
    medians = [statistics.median(each) for each in zip(*seconds, strict=True)]
    report(
        "training step",
        f"{config}, {count} x {size} x {size}, {torch.get_num_threads()} threads",
        {"plain / ours": statistics.median(ratios)},
        seconds=dict(zip(("plain", "ours"), medians, strict=True)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIGS[0], help="under configs/")
    parser.add_argument("--size", type=int, default=256, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=12)
    parser.add_argument("--all", action="store_true", help="more configs")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    for config in CONFIGS if args.all else (args.config,):
        measure(config, args.size, args.batch, args.repeat)


if __name__ == "__main__":
    main()
