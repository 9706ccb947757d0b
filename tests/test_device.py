"""device.py: the CPU is used without CUDA, and denormal numbers are flushed only while a network runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.utils.events import EventStorage

from pffnet_d2 import Predictor
from pffnet_d2.device import denormals_flushed, device_here, faster_in_bfloat16
from pffnet_d2.engine.train_step import TrainStep
from pffnet_d2.modeling.roi_masks import Unpasted


def flushed() -> bool:
    return bool(torch.tensor(1e-39) * 0.5 == 0)


class Seen(torch.nn.Module):
    """Records whether denormal numbers are flushed in its forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))
        self.w.register_hook(lambda gradient: self.seen.append(flushed()))
        self.seen: list[bool] = []

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.seen.append(flushed())
        return {"loss": self.w.sum()}


@pytest.mark.parametrize(
    ("available", "wanted", "chosen"),
    [(False, "cuda", "cpu"), (False, "cuda:1", "cpu"), (True, "cuda:1", "cuda:1"), (True, "cpu", "cpu")],
)
def test_device_here(available: bool, wanted: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert device_here(wanted) == chosen


def test_the_previous_setting_is_restored() -> None:
    with denormals_flushed("cpu"):
        assert flushed()
        with denormals_flushed("cpu"):
            assert flushed()
        assert flushed()
    assert not flushed()
    with pytest.raises(ZeroDivisionError), denormals_flushed("cpu"):
        raise ZeroDivisionError
    assert not flushed()
    with denormals_flushed("cuda"):
        assert not flushed()


def test_denormals_are_flushed_only_during_a_training_step() -> None:
    model = Seen()
    trainer = TrainStep(model, [[{}]], torch.optim.SGD(model.parameters(), lr=1.0), seed=0)
    with EventStorage():
        trainer.run_step()
    assert model.seen == [True, True]
    assert not flushed()


def test_denormals_are_flushed_only_during_prediction(tiny_run: Path) -> None:
    model = Seen()
    Unpasted(model)([])
    assert model.seen == [True]
    Predictor(model=tiny_run)(np.zeros((64, 64), np.uint8))
    assert not flushed()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, False),
        ({"cpu_name": "AMD EPYC 7R13", "avx512_bf16": False}, False),
    ],
)
def test_bfloat16_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, str | bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert faster_in_bfloat16("cpu") is expected


def test_bfloat16_where_torch_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not faster_in_bfloat16("cpu")
