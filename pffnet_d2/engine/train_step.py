"""One iteration of training: precision, chance, and the end of a run whose losses are not finite."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling.poolers import ROIPooler
from detectron2.utils import comm
from torch import Tensor, distributed, nn

from pffnet_d2.device import denormals_flushed
from pffnet_d2.engine.loader import STEP, TrainLoader, seed_by
from pffnet_d2.errors import NonFiniteLoss

logger = logging.getLogger(__name__)

# SOLVER.AMP.DTYPE
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainStep(SimpleTrainer):
    """Detectron2's step, seeded by (seed, iteration, rank), in mixed precision or not, that stops before a backward
    pass of losses that are not finite.

    Its state is that of Detectron2's SimpleTrainer, or in float16 of its AMPTrainer.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            model: returns a dict of losses, scalars.
            data_loader: batches; no iterator is made before the first step.
            optimizer: whose ``step`` may clip gradients; they are unscaled then.
            seed: what the model draws (which proposals become ROIs) depends on it, the iteration and the rank.
            precision: that autocast takes for convolutions and matrix products; None: float32.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.precision = precision
        self.device = next(model.parameters()).device
        # Gradients of float16 leave its range; bfloat16 has that of float32.
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

    def run_step(self) -> None:
        """
        Raises:
            NonFiniteLoss: on all ranks, whichever has the loss.
        """
        with denormals_flushed(self.device):
            self._run_step()

    def _run_step(self) -> None:
        assert self.model.training
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        seed_by(self.seed, STEP, self.iter, comm.get_rank())
        losses: dict[str, Tensor] = {}
        trouble = ""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            try:
                losses = {name: loss.float() for name, loss in self.model(data).items()}
            except FloatingPointError as error:  # the RPN's, of boxes or scores that are not numbers
                trouble = str(error)
        values = self._finite(losses, trouble, data)

        self.optimizer.zero_grad()
        self.grad_scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        self._write_metrics(values, data_time)
        # Before the optimizer clips; one that is fused would unscale only after.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _finite(self, losses: dict[str, Tensor], trouble: str, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses on the CPU. This is the one wait for the device: Detectron2's, after the backward pass, then finds
        them there."""
        values = torch.stack([loss.detach() for loss in losses.values()]) if losses else torch.zeros(0).to(self.device)
        bad = (~values.isfinite()).sum() + bool(trouble)
        if comm.get_world_size() > 1:
            # Else the other ranks would wait for this one in the backward pass.
            distributed.all_reduce(bad)
        *numbers, bad_of_all = torch.cat([values, bad[None].to(values.dtype)]).cpu()
        named = dict(zip(losses, numbers, strict=True))
        if bad_of_all > 0:
            trouble = trouble or ", ".join(f"{name} is {v.item()}" for name, v in named.items() if not v.isfinite())
            message = next(filter(None, comm.all_gather(trouble and self._told(trouble, data))))
            logger.error(message)
            raise NonFiniteLoss(message)
        return named

    def _told(self, trouble: str, data: list[dict[str, Any]]) -> str:
        images = ", ".join(f"{each.get('image_id', '?')} ({each.get('file_name', '?')})" for each in data)
        rank = f" on rank {comm.get_rank()}" if comm.get_world_size() > 1 else ""
        return (
            f"iteration {self.iter}{rank}: {trouble.rstrip('.')}; images {images}; lower SOLVER.BASE_LR, lengthen "
            "SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED True"
        )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # A run may go on in another precision.
        if self.grad_scaler.is_enabled() and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def pool_in_float32(model: nn.Module) -> None:
    """Let every ROI pooler of ``model`` take its maps in float32, for good; autocast computes it so anyway.

    Detectron2 gives boxes the dtype of the maps they are pooled from, and the 8 bits of bfloat16 do not tell x = 300
    from x = 301.
    """
    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(_float32_maps)


def _float32_maps(_: nn.Module, inputs: tuple[list[Tensor], Any]) -> tuple[list[Tensor], Any]:
    maps, boxes = inputs
    return [x.float() for x in maps], boxes
