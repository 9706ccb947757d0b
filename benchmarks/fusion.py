"""How much faster is the closed form of residual attention than the paper's loop over ROIs, forward and backward?

    python benchmarks/fusion.py [--device cpu] [--all]      # --all: K = 32..512, maps of 256 and 512 pixels

The loop is Algorithm 1 as it is written: one ROI after the other resizes its mask with ``interpolate`` and multiplies
its window of the map. ROIs are as training makes them: boxes of 12 to 40 pixels, a batch of two, 2 channels. Both sides
run alternately in one process on one CPU core or the GPU, and must agree before they are timed. Prints a line and a
json line a case.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from report import report
from torch import Tensor
from torch.nn.functional import interpolate

from pffnet_d2.modeling.fusion import fuse


def loop(features: Tensor, mask_logits: Tensor, boxes: Tensor, batch_index: Tensor) -> Tensor:
    """[P] Algorithm 1 for boxes with corners on whole pixels inside the map."""
    fused = list(features.unbind(0))
    corners = boxes.long().tolist()
    for (x1, y1, x2, y2), image, logits in zip(corners, batch_index.tolist(), mask_logits, strict=True):
        probability = interpolate(logits[None].sigmoid(), (y2 - y1, x2 - x1), mode="bilinear", align_corners=False)[0]
        gain = torch.ones_like(fused[image])
        gain[:, y1:y2, x1:x2] = 1 + probability
        fused[image] = fused[image] * gain
    return torch.stack(fused)


def case(count: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 2, size, size, generator=generator)
    logits = 4 * torch.randn(count, 1, 28, 28, generator=generator)
    side = torch.randint(12, 41, (count, 2), generator=generator)
    corner = (torch.rand(count, 2, generator=generator) * (size - side)).long()
    boxes = torch.cat([corner, corner + side], dim=1).float()
    image = torch.arange(count) * 2 // count
    inputs = [t.to(device) for t in (features, logits, boxes, image)]
    return inputs[0].requires_grad_(), inputs[1].requires_grad_(), inputs[2], inputs[3]


def step(fusion: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The fused map and the gradients of half the sum of its squares, which take nothing but fusion to compute."""
    fused = fusion(*inputs)
    return [fused, *torch.autograd.grad(fused, inputs[:2], grad_outputs=fused.detach())]


def seconds(fusion: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(fusion, inputs)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(count: int, size: int, repeat: int, device: str) -> None:
    inputs = case(count, size, device)
    for ours, plain in zip(step(fuse, inputs), step(loop, inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6 * plain.abs().max().item())
    rounds = [(seconds(fuse, inputs, device), seconds(loop, inputs, device)) for _ in range(repeat)]
    fast, slow = (statistics.median(times) for times in zip(*rounds, strict=True))
    case_of = f"K {count}, {size}x{size}, {device}"
    report("fusion", case_of, {"loop over ROIs / closed form": slow / fast}, closed_form_s=fast, loop_s=slow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rois", type=int, default=128)
    parser.add_argument("--size", type=int, default=256, help="side of the map in pixels")
    parser.add_argument("--all", action="store_true", help="K = 32, 64, ... 512, maps of 256 and 512 pixels")
    parser.add_argument("--repeat", type=int, default=15, help="rounds; the median counts")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(k, s) for s in (256, 512) for k in (32, 64, 128, 256, 512)] if args.all else [(args.rois, args.size)]
    for count, size in cases:
        compare(count, size, args.repeat, args.device)


if __name__ == "__main__":
    main()
