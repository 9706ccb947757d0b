"""train_step.py: mixed precision, the end of a run that diverged, and runs that go on as if never stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import nn

from pffnet_d2.cli.main import main
from pffnet_d2.config import config_path, read_config
from pffnet_d2.engine.train_step import NonFiniteLoss, TrainStep, pool_in_float32
from pffnet_d2.engine.trainer import Trainer

pytestmark = pytest.mark.usefixtures("leave_no_trace")

TINY = {
    "DATASETS.TEST": "()",
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_QUALITY_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_QUALITY_HEAD.FC_DIM": 64,
    "INPUT.CROP.SIZE": [48, 64],
    "INPUT.PFFNET.AUGMENTATIONS": "['flip', 'rotate90', 'gaussian_noise', 'jitter']",
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.WARMUP_ITERS": 4,
    "SEED": 1,
}


def arguments(out: Path, **options: Any) -> list[str]:
    pairs = TINY | {"OUTPUT_DIR": out} | {key.replace("__", "."): value for key, value in options.items()}
    return [str(word) for pair in pairs.items() for word in pair]


class Recorder(HookBase):
    """Keeps the losses of every iteration, and kills the run after some."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.losses: list[dict[str, float]] = []
        self.kill_after = kill_after

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.losses.append({name: value for name, (value, _) in latest.items() if "loss" in name})
        if self.trainer.iter + 1 == self.kill_after:
            raise KeyboardInterrupt


def train(cfg: CfgNode, kill_after: int | None = None) -> tuple[Trainer, list[dict[str, float]]]:
    torch.manual_seed(0)  # the weights'; `setup` does it for commands
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    recorder = Recorder(kill_after)
    trainer.register_hooks([recorder])
    if kill_after:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return trainer, recorder.losses


def resumed_equals_whole(tmp_path: Path, kill_after: int, iterations: int) -> None:
    def cfg(out: str, workers: int) -> CfgNode:
        options = arguments(tmp_path / out, SOLVER__MAX_ITER=iterations, DATALOADER__NUM_WORKERS=workers)
        return read_config(str(config_path("demo/PFFNet_R18_FPN.yaml")), options)

    whole, expected = train(cfg("whole", 0))
    _, first = train(cfg("parts", 0), kill_after)
    torch.rand(7)
    resumed, second = train(cfg("parts", 2))
    assert len(second) == iterations - kill_after
    assert first + second == expected
    assert len({losses["loss_cls"] for losses in expected}) == iterations
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_resumed_run_is_that_of_one_go(datasets: Path, tmp_path: Path) -> None:
    """Bit for bit, though images are shuffled, augmented at random and other workers read them after the break."""
    resumed_equals_whole(tmp_path, 3, 6)


@pytest.mark.slow
def test_ten_and_ten_iterations_are_twenty(datasets: Path, tmp_path: Path) -> None:
    resumed_equals_whole(tmp_path, 10, 20)


def test_bfloat16_on_the_cpu(datasets: Path, tmp_path: Path) -> None:
    """The losses of the first iteration are those of float32 to three digits; weights stay float32 and learn."""
    losses = {}
    for enabled in (False, True):
        options = arguments(tmp_path / str(enabled), SOLVER__MAX_ITER=3, SOLVER__AMP__ENABLED=enabled)
        cfg = read_config(str(config_path("demo/PFFNet_R18_FPN.yaml")), [*options, "SOLVER.AMP.DTYPE", "bfloat16"])
        trainer, losses[enabled] = train(cfg)
        gradients = [p.grad for p in trainer.model.parameters()]
        assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert losses[True][0] != losses[False][0]
    assert losses[True][0] == pytest.approx(losses[False][0], rel=0.02, abs=2e-3)
    assert len({step["total_loss"] for step in losses[True]}) == 3


def test_rois_are_pooled_where_they_are_in_any_precision() -> None:
    """One bright column at x = 301; the box around it ends up elsewhere where its corners are rounded to 8 bits."""
    image = torch.zeros(1, 1, 8, 320, dtype=torch.bfloat16)
    image[..., 301] = 1
    box = [Boxes(torch.tensor([[300.75, 1.0, 302.25, 3.0]]))]
    pooler = ROIPooler(1, scales=(1.0,), sampling_ratio=0, pooler_type="ROIAlignV2")
    expected = pooler([image.float()], box)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.allclose(pooler([image], box).float(), expected, atol=0.1)
        pool_in_float32(nn.Sequential(pooler))
        assert torch.equal(pooler([image], box), expected)


class Line(nn.Module):
    """Loss ``slope * w``, and another of a given value."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.0]))

    def forward(self, data: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if data[0].get("diverged"):
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        return {"loss_a": (data[0]["slope"] * self.w).sum(), "loss_b": torch.tensor(data[0].get("other", 0.0))}


def step(precision: torch.dtype | None, **image: Any) -> TrainStep:
    """Before its first iteration; SGD with learning rate 1 and gradients clipped to a norm of 0.5."""
    model = Line()
    clip = SimpleNamespace(ENABLED=True, CLIP_TYPE="norm", CLIP_VALUE=0.5, NORM_TYPE=2.0)
    sgd = maybe_add_gradient_clipping(SimpleNamespace(SOLVER=SimpleNamespace(CLIP_GRADIENTS=clip)), torch.optim.SGD)
    batch = [{"image_id": 3, "file_name": "c.png", "slope": 100.0, **image}]
    return TrainStep(model, [batch] * 5, sgd(model.parameters(), lr=1.0), seed=0, precision=precision)


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_gradients_are_clipped_after_unscaling(precision: torch.dtype | None) -> None:
    trainer = step(precision)
    with EventStorage():
        trainer.run_step()
    assert trainer.model.w.item() == pytest.approx(-0.5)
    assert trainer.grad_scaler.is_enabled() == (precision == torch.float16)


def test_float16_leaves_out_steps_whose_scaled_gradients_overflow() -> None:
    trainer = step(torch.float16, slope=1e38)
    scale = trainer.grad_scaler.get_scale()
    with EventStorage():
        trainer.run_step()
    assert trainer.model.w.item() == 0
    state = trainer.state_dict()
    assert state["grad_scaler"]["scale"] == scale / 2
    again = step(torch.float16)
    again.load_state_dict(state)
    assert again.grad_scaler.get_scale() == scale / 2
    other = step(torch.bfloat16)
    other.load_state_dict(state)
    assert "grad_scaler" not in other.state_dict()
    again.load_state_dict(other.state_dict())  # a run that changes to float16


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"other": float("nan")}, "loss_b is nan"),
        ({"slope": float("inf")}, "loss_a is nan"),  # inf * 0
        ({"diverged": True}, "Predicted boxes or scores contain Inf/NaN. Training has diverged"),
    ],
)
def test_a_loss_that_is_no_number_stops_before_the_backward_pass(image: dict[str, Any], said: str) -> None:
    trainer = step(None, **image)
    trainer.iter = 12
    with EventStorage(), pytest.raises(NonFiniteLoss) as error:
        trainer.run_step()
    assert str(error.value).startswith(f"iteration 12: {said}; images 3 (c.png); lower SOLVER.BASE_LR")
    assert "\n" not in str(error.value)
    assert trainer.model.w.grad is None
    assert trainer.model.w.item() == 0


def test_a_run_that_diverges_ends_with_one_line(
    datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging = {"SOLVER__BASE_LR": 1e30, "SOLVER__WARMUP_ITERS": 0, "SOLVER__CLIP_GRADIENTS__ENABLED": False}
    config = str(config_path("demo/PFFNet_R18_FPN.yaml"))
    assert main(["train", "--config-file", config, *arguments(tmp_path, SOLVER__MAX_ITER=9, **diverging)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pffnet: error: iteration 1: ")
    error = error.removeprefix("pffnet: error: ")
    assert ".png)" in error
    log = (tmp_path / "log.txt").read_text()
    assert error in log
    assert "Traceback" not in log
    assert not (tmp_path / "model_final.pth").exists()
