"""The optimizer that SOLVER and SOLVER.PFFNET describe, and the moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.engine import defaults as engine_defaults
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pffnet_d2.config.values import check_value
from pffnet_d2.device import device_of
from pffnet_d2.errors import InputError


def register_optimizers() -> None:
    """Make Detectron2's DefaultTrainer build the optimizer that our configs name.

    Detectron2 has no registry of optimizers and would train with SGD without saying so. Its DefaultTrainer calls our
    function instead of its own; configs without our keys are passed on to its own.
    """
    engine_defaults.build_optimizer = build_optimizer


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, Adam or AdamW, with the learning rates, weight decay and gradient clipping of SOLVER.

    With Adam, the parameters that ``model.without_weight_decay()`` returns do not decay, if the model has that method.

    Raises:
        InputError: see :func:`check_optimizer`.
    """
    own = cfg.SOLVER.get("PFFNET")
    if own is None:
        return build_sgd(cfg, model)
    check_optimizer(cfg)
    optimizer = build_sgd(cfg, model) if own.OPTIMIZER == "SGD" else _build_adam(cfg, model)
    if own.CLIP_NORM > 0:

        def clip_all(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, own.CLIP_NORM)

        optimizer.register_step_pre_hook(clip_all)
    return optimizer


def check_optimizer(cfg: Any) -> None:
    """
    Raises:
        InputError: the optimizer is unknown, gradients are to be clipped in two ways, or random weights are to be kept.
    """
    own = cfg.SOLVER.PFFNET
    check_value("SOLVER.PFFNET.OPTIMIZER", own.OPTIMIZER, "SOLVER.PFFNET.OPTIMIZER")
    if own.CLIP_NORM > 0 and cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        raise InputError(
            "SOLVER.PFFNET.CLIP_NORM and SOLVER.CLIP_GRADIENTS.ENABLED: gradients are clipped in one way; set "
            "SOLVER.CLIP_GRADIENTS.ENABLED False, or SOLVER.PFFNET.CLIP_NORM 0.0"
        )
    if own.START_SHARE > 0 and not cfg.MODEL.WEIGHTS:
        raise InputError(
            f"SOLVER.PFFNET.START_SHARE {own.START_SHARE}: training starts from random weights, which no model should "
            "keep; set it to 0.0, or MODEL.WEIGHTS to the weights of a trained model"
        )


def _build_adam(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    without: Any = getattr(model, "without_weight_decay", tuple)
    constant = {id(parameter) for parameter in without()}
    groups = [
        {**group, "params": chosen, **({"weight_decay": 0.0} if exempt else {})}
        for group in groups
        for exempt in (False, True)
        if (chosen := [p for p in group["params"] if (id(p) in constant) == exempt])
    ]
    own = cfg.SOLVER.PFFNET
    kind = torch.optim.AdamW if own.OPTIMIZER == "ADAMW" else torch.optim.Adam
    # torch takes the fastest form by itself on a GPU, but the slowest on a CPU.
    fused = True if device_of(model).type == "cpu" else None
    return maybe_add_gradient_clipping(cfg, kind(groups, lr=cfg.SOLVER.BASE_LR, eps=own.ADAM_EPSILON, fused=fused))


class WeightAverage(HookBase):
    """The exponential moving average of a model's weights, updated after each iteration.

    The decay at iteration n (from 1) is min(decay, (1 + n) / (10 + n)), so that the average of a short run is not
    dominated by its random first weights (as TensorFlow's ExponentialMovingAverage does with num_updates).

    With ``start_share`` s the weights to use are s start + (1 - s) average, where start is what the run started from
    (Wortsman et al. 2022, arXiv 2109.01903, 3: weight-space ensembles). Parameters that were not in its file are those
    of the average.
    """

    def __init__(self, model: nn.Module, decay: float, start_share: float = 0.0) -> None:
        """
        Args:
            model: the model in training; the average starts from its weights.
            decay: of the average per iteration, 0 to 1.
            start_share: s, 0 to 1.
        """

        @torch.no_grad()
        def average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
            step = int(count)
            torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + step) / (10 + step)))

        self.source = model.module if isinstance(model, DistributedDataParallel) else model
        self.averaged = AveragedModel(self.source, multi_avg_fn=average).eval()
        self.start_share = start_share
        self.start: dict[str, Tensor] = {}

    @property
    def model(self) -> nn.Module:
        """A copy of the model with the weights to use, in evaluation mode. Its buffers are those of the last iteration.
        It is made anew where the start has a share, because only evaluation and checkpoints need it."""
        if not self.start:
            return self.averaged.module
        mixed = copy.deepcopy(self.averaged.module)
        parameters = dict(mixed.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_([parameters[name] for name in self.start], list(self.start.values()), self.start_share)
        return mixed

    def after_step(self) -> None:
        self.averaged.update_parameters(self.source)

    def restart(self, new: Collection[str] = ()) -> None:
        """Start again from the weights that the model has now. ``new``: parameters that no file gave their values."""
        self.averaged.module.load_state_dict(self.source.state_dict())
        self.averaged.n_averaged.zero_()
        if self.start_share:
            given = [(name, value) for name, value in self.source.named_parameters() if name not in new]
            self.start = {name: value.detach().clone() for name, value in given}

    def training_state(self) -> dict[str, Any]:
        """What resuming needs besides the weights to use: the weights in training, how many are averaged and, where the
        start has a share, the start and the average."""
        state = {"weights": self.source.state_dict(), "iterations": int(self.averaged.n_averaged)}
        return state | ({"start": self.start, "average": self.averaged.module.state_dict()} if self.start_share else {})

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint with this ``state``, whose weights to use the model has now.

        Raises:
            InputError: the start has a share, and the checkpoint does not hold it.
        """
        if self.start_share and "start" not in state:
            raise InputError(
                f"SOLVER.PFFNET.START_SHARE {self.start_share}: the run to resume was begun with 0.0, and does not "
                "hold the weights that it started from; set it to 0.0, or omit --resume to start again"
            )
        self.averaged.module.load_state_dict(state.get("average", self.source.state_dict()))
        self.averaged.n_averaged.fill_(state["iterations"])
        self.source.load_state_dict(state["weights"])
        if self.start_share:
            device = device_of(self.source)
            self.start = {name: value.to(device) for name, value in state["start"].items()}
