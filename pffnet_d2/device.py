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


def faster_in_bfloat16(device: str) -> bool:
    """Whether convolutions take less time in bfloat16 than in float32: on a GPU with units for it, on a CPU with AMX,
    and on one of AMD with AVX-512 BF16. On Intel's CPUs with AVX-512 BF16 and without AMX they take 1.9 times as long
    (docs/studies/inference-speed.md), and others only emulate bfloat16. False for a CPU of which torch says nothing."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    by_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
    return bool(capabilities.get("amx_bf16") or (by_amd and capabilities.get("avx512_bf16")))


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
