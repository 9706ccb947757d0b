"""The GPU computes what the CPU computes. `make gpu` runs these; PFFNET_DEVICE=cpu compares the CPU with itself, which
only shows that the tests run."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from pffnet_d2 import Predictor, config_path
from pffnet_d2.config import read_config
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.engine.train_step import PRECISIONS, TrainStep
from pffnet_d2.modeling.fusion import MODES, fuse

# Every proposal and anchor is taken, because the two devices draw different random numbers.
EVERYTHING = (
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100_000, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10_000_000, "MODEL.RPN.POSITIVE_FRACTION", 1.0),
)
METHODS = ("PFFNet", "CellRCNN_V2", "CellRCNN", "PanopticFPN", "MaskRCNN_GN")


@pytest.fixture
def device() -> Iterator[str]:
    """The GPU, which computes in float32 for the length of a test, not in TF32."""
    device = os.environ.get("PFFNET_DEVICE", "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield device
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on(device: str, cfg: CfgNode) -> nn.Module:
    """The network of the config, whose weights depend on nothing else."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg)
    return model.to(device)


def losses_of(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[dict[str, float], Tensor]:
    """Each loss, and the gradients of all weights in one vector."""
    with EventStorage():
        losses = model.train()(copy.deepcopy(batch))
    sum(losses.values()).backward()
    gradients = torch.cat([p.grad.double().cpu().ravel() for p in model.parameters() if p.grad is not None])
    return {name: float(value.detach()) for name, value in losses.items()}, gradients


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients(device: str, method: str, make_batch: Callable[..., Any]) -> None:
    cfg = read_config(str(config_path(f"bbbc039/{method}_R18_FPN.yaml")), ["MODEL.WEIGHTS", "", *map(str, EVERYTHING)])
    batch = make_batch((128, 128, 4), (96, 128, 3))
    here, there = (losses_of(on(where, cfg), batch) for where in ("cpu", device))
    assert there[0] == pytest.approx(here[0], rel=2e-3, abs=1e-5)
    assert torch.cosine_similarity(here[1], there[1], dim=0) > 0.999


@pytest.mark.parametrize("mode", MODES)
def test_fusion(device: str, mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 2, 64, 64, generator=generator)
    logits = torch.randn(40, 2, 28, 28, generator=generator)
    corners = 56 * torch.rand(40, 2, generator=generator)
    boxes = torch.cat([corners, corners + 4 + 20 * torch.rand(40, 2, generator=generator)], 1)
    images = torch.randint(0, 2, (40,), generator=generator)
    here, there = (fuse(*(x.to(d) for x in (features, logits, boxes, images)), mode) for d in ("cpu", device))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


def test_label_maps_of_the_shipped_model(device: str) -> None:
    """Rounding may move a pixel at an outline, no more."""
    predictors = [Predictor(device=where) for where in ("cpu", device)]
    for index in range(3):
        image, _ = synthetic_image(0, index, size=(200, 264), style="fluorescence")
        here, there = (predictor(image).label_map for predictor in predictors)
        assert here.max() == there.max() > 0
        assert np.mean(here != there) < 1e-3


def test_default_predictor(device: str, compact_cfg: Callable[..., CfgNode]) -> None:
    cfg = compact_cfg("MODEL.DEVICE", device, "MODEL.WEIGHTS", "")
    image, _ = synthetic_image(0, 0, size=(96, 128))
    instances = DefaultPredictor(cfg)(image)["instances"]
    assert instances.pred_masks.device.type == torch.device(device).type
    assert instances.image_size == (96, 128)


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_training_steps(
    device: str, precision: str | None, compact_cfg: Callable[..., CfgNode], make_batch: Callable[..., Any]
) -> None:
    """In every precision, also of a batch without objects, weights change and stay finite."""
    model = on(device, compact_cfg()).train()
    batches = [make_batch((96, 96, 3), (64, 96, 2)), make_batch((64, 64, 0)), make_batch((96, 96, 5))]
    step = TrainStep(
        model,
        batches,
        torch.optim.SGD(model.parameters(), lr=1e-3),
        seed=0,
        precision=PRECISIONS[precision] if precision else None,
    )
    before = [p.detach().clone() for p in model.parameters()]
    with EventStorage() as storage:
        for step.iter in range(3):
            step.run_step()
        assert np.isfinite(storage.latest()["total_loss"][0])
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.isfinite().all() for p in model.parameters())
