"""The device that a network runs on, and how a CPU computes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_here(wanted: str = "cuda") -> str:
    """Return ``wanted``, or "cpu" if that is a CUDA device and this machine has none.

    The default of MODEL.DEVICE is "cuda" on every machine. The command line, train_net.py and Predictor choose by this
    function.
    """
    return "cpu" if wanted.startswith("cuda") and not torch.cuda.is_available() else wanted


def device_of(model: nn.Module) -> torch.device:
    """The device of the parameters of a network; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def denormals_flushed(device: torch.device | str) -> Iterator[None]:
    """If ``device`` is the CPU, make this thread treat denormal numbers (below 1.2e-38 in float32) as 0 meanwhile.

    Activations near zero become such numbers, and CPUs are many times slower with them. Each of torch's own threads
    keeps the mode of the thread that started it, so networks must be built in this context too.
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
