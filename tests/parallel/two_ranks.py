"""The work of each of two processes in test_launch.py; a newly started process can import it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from pffnet_d2.config import config_path, read_config
from pffnet_d2.engine.train_step import TrainStep
from pffnet_d2.errors import InputError, NonFiniteLoss

METHODS = ("PFFNet", "CellRCNN_V2", "CellRCNN", "MaskRCNN_GN")
# A small network; the groups of GroupNorm need 32 channels.
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.ROI_MASK_QUALITY_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_MASK_QUALITY_HEAD.FC_DIM", "64", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
]


def image(objects: int) -> dict[str, Any]:
    """64 x 64 pixels of noise and bright squares of 24."""
    masks = torch.zeros(objects, 64, 64, dtype=torch.bool)
    corners = torch.tensor([[4, 6], [34, 36]])[:objects]
    for mask, (x, y) in zip(masks, corners.tolist(), strict=True):
        mask[y : y + 24, x : x + 24] = True
    foreground = masks.any(0) if objects else torch.zeros(64, 64, dtype=torch.bool)
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(objects))
    truth = Instances(
        (64, 64),
        gt_boxes=Boxes(torch.cat([corners, corners + 24], 1).float()),
        gt_classes=torch.zeros(objects, dtype=torch.int64),
        gt_masks=BitMasks(masks),
    )
    return {"image": noise * 50 + foreground * 150, "instances": truth, "sem_seg": foreground.long(), "image_id": 1}


def step(model: nn.Module, objects: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor | None]]:
    """Losses and gradients; random draws are the same each time."""
    model.zero_grad()
    torch.manual_seed(5)
    with EventStorage():
        losses = model([image(objects)])
    sum(losses.values()).backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def compare(out: str) -> None:
    """Write the results of this rank, alone and together with the other, to ``out/<rank>.pt``."""
    rank = comm.get_rank()
    found: dict[str, Any] = {"size": comm.get_world_size(), "local": (comm.get_local_rank(), comm.get_local_size())}
    for method in METHODS:
        cfg = read_config(str(config_path(f"bbbc039/{method}_R18_FPN.yaml")), SMALL)
        torch.manual_seed(0)
        model = build_model(cfg).train()
        alone = {objects: step(model, objects) for objects in (2, 0)}
        together = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
        found[method] = {
            "names": [name for name, _ in model.named_parameters()],
            "alone": alone,
            "same image": step(together, 2),
            "none here": step(together, 2 if rank == 0 else 0),
        }
    found["diverged"] = diverge(rank)
    torch.save(found, Path(out) / f"{rank}.pt")


class OneLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, data: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"loss": (self.w * data[0]["value"]).sum()}


def diverge(rank: int) -> str:
    """Return the error of this rank if the second rank has a loss that is not a number."""
    model = create_ddp_model(OneLoss(), device_ids=None)
    data = [{"value": float("nan") if rank == 1 else 1.0, "image_id": 10 + rank, "file_name": f"{rank}.png"}]
    trainer = TrainStep(model, [data], torch.optim.SGD(model.parameters(), lr=1.0), seed=0)
    try:
        with EventStorage():
            trainer.run_step()
    except NonFiniteLoss as error:
        return str(error)
    return "went on"


def make_a_mistake() -> None:
    raise InputError(f"rank {comm.get_rank()}: a.png is damaged; fetch it again")


def break_down() -> None:
    raise ZeroDivisionError


def write_number_and_wait(folder: str) -> None:
    """Write the number of this process into a file called so, and stay."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(120)
