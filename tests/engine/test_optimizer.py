"""Which optimizer a config gets, from whom, and the moving average of what it moves."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pffnet_d2.config import add_pffnet_config
from pffnet_d2.engine.optimizer import WeightAverage, build_optimizer
from pffnet_d2.errors import InputError


def config(**own: object) -> CfgNode:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    for key, value in own.items():
        cfg.SOLVER.PFFNET[key] = value
    return cfg


@pytest.mark.parametrize(
    ("name", "kind"), [("SGD", torch.optim.SGD), ("ADAM", torch.optim.Adam), ("ADAMW", torch.optim.AdamW)]
)
def test_detectron2s_own_trainer_builds_it_too(name: str, kind: type) -> None:
    model = nn.Linear(2, 2)
    assert type(build_optimizer(config(OPTIMIZER=name), model)) is kind
    assert type(DefaultTrainer.build_optimizer(config(OPTIMIZER=name), model)) is kind


@pytest.mark.parametrize("name", ["ADAM", "ADAMW"])
def test_all_weights_of_a_cpu_move_in_one_kernel(name: str) -> None:
    assert build_optimizer(config(OPTIMIZER=name), nn.Linear(3, 2)).defaults["fused"]


def test_configs_without_our_keys_get_detectron2s() -> None:
    assert type(DefaultTrainer.build_optimizer(get_cfg(), nn.Linear(2, 2))) is torch.optim.SGD


@pytest.mark.parametrize("name", ["SGD", "ADAM", "ADAMW"])
def test_one_norm_limits_all_gradients(name: str) -> None:
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(config(OPTIMIZER=name, CLIP_NORM=0.5), layer)
    layer.weight.grad = torch.full_like(layer.weight, 3.0)
    layer.bias.grad = torch.full_like(layer.bias, 4.0)
    before = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
    optimizer.step()
    after = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
    assert after.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert torch.allclose(after / after.norm(), before / before.norm())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"OPTIMIZER": "adam"}, r"SOLVER\.PFFNET\.OPTIMIZER.*adam.*SGD, ADAM, ADAMW"),
    ],
)
def test_mistakes(own: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_optimizer(config(**own), nn.Linear(2, 2))


def test_clipping_in_two_ways() -> None:
    cfg = config(CLIP_NORM=1.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    with pytest.raises(InputError, match="gradients are clipped in one way"):
        build_optimizer(cfg, nn.Linear(2, 2))


@given(values=st.lists(st.floats(-8, 8), min_size=1, max_size=20), decay=st.floats(0.0, 0.999))
def test_average_is_that_of_a_plain_loop(values: list[float], decay: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay)
    expected = values[0]
    for n, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        average.after_step()
        if n:
            d = min(decay, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * value
    assert average.model.weight.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_average_resumes(share: float) -> None:
    """A run stopped in the middle averages as one that was not."""
    torch.manual_seed(0)
    values = torch.randn(8, 2, 2)
    model = nn.Linear(2, 2, bias=False)
    through, first = WeightAverage(model, 0.9, share), WeightAverage(model, 0.9, share)
    through.restart()
    first.restart()
    for i, value in enumerate(values):
        model.weight.data.copy_(value)
        through.after_step()
        if i < 4:
            first.after_step()
            saved, state = copy.deepcopy((first.model.state_dict(), first.training_state()))
    model.load_state_dict(saved)  # as a checkpointer does
    second = WeightAverage(model, 0.9, share)
    second.resume(state)
    assert torch.equal(model.weight, values[3])
    for value in values[4:]:
        model.weight.data.copy_(value)
        second.after_step()
    assert torch.equal(second.model.weight, through.model.weight)

    if share:
        with pytest.raises(InputError, match=r"begun with 0\.0"):
            second.resume({"weights": model.state_dict(), "iterations": 3})


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_start_keeps_its_share(decay: float) -> None:
    model, plain = nn.Linear(1, 1), nn.Linear(1, 1)
    for each in (model, plain):
        nn.init.constant_(each.weight, 2.0)
        nn.init.constant_(each.bias, 4.0)
    mixed, average = WeightAverage(model, decay, 0.25), WeightAverage(plain, decay)
    mixed.restart(new=["bias"])  # no file gave its value
    for value in (6.0, 10.0):
        for each, hook in ((model, mixed), (plain, average)):
            with torch.no_grad():
                each.weight.fill_(value)
                each.bias.fill_(value)
            hook.after_step()
    assert mixed.model.weight.item() == pytest.approx(0.25 * 2 + 0.75 * average.model.weight.item())
    assert mixed.model.bias.item() == average.model.bias.item()
    assert model.weight.item() == 10  # training is not touched


def test_a_share_of_random_weights() -> None:
    cfg = config(START_SHARE=0.5)
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(InputError, match=r"START_SHARE 0\.5: training starts from random weights"):
        build_optimizer(cfg, nn.Linear(2, 2))
