"""How much longer than its arithmetic explains does PFFNet take than Detectron2's Mask R-CNN with GroupNorm?

    python benchmarks/network.py [--config bbbc039/PFFNet_R18_FPN.yaml] [--peer bbbc039/MaskRCNN_GN_R18_FPN.yaml]
        [--size 256] [--batch 2] [--repeat 7] [--device cpu] [--amp]
    python benchmarks/network.py --all       # also full-size R101, and prediction in batches of 8

One process, one CPU core or the GPU, random weights, generated images, the two sides turn by turn. Training: forward,
backward and optimizer step. Prediction: to label maps (its peer: to Detectron2's pasted masks), with and without
semantic output; 100 detections an image on both sides, so that the heads have the same work. Prints for each the ratio
of wall times beside the ratio of floating-point operations (``torch.utils.flop_counter``: convolutions and matrix
products), then PFFNet's parts, and a json line.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from inputs import as_mapped
from report import report
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pffnet_d2  # noqa: F401  (registers)
from pffnet_d2.config import config_path, read_config
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.masks.compose import LabelMapRule, instances_to_label_map
from pffnet_d2.modeling.meta_arch import PFFNet
from pffnet_d2.modeling.roi_masks import Unpasted

DETECTIONS = 100
PARTS = (
    "backbone",
    "proposal_generator",
    "roi_heads.box_head",
    "roi_heads.mask_head",
    "roi_heads.mask_quality_head",
    "sem_seg_head",
    "fusion_head",
)
# Every box that is asked for, whatever the random weights think of it.
SAME_WORK = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.0"]


def batch(size: int, count: int) -> list[dict[str, Any]]:
    return [as_mapped(*synthetic_image(0, i, size=(size, size))) for i in range(count)]


class Side:
    """A model, what it does to a batch, and what that costs."""

    def __init__(self, config: str, opts: list[str], args: argparse.Namespace) -> None:
        given = [*SAME_WORK, "TEST.DETECTIONS_PER_IMAGE", str(DETECTIONS), "MODEL.DEVICE", args.device, *opts]
        config, _, method = config.partition(" with ")
        methods = [str(config_path(f"methods/{method}.yaml"))] if method else []
        self.cfg = read_config(
            str(config_path(config)), ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", *given], methods
        )
        torch.manual_seed(0)
        self.model: nn.Module = build_model(self.cfg)
        self.optimizer = build_optimizer(self.cfg, self.model)
        self.device, self.amp = args.device, args.amp
        self.ours = not isinstance(self.model, GeneralizedRCNN) or isinstance(self.model, PFFNet)
        self.rule = LabelMapRule.from_config(self.cfg)

    def train(self, inputs: list[dict[str, Any]]) -> None:
        self.model.train()
        with EventStorage(), torch.autocast(self.device, torch.bfloat16, enabled=self.amp):
            losses: dict[str, Tensor] = self.model(inputs)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, inputs: list[dict[str, Any]]) -> None:
        for output in Unpasted(self.model).eval()([{k: x[k] for k in ("image", "height", "width")} for x in inputs]):
            if self.ours:
                instances_to_label_map(output["instances"], self.rule)

    def seconds(self, work: Callable[[list[dict[str, Any]]], None], inputs: list[dict[str, Any]]) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work(inputs)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def operations(work: Callable[..., None], inputs: list[dict[str, Any]]) -> int:
    with FlopCounterMode(display=False) as counter:
        work(inputs)
    total: int = counter.get_total_flops()
    return total


def parts(side: Side, inputs: list[dict[str, Any]], training: bool) -> dict[str, tuple[float, float]]:
    """Of a forward pass each part's share of the operations and of the time."""
    spent = dict.fromkeys(PARTS, 0.0)

    def clock() -> float:
        if side.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def add(part: str, sign: int) -> Callable[..., None]:
        return lambda *_: spent.__setitem__(part, spent[part] + sign * clock())

    hooks = []
    for name, module in side.model.named_modules():
        # Of the mask head only its layers are called as modules.
        part = name.rpartition(".")[0] if name.rpartition(".")[0] == "roi_heads.mask_head" else name
        if part in PARTS:
            hooks += [module.register_forward_pre_hook(add(part, -1)), module.register_forward_hook(add(part, 1))]
    side.model.train(training)
    with torch.no_grad(), EventStorage():
        start = clock()
        side.model(inputs)
        whole = clock() - start
        for hook in hooks:
            hook.remove()
        with FlopCounterMode(depth=4, display=False) as counter:
            side.model(inputs)
    counts = {name.partition(".")[2]: sum(by.values()) for name, by in counter.get_flop_counts().items()}
    below = {part: [name for name in counts if name.rpartition(".")[0] == part] for part in PARTS}
    counts = {part: counts.get(part, sum(counts[name] for name in below[part])) for part in PARTS}
    total = counter.get_total_flops()
    return {part: (counts[part] / total, spent[part] / whole) for part in PARTS if spent[part]}


def compare(title: str, ours: Side, peer: Side, training: bool, inputs: list[dict[str, Any]], repeat: int) -> None:
    work = [side.train if training else side.predict for side in (ours, peer)]
    flops = [operations(each, inputs) for each in work]  # warms up as well
    rounds = [
        [side.seconds(each, inputs) for side, each in zip((ours, peer), work, strict=True)] for _ in range(repeat)
    ]
    wall = statistics.median(a / b for a, b in rounds)
    arithmetic = flops[0] / flops[1]
    shares = parts(ours, inputs, training)
    print("forward, operations / time: " + ", ".join(f"{name} {f:.0%} / {t:.0%}" for name, (f, t) in shares.items()))
    seconds = [statistics.median(times) for times in zip(*rounds, strict=True)]
    ratios = {"time": wall, "operations": arithmetic, "time / operations": wall / arithmetic}
    report("PFFNet / Mask R-CNN GN", title, ratios, seconds=seconds, flops=flops, parts=shares)


def run(name: str, config: str, peer: str, args: argparse.Namespace, opts: list[str]) -> None:
    inputs = batch(args.size, args.batch)
    other = Side(peer, opts, args)
    where = f"{args.size}x{args.size}, {args.device}{', bf16' if args.amp else ''}"
    side = Side(config, opts, args)
    compare(f"{name}, training, batch {args.batch}, {where}", side, other, True, inputs, args.repeat)
    for count in (1, 8) if args.all else (1,):
        images = batch(args.size, count)
        compare(f"{name}, prediction, batch {count}, {where}", side, other, False, images, args.repeat)
    semantic = Side(config, [*opts, "MODEL.PFFNET.OUTPUTS", "['instances', 'semantic']"], args)
    title = f"{name}, prediction with semantic output, batch 1, {where}"
    compare(title, semantic, other, False, inputs[:1], args.repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="bbbc039/PFFNet_R18_FPN.yaml")
    parser.add_argument("--peer", default="bbbc039/MaskRCNN_GN_R18_FPN.yaml")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=2, help="images a training step")
    parser.add_argument("--repeat", type=int, default=7, help="rounds; the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="train in bfloat16")
    parser.add_argument("--all", action="store_true", help="also R101 at full size, and batches of 8; minutes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.device == "cpu":
        torch.set_flush_denormal(True)
    run("compact R18", args.config, args.peer, args, [])
    if args.all:
        paper = "bbbc039/PFFNet_R101_FPN.yaml"
        run("R101", paper, f"{paper} with MaskRCNN_GN", args, [])


if __name__ == "__main__":
    main()
