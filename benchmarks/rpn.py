"""How much faster are anchors labelled from the pairs that overlap than from the matrix of all of them?

    python benchmarks/rpn.py [--device cpu] [--all]     # --all: 10 to 3000 objects

``SparseRPN`` against Detectron2's RPN, the same anchors (compact configuration) and objects, one image, one CPU core or
the GPU, turn by turn. Prints a line and a json line a case.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from detectron2.modeling import build_model
from report import report
from scaling import image_of

import pffnet_d2  # noqa: F401  (registers)
from pffnet_d2.config import config_path, read_config


def generator(name: str, device: str) -> Any:
    opts = ["MODEL.DEVICE", device, "MODEL.PROPOSAL_GENERATOR.NAME", name]
    return build_model(read_config(str(config_path("Base-PFFNet-Compact.yaml")), opts)).proposal_generator.train()


def compare(size: int, objects: int, repeat: int, device: str) -> None:
    sparse, plain = generator("SparseRPN", device), generator("RPN", device)
    strides = sparse.anchor_generator.strides
    grids = {name: (-(-size // stride),) * 2 for name, stride in zip(sparse.in_features, strides, strict=True)}
    sparse.widths = [grids[name][1] for name in sparse.in_features]
    anchors = sparse.anchor_generator([torch.zeros(1, 1, *grids[name], device=device) for name in sparse.in_features])
    instances = image_of(size, objects, 0)["instances"].to(device)

    def seconds(rpn: Any) -> float:
        start = time.perf_counter()
        rpn.label_and_sample_anchors(anchors, [instances])
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    rounds = [(seconds(sparse), seconds(plain)) for _ in range(repeat + 1)][1:]  # the first warms up
    fast, slow = (statistics.median(times) for times in zip(*rounds, strict=True))
    case = f"{size}x{size}, {len(instances)} objects, {device}"
    report("anchor labels", case, {"all pairs / overlapping pairs": slow / fast}, sparse_s=fast, plain_s=slow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--all", action="store_true", help="more cases")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(256, 10), (256, 30), (512, 100), (512, 300), (512, 1000), (512, 3000)]
    for size, objects in cases if args.all else [(256, 30), (512, 1000)]:
        compare(size, objects, args.repeat, args.device)


if __name__ == "__main__":
    main()
