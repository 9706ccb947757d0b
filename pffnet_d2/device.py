"""The device that a network runs on: which, and how a CPU computes while it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_here(wanted: str = "cuda") -> str:
    """``wanted``, or "cpu" where that is a CUDA device and this machine has none.

    Detectron2's default of MODEL.DEVICE is "cuda" everywhere; the command line, train_net.py and Predictor choose with
    this.
    """
    return "cpu" if wanted.startswith("cuda") and not torch.cuda.is_available() else wanted


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a network lie; a network without any runs on the CPU."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def denormals_flushed(device: torch.device | str) -> Iterator[None]:
    """Within, where ``device`` is the CPU, this thread takes denormal numbers (below 1.2e-38 in float32) for 0.

    Activations near zero otherwise become such numbers, on which CPUs are many times slower. Each of torch's own
    threads keeps the mode of the thread that started it; so networks are built within, too.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    before = _are_flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _are_flushed() -> bool:
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)  # of the normal numbers
    return bool(smallest / 2 == 0)
