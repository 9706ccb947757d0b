"""Training that is killed again and again ends with the weights of a run that was left alone."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pffnet_d2.data.prepare import Selection, prepare
from tests.robustness.process import done, run, start

KILLS = 20
ITERATIONS = 8
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is not Windows'")]


def train(config: Path, out: str) -> list[str]:
    keys: dict[str, Any] = {
        "SEED": 11,
        "INPUT.CROP.SIZE": [64, 64],
        "SOLVER.IMS_PER_BATCH": 1,
        "SOLVER.MAX_ITER": ITERATIONS,
        "SOLVER.STEPS": (6,),
        "SOLVER.WARMUP_ITERS": 5,
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "DATASETS.TEST": (),
        "OUTPUT_DIR": out,
    }
    words = [str(word) for pair in keys.items() for word in pair]
    return ["train", "--resume", "--config-file", str(config), *words]


def state(file: Path) -> dict[str, Any]:
    """Everything a checkpoint holds, by path."""

    def flat(node: Any, prefix: str) -> dict[str, Any]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else None
        if items is None:
            return {prefix: node}
        return {key: value for name, below in items for key, value in flat(below, f"{prefix}/{name}").items()}

    return flat(torch.load(file, weights_only=True), "")


def test_kill_9_twenty_times(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("phantoms", None, tmp_path / "datasets", Selection(splits=["train"], count=3))
    variables = {"DETECTRON2_DATASETS": str(tmp_path / "datasets"), "OMP_NUM_THREADS": "1"}
    config = tiny_run / "config.yaml"
    run(["--version"], tmp_path)  # the process that the others are copies of
    began = time.monotonic()
    alone = run(train(config, "alone"), tmp_path, variables=variables)
    took = time.monotonic() - began
    assert alone.code == 0, alone.stderr
    expected = state(tmp_path / "alone/model_final.pth")

    moments = random.Random(5)
    kills = rounds = 0
    while kills < KILLS or not (tmp_path / f"killed{rounds}/model_final.pth").is_file():
        if (tmp_path / f"killed{rounds}/model_final.pth").is_file():
            rounds += 1
        process = start(train(config, f"killed{rounds}"), tmp_path, variables=variables)
        process.join(moments.uniform(0, took) if kills < KILLS else 300)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0, done(process, tmp_path).stderr
    for number in range(rounds + 1):
        found = state(tmp_path / f"killed{number}/model_final.pth")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
            assert same, (number, name)
        assert (tmp_path / f"killed{number}/last_checkpoint").read_text() == "model_final.pth"
    print(f"{kills} kills, {rounds + 1} runs, {took:.1f} s each when left alone")
