"""trainer.py: which processes are started, optimizers as told, runs that go on after a kill."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils.env import seed_all_rng
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from pffnet_d2.cli.main import main
from pffnet_d2.config import config_path, read_config
from pffnet_d2.engine import trainer as engine
from pffnet_d2.engine.resume import tell_changes
from pffnet_d2.engine.trainer import Trainer, run
from pffnet_d2.errors import InputError

pytestmark = pytest.mark.usefixtures("leave_no_trace")

COMPACT = str(config_path("demo/PFFNet_R18_FPN.yaml"))
# A stock Mask R-CNN with GroupNorm, small enough for a test.
STOCK = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.DEVICE": "cpu",
    "INPUT.CROP.SIZE": [64, 64],
    "SOLVER.IMS_PER_BATCH": 1,
    "SEED": 1,
}
SCHEDULE = {
    "SOLVER.MAX_ITER": 6,
    "SOLVER.STEPS": (5,),
    "SOLVER.WARMUP_ITERS": 4,
    "SOLVER.CHECKPOINT_PERIOD": 1,
}


def options(values: dict[str, Any]) -> list[str]:
    return [str(word) for pair in values.items() for word in pair]


def test_missing_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config-file", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.startswith("pffnet: error: nowhere.yaml: no such config file; ")
    for command, other in (("train", "pffnet finetune FOLDER"), ("evaluate", "--truth DIR --prediction DIR")):
        for folder in ((), ("images",)):
            assert main([command, *folder]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("pffnet: error: no config file given; ")
            assert other in line


def test_launches_one_process_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    alone: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engine, "launch_on_gpus", lambda *args, **kwargs: launched.append((args, kwargs)))
    monkeypatch.setattr(engine, "train_or_evaluate", alone.append)
    for number in ("0", "1"):
        assert run(["--config-file", COMPACT, "--num-gpus", number]) == 0
    assert (len(alone), len(launched)) == (2, 0)
    assert run(["--config-file", COMPACT, "--num-gpus", "2"]) == 0
    assert launched[0][0][1] == 2
    assert launched[0][1]["num_machines"] == 1


def test_mistakes_in_other_processes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traceback = 'Traceback (most recent call last):\n  File "x.py"\npffnet_d2.errors.InputError: a.png: truncated\n'
    for error in (
        InputError(f"Caught InputError in DataLoader worker process 0.\nOriginal {traceback}"),
        ProcessRaisedException(f"-- Process 1 terminated with the following error:\n{traceback}", 1, 42),
    ):

        def fail(args: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(engine, "train_or_evaluate", fail)
        assert main(["train", "--config-file", COMPACT]) == 2
        assert capsys.readouterr().err == "pffnet: error: a.png: truncated\n"

    def break_down(args: Any) -> None:
        raise ProcessRaisedException("-- Process 1 terminated ...\nRuntimeError: a bug", 1, 42)

    monkeypatch.setattr(engine, "train_or_evaluate", break_down)
    with pytest.raises(ProcessRaisedException):
        main(["train", "--config-file", COMPACT])


def test_the_papers_config_scales_with_gpus() -> None:
    cfg = read_config(str(config_path("PFFNet_R101_FPN.yaml")))
    assert (cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH) == (1, 1)
    scaled = DefaultTrainer.auto_scale_workers(cfg, 2)
    assert scaled.SOLVER.IMS_PER_BATCH == 2
    assert abs(scaled.SOLVER.BASE_LR - 2 * cfg.SOLVER.BASE_LR) < 1e-12
    assert scaled.SOLVER.MAX_ITER == cfg.SOLVER.MAX_ITER // 2
    assert list(scaled.SOLVER.STEPS) == [step // 2 for step in cfg.SOLVER.STEPS]


def test_adam_decays_and_clips_as_told() -> None:
    """FCN8s: VGG's 13 convolutions and the three scores decay, nothing else; one norm over all gradients."""
    cfg = read_config(str(config_path("dsb2018/FCN8s_compact.yaml")), ["MODEL.DEVICE", "cpu"])
    cfg.SOLVER.WEIGHT_DECAY = 0.25
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.Adam
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert set(groups) == {id(p) for p in model.parameters()}
    assert all((group["eps"], group["lr"]) == (1e-5, 0.001) for group in optimizer.param_groups)
    decayed = {n for n, p in model.named_parameters() if groups[id(p)]["weight_decay"] == 0.25}
    convolutions = {n for n in decayed if re.fullmatch(r"backbone\.features\.\d+\.weight", n)}
    assert len(convolutions) == 13
    assert decayed - convolutions == {f"score_{level}.weight" for level in ("pool3", "pool4", "fc7")}

    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-4)
    # Detectron2's own types clip each parameter.
    cfg.SOLVER.PFFNET.CLIP_NORM = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    optimizer = Trainer.build_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [round(p.grad.norm().item(), 3) for p in model.parameters()] == [1.0] * len(groups)


def test_sgd_stays_detectron2s() -> None:
    cfg = read_config(COMPACT, ["MODEL.DEVICE", "cpu"])
    assert isinstance(Trainer.build_optimizer(cfg, nn.Linear(2, 2)), torch.optim.SGD)


def test_evaluation_without_weights(datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "--eval-only"], ["evaluate"]):
        assert main([*command, "--config-file", COMPACT, *options(STOCK), "OUTPUT_DIR", str(tmp_path)]) == 2
        assert "no weights to evaluate; give MODEL.WEIGHTS FILE" in capsys.readouterr().err


class KilledAfter(HookBase):
    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.iterations:
            raise KeyboardInterrupt


@pytest.fixture
def stock_cfg(datasets: Path, tmp_path: Path) -> Callable[..., CfgNode]:
    def make(*opts: str) -> CfgNode:
        return read_config(COMPACT, [*options(STOCK | SCHEDULE), "OUTPUT_DIR", str(tmp_path), *opts])

    return make


def momenta(trainer: Trainer) -> list[torch.Tensor]:
    states = trainer.optimizer.state_dict()["state"]
    return [states[i]["momentum_buffer"] for i in sorted(states)]


def killed_run(cfg: CfgNode, iterations: int) -> Trainer:
    trainer = Trainer(cfg)
    trainer.register_hooks([KilledAfter(iterations)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer


def test_resuming_after_a_kill_restores_optimizer_and_scheduler(stock_cfg: Callable[..., CfgNode]) -> None:
    cfg = stock_cfg()
    killed = killed_run(cfg, 3)
    resumed = Trainer(cfg)
    fresh_rates = [group["lr"] for group in resumed.optimizer.param_groups]
    resumed.resume_or_load(resume=True)

    assert resumed.start_iter == 3
    assert len(momenta(resumed)) > 50
    for before, after in zip(momenta(killed), momenta(resumed), strict=True):
        assert torch.equal(before, after)
    assert any(m.abs().max() > 0 for m in momenta(resumed))
    rates = [group["lr"] for group in resumed.optimizer.param_groups]
    assert rates == [group["lr"] for group in killed.optimizer.param_groups]
    assert rates != fresh_rates  # warm-up goes on
    assert resumed.scheduler.state_dict()["last_epoch"] == killed.scheduler.state_dict()["last_epoch"] == 3
    for before, after in zip(killed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_averaged_weights_are_saved_and_resume(stock_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    """Files hold the average as the model; a run that was stopped ends as one that was not."""
    decay = ("SOLVER.PFFNET.EMA_DECAY", "0.5")
    seed_all_rng(1)
    killed = killed_run(stock_cfg(*decay), 3)
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert killed.average is not None
    for name, value in killed.average.model.state_dict().items():
        assert torch.equal(saved["model"][name], value)
    assert any(not torch.equal(saved["model"][name], value) for name, value in killed.model.state_dict().items())

    ends = []
    for resume in (True, False):
        seed_all_rng(1)  # as Detectron2's default_setup does, before the model is made
        trainer = Trainer(stock_cfg(*decay))
        trainer.resume_or_load(resume=resume)
        assert trainer.start_iter == (3 if resume else 0)
        killed_by = KilledAfter(5)
        trainer.register_hooks([killed_by])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        ends.append((trainer.model.state_dict(), trainer.average.model.state_dict()))
    for resumed, whole in zip(*ends, strict=True):
        assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_a_run_without_an_average_goes_on_with_one(stock_cfg: Callable[..., CfgNode]) -> None:
    killed = killed_run(stock_cfg(), 2)
    resumed = Trainer(stock_cfg("SOLVER.PFFNET.EMA_DECAY", "0.5"))
    resumed.resume_or_load(resume=True)
    for name, value in killed.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
        assert torch.equal(resumed.average.model.state_dict()[name], value)


def test_what_a_resumed_run_changes_is_said(
    stock_cfg: Callable[..., CfgNode], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = stock_cfg()
    cfg.SEED = 3
    killed = killed_run(cfg, 3)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    caplog.clear()
    tell_changes(tmp_path, cfg)
    assert not caplog.records
    changed = stock_cfg("SOLVER.MAX_ITER", "9", "SOLVER.BASE_LR", "0.5", "TEST.EVAL_PERIOD", "7")
    tell_changes(tmp_path, changed)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: resumes with other settings than it was begun with: SEED 1 (was 3), SOLVER.BASE_LR 0.5 is not "
        f"taken, the checkpoint's {cfg.SOLVER.BASE_LR} stays, SOLVER.MAX_ITER 9 (was 6)"
    )
    resumed = Trainer(changed)
    resumed.resume_or_load(resume=True)
    assert resumed.max_iter == 9
    rates = [[group["lr"] for group in trainer.optimizer.param_groups] for trainer in (killed, resumed)]
    assert rates[0] == rates[1]  # as said
    resumed.scheduler.step()
    assert max(group["lr"] for group in resumed.optimizer.param_groups) < 0.1
    (tmp_path / "config.yaml").write_text("[" * 3)
    caplog.clear()
    tell_changes(tmp_path, changed)
    assert not caplog.records


def test_checkpoints_are_in_mains_format_and_weights_only(stock_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    killed_run(stock_cfg(), 1)
    checkpoint = torch.load(tmp_path / "model_0000000.pth", weights_only=True)
    assert {"model", "trainer", "iteration"} <= checkpoint.keys()
    inner = checkpoint["trainer"]["_trainer"]
    assert inner["iteration"] == checkpoint["trainer"]["iteration"] == 0
    assert {"state", "param_groups"} <= inner["optimizer"].keys()


def test_checkpoints_without_optimizer_are_resumed(stock_cfg: Callable[..., CfgNode], tmp_path: Path) -> None:
    """Those of Detectron2 0.6's own DefaultTrainer."""
    killed_run(stock_cfg(), 2)
    file = tmp_path / "model_0000001.pth"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["trainer"]["_trainer"]
    torch.save(checkpoint, file)
    resumed = Trainer(stock_cfg())
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert not momenta(resumed)


def test_a_parent_that_keeps_the_optimizer_is_left_to_it(
    stock_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream main's DefaultTrainer, imitated: it saves "_trainer" itself and fails where that is missing."""
    parent_state, parent_load = DefaultTrainer.state_dict, DefaultTrainer.load_state_dict

    def state_dict(self: Any) -> dict[str, Any]:
        return {**parent_state(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        parent_load(self, state)
        self._trainer.load_state_dict(state["_trainer"])

    killed = killed_run(stock_cfg(), 2)  # as 0.6
    if not engine.TRAINER_KEEPS_OPTIMIZER:
        monkeypatch.setattr(DefaultTrainer, "state_dict", state_dict)
        monkeypatch.setattr(DefaultTrainer, "load_state_dict", load_state_dict)
        monkeypatch.setattr(engine, "TRAINER_KEEPS_OPTIMIZER", True)
    resumed = Trainer(stock_cfg())
    resumed.resume_or_load(resume=True)
    for before, after in zip(momenta(killed), momenta(resumed), strict=True):
        assert torch.equal(before, after)
    state = resumed.state_dict()
    del state["_trainer"]
    resumed.load_state_dict(state)  # as from 0.6's own trainer


def test_adam() -> None:
    """SOLVER.PFFNET.OPTIMIZER: its learning rate, weight decay (none for norms) and clipping are the config's."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    keys = {
        "SOLVER.PFFNET.OPTIMIZER": "ADAM",
        "SOLVER.BASE_LR": 1.25e-4,
        "SOLVER.WEIGHT_DECAY": 0.01,
        "SOLVER.WEIGHT_DECAY_NORM": 0.0,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    }
    optimizer = Trainer.build_optimizer(read_config(COMPACT, options(keys)), model)
    assert isinstance(optimizer, torch.optim.Adam)
    assert {group["lr"] for group in optimizer.param_groups} == {1.25e-4}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in model.parameters()] == [0.01, 0.01, 0, 0]
    assert type(optimizer).step is not torch.optim.Adam.step  # clips
    assert isinstance(Trainer.build_optimizer(read_config(COMPACT), model), torch.optim.SGD)
