"""Networks that do not paste their masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2.modeling.roi_masks import Unpasted


class Ours(nn.Module):
    def forward(self, batched_inputs: list[Any], paste_masks: bool = True) -> tuple[list[Any], bool]:
        return batched_inputs, paste_masks


def test_only_our_networks_are_told_not_to_paste() -> None:
    ours, theirs = Ours(), nn.Identity()
    assert Unpasted(ours)([1]) == ([1], False)
    assert Unpasted(theirs)([1]) == [1]
    assert ours([1]) == ([1], True)  # the network itself has not changed


def test_it_is_the_same_network_in_the_same_mode() -> None:
    inner = nn.Sequential(nn.Linear(2, 2))
    wrapped = Unpasted(inner).eval()
    assert not inner.training
    assert wrapped.model is inner
    assert torch.equal(wrapped.state_dict()["model.0.weight"], inner[0].weight)
