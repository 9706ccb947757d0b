"""How many images a second do PFFNet and Detectron2's Mask R-CNN with GroupNorm train on and predict?

    python benchmarks/throughput.py [--device cuda] [--models compact R50 R101] [--batches 1 2 4 8 16] [--size 256]
        [--amp]

Random weights, generated images of ``--size`` pixels, 100 detections an image, the two networks turn by turn, one CPU
core or the GPU. Training: forward, backward and optimizer step. Prediction: to label maps; its peer's to Detectron2's
pasted masks. Memory is the peak of a training step beyond what was held before the networks were built. A batch that
does not fit is named and left out. Prints
the ratios of PFFNet's time and memory to its peer's, and a json line with the rest, PFFNet first.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from label_map import peak
from network import Side, batch
from report import report

PAPER = "bbbc039/PFFNet_R101_FPN.yaml"


class Pair(NamedTuple):
    """A config of PFFNet, that of its peer, and KEY VALUE pairs for both."""

    config: str
    peer: str
    opts: list[str]


MODELS = {
    "compact": Pair("bbbc039/PFFNet_R18_FPN.yaml", "bbbc039/MaskRCNN_GN_R18_FPN.yaml", []),
    "R50": Pair(PAPER, f"{PAPER} with MaskRCNN_GN", ["MODEL.RESNETS.DEPTH", "50"]),
    "R101": Pair(PAPER, f"{PAPER} with MaskRCNN_GN", []),
}


def measured(
    sides: list[Side], work: list[Callable[..., None]], inputs: list[dict[str, Any]], turns: int
) -> list[float]:
    """Images a second of each side: the median of ``turns`` turns, after one that warms up."""
    for each in work:
        each(inputs)
    rounds = [[side.seconds(each, inputs) for side, each in zip(sides, work, strict=True)] for _ in range(turns)]
    return [len(inputs) / statistics.median(times) for times in zip(*rounds, strict=True)]


def peaks(sides: list[Side], inputs: list[dict[str, Any]], device: str, held: int) -> list[int]:
    found = []
    for side in sides:
        peak(device, reset=True)
        side.train(inputs)
        found.append(peak(device) - held)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["compact"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--repeat", type=int, default=5, help="turns; the median counts")
    parser.add_argument("--amp", action="store_true", help="train in bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.device == "cpu":
        torch.set_flush_denormal(True)
    for name in args.models:
        pair = MODELS[name]
        held = peak(args.device, reset=True)
        sides = [Side(config, pair.opts, args) for config in (pair.config, pair.peer)]
        for count in args.batches:
            case = f"{name}, batch {count}, {args.size}x{args.size}, {args.device}{', bf16' if args.amp else ''}"
            inputs = batch(args.size, count)
            try:
                training = measured(sides, [side.train for side in sides], inputs, args.repeat)
                predicting = measured(sides, [side.predict for side in sides], inputs, args.repeat)
                memory = peaks(sides, inputs, args.device, held)
            except torch.cuda.OutOfMemoryError:
                print(f"{case}: does not fit into the memory of the device")
                break
            ratios = {
                "training time": training[1] / training[0],
                "prediction time": predicting[1] / predicting[0],
                "memory": memory[0] / memory[1],
            }
            rates = {"training_images_per_second": training, "prediction_images_per_second": predicting}
            report("PFFNet / Mask R-CNN GN, throughput", case, ratios, **rates, peak_bytes=memory)
        del sides


if __name__ == "__main__":
    main()
