"""Several processes compute the same as one, with every method; if one fails, all end."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessRaisedException

from pffnet_d2.cli.main import main
from pffnet_d2.config import config_path
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.engine.trainer import run
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.scores import read_scores
from pffnet_d2.parallel import launch
from pffnet_d2.parallel.launch import launch_over_gloo

pytestmark = pytest.mark.usefixtures("leave_no_trace")


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[ModuleType]:
    """The module, which new processes can also import by name, because they get the path of this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("two_ranks")


@pytest.fixture(scope="module")
def found(two_ranks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of two ranks, which are told that each is on its own machine."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    machines = [
        threading.Thread(
            target=launch_over_gloo,
            args=(two_ranks.compare, 1),
            kwargs={"num_machines": 2, "machine_rank": i, "dist_url": url, "args": (str(out),)},
        )
        for i in range(2)
    ]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    return [torch.load(out / f"{i}.pt", weights_only=True) for i in range(2)]


def test_ranks_know_their_machines(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["size"] == 2
        assert rank["local"] == (0, 1)


@pytest.mark.parametrize("method", ["PFFNet", "CellRCNN_V2", "CellRCNN", "MaskRCNN_GN"])
def test_two_ranks_with_one_image_are_one_rank(found: list[dict[str, Any]], method: str) -> None:
    for rank in found:
        losses, gradients = rank[method]["alone"][2]
        assert losses["loss_mask"] > 0
        together, averaged = rank[method]["same image"]
        assert together == losses
        for name, g, of_both in zip(rank[method]["names"], gradients, averaged, strict=True):
            assert torch.equal(g, of_both), name


@pytest.mark.parametrize("method", ["PFFNet", "CellRCNN_V2", "CellRCNN", "MaskRCNN_GN"])
def test_a_rank_without_objects_counts_like_any_other(found: list[dict[str, Any]], method: str) -> None:
    """Each rank has its own losses. Gradients are means over the ranks, and every parameter has one."""
    for rank, objects in zip(found, (2, 0), strict=True):
        losses, averaged = rank[method]["none here"]
        assert losses == rank[method]["alone"][objects][0]
        assert (losses["loss_mask"] > 0) == (objects > 0)
        one, other = rank[method]["alone"][2][1], rank[method]["alone"][0][1]
        for name, a, b, of_both in zip(rank[method]["names"], one, other, averaged, strict=True):
            assert torch.allclose((a + b) / 2, of_both, rtol=1e-4, atol=1e-7), name


def test_all_ranks_end_if_one_diverges(found: list[dict[str, Any]]) -> None:
    told = [rank["diverged"] for rank in found]
    assert told[0] == told[1]
    assert told[0].startswith("iteration 0 on rank 1: loss is nan; images 11 (1.png); ")


def test_training_and_evaluation_on_two_ranks(
    two_ranks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of one iteration. Its scores equal those of one process, although three images cannot be shared equally."""
    prepare("phantoms", None, tmp_path / "datasets", Selection(count=3))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    flags = ["--config-file", str(config_path("demo/PFFNet_R18_FPN.yaml"))]
    options = [
        *(*two_ranks.SMALL, "INPUT.CROP.SIZE", "[64, 64]", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"),
        *("TEST.DETECTIONS_PER_IMAGE", "20", "MODEL.PFFNET.OUTPUTS", "['instances', 'semantic', 'panoptic']"),
        *("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "SEED", "1"),
    ]
    out, alone = tmp_path / "together", tmp_path / "alone"
    assert main(["train", *flags, "--cpu-ranks", "2", "--dist-url", "auto", *options, "OUTPUT_DIR", str(out)]) == 0
    assert (out / "log.txt.rank1").is_file()
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth"), "OUTPUT_DIR", str(alone)]
    assert run([*flags, "--eval-only", *options, *weights]) == 0
    results = [folder / "inference" / "phantoms_val" for folder in (out, alone)]
    together, by_one = (read_scores(folder) for folder in results)
    assert len(by_one) == 3
    for row, expected in zip(together, by_one, strict=True):
        assert row == pytest.approx(expected, nan_ok=True)
    assert json.loads((results[0] / "panoptic_seg.json").read_text()) == pytest.approx(
        json.loads((results[1] / "panoptic_seg.json").read_text())
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot tie a process to its parent")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Also where they ignore SIGINT, as those that a script starts in the background do: two trainings that write one
    folder would spoil it."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import two_ranks; from pffnet_d2.parallel.launch import launch_over_gloo\n"
        f"if __name__ == '__main__': launch_over_gloo(two_ranks.write_number_and_wait, 2, args=({str(tmp_path)!r},))\n"
    )
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    started = subprocess.Popen([sys.executable, tmp_path / "program.py"], env={**os.environ, "PYTHONPATH": path})
    try:
        wait_for(lambda: len(ranks_in(tmp_path)) == 2)
    finally:
        started.kill()
        started.wait()
    wait_for(lambda: not any(map(runs, ranks_in(tmp_path))))


def ranks_in(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def runs(process: int) -> bool:
    """Whether a process is there and is no zombie."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def test_an_error_of_a_process_is_raised_here(two_ranks: ModuleType) -> None:
    with pytest.raises(InputError, match=r"^rank 0: a\.png is damaged; fetch it again$"):
        launch_over_gloo(two_ranks.make_a_mistake, 1)
    with pytest.raises(ProcessRaisedException, match="ZeroDivisionError"):
        launch_over_gloo(two_ranks.break_down, 1)


@pytest.mark.parametrize(
    "command", ["predict image.png --device cpu --processes 100000", "train --config-file FILE --cpu-ranks 100000"]
)
def test_too_many_processes_for_a_machine(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("image.png").touch()
    assert main(command.replace("FILE", str(config_path("demo/PFFNet_R18_FPN.yaml"))).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"pffnet: error: 100000 processes: this machine has \d+ CPU cores?; use at most \d+", line)
    assert not (tmp_path / "results").exists()


def test_detectron2s_own_way_to_group_processes_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    monkeypatch.setattr(comm, "create_local_process_group", groups.append, raising=False)
    launch._group_by_machine(3)
    assert groups == [3]
    assert comm._LOCAL_PROCESS_GROUP is None


def test_flags_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config-file", str(config_path("demo/PFFNet_R18_FPN.yaml"))]
    for flags, message in (
        (["--cpu-ranks", "-1"], "--num-gpus 1 --cpu-ranks -1 --num-machines 1: no such number"),
        (["--cpu-ranks", "2", "--num-gpus", "2"], "--num-gpus 2 and --cpu-ranks 2: give one of them"),
        (["--num-machines", "2", "--machine-rank", "2", "--cpu-ranks", "1"], "--machine-rank 2: give 0 to 1"),
        (["--num-machines", "2", "--dist-url", "auto", "--cpu-ranks", "1"], "--dist-url auto serves one machine"),
        (["--num-machines", "2", "--num-gpus", "0"], "--num-machines without GPUs: "),
    ):
        assert main(["train", *config, *flags]) == 2
        assert capsys.readouterr().err.startswith(f"pffnet: error: {message}")
