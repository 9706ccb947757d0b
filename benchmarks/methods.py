"""What does each method cost? Parameters, FLOPs, speed of training and of inference: the compact configs in one run.

    python benchmarks/methods.py [--rounds 5] [--steps 5]

On the CPU, with OMP_NUM_THREADS threads, from random weights. Training: one step on a batch of two 256 x 256 generated
images, optimizer included, data loading not. Inference: one 256 x 256 image, masks left in their boxes' frames where
the method can, with the same cap on detections (DETECTIONS, which random weights reach) for all. FLOPs of that
inference: two a multiplication and addition, convolutions and matrix products as torch.utils.flop_counter counts them.
The networks are as Detectron2 builds them, without the forms of modeling/fast_form.py.
The methods take turns, so that a machine that is busy for a while is busy for all; each time is the median of its
turns. Last come the ratios to Mask R-CNN, with a json line each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from inputs import as_mapped
from report import report
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pffnet_d2.config import config_path, read_config
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.modeling.roi_masks import Unpasted

METHODS = ("MaskRCNN_GN", "PanopticFPN", "CellRCNN", "CellRCNN_V2", "PFFNet")
DETECTIONS = 60


class Method:
    """A compact model and its optimizer."""

    def __init__(self, name: str) -> None:
        opts = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
        opts += ["TEST.DETECTIONS_PER_IMAGE", str(DETECTIONS)]
        cfg = read_config(str(config_path(f"bbbc039/{name}_R18_FPN.yaml")), opts)
        torch.manual_seed(0)
        self.model: nn.Module = build_model(cfg)
        self.optimizer = build_optimizer(cfg, self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-6  # the same work at every step
        self.batch = [as_mapped(*synthetic_image(0, i)) for i in range(2)]

    def train(self) -> None:
        with EventStorage():
            losses = self.model.train()(self.batch)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()

    @torch.no_grad()
    def infer(self) -> int:
        """Number of detections."""
        (result,) = Unpasted(self.model).eval()([{"image": self.batch[0]["image"]}])
        return len(result["instances"])

    def flops(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self.infer()
        return int(counter.get_total_flops())

    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def seconds(function: Callable[[], object], steps: int) -> float:
    """Mean seconds a call."""
    start = time.perf_counter()
    for _ in range(steps):
        function()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each method")
    parser.add_argument("--steps", type=int, default=5, help="training steps and predictions a turn")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    methods = {name: Method(name) for name in METHODS}
    training: dict[str, list[float]] = {name: [] for name in METHODS}
    inference: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(args.rounds + 1):
        for name, method in methods.items():
            found = seconds(method.train, args.steps), seconds(method.infer, args.steps)
            if turn:  # the first warms up
                training[name].append(found[0])
                inference[name].append(found[1])
    rows = [
        (
            name,
            f"{method.parameters() / 1e6:.1f} M",
            f"{method.flops() / 1e9:.1f} G",
            f"{1 / statistics.median(training[name]):.2f}",
            f"{statistics.median(inference[name]):.3f}",
            method.infer(),
        )
        for name, method in methods.items()
    ]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        tabulate(
            rows,
            headers=["method", "parameters", "FLOPs", "training it/s", "inference s/image", "detections"],
            disable_numparse=True,
            tablefmt="github",
        )
    )
    first = METHODS[0]
    for name in METHODS[1:]:
        ratios = {
            "training step": statistics.median(training[name]) / statistics.median(training[first]),
            "prediction": statistics.median(inference[name]) / statistics.median(inference[first]),
            "FLOPs of prediction": methods[name].flops() / methods[first].flops(),
            "parameters": methods[name].parameters() / methods[first].parameters(),
        }
        case = f"{name} to {first}, 256x256, {DETECTIONS} detections, cpu"
        times = {"training_s": training[name], "prediction_s": inference[name]}
        report("methods", case, ratios, **times)


if __name__ == "__main__":
    main()
