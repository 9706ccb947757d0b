"""Processes that torchrun starts: what the environment must say; two machines; a rank that dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pffnet_d2.config import config_path
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.errors import InputError
from pffnet_d2.parallel.launch import Launched

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900  # seconds for four steps; minutes on a busy machine
# A small network and few steps.
OPTIONS = [
    *("MODEL.DEVICE", "cpu", "INPUT.CROP.SIZE", "[64, 64]"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "50", "TEST.DETECTIONS_PER_IMAGE", "20", "SOLVER.IMS_PER_BATCH", "2"),
    *(
        "SOLVER.MAX_ITER",
        "4",
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "DATALOADER.NUM_WORKERS",
        "0",
        "SEED",
        "1",
        "TEST.EVAL_PERIOD",
        "0",
    ),
]


def test_the_place_of_a_process() -> None:
    found = Launched.from_environment(
        {
            **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"},
            **{"MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "2"},
        }
    )
    assert found == Launched(rank=5, world_size=8, local_rank=1, local_world_size=4, restarts=2)
    assert Launched.from_environment({"RANK": "0"}) is None
    assert Launched.from_environment({}) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"MASTER_PORT": None}, "RANK and WORLD_SIZE are set but MASTER_PORT not; start with torchrun"),
        ({"LOCAL_RANK": None, "MASTER_ADDR": None}, "set but LOCAL_RANK and MASTER_ADDR not"),
        ({"RANK": "two"}, "RANK 'two' in the environment: not a whole number"),
        ({"RANK": "2"}, "RANK 2 of WORLD_SIZE 2, LOCAL_RANK 0 of LOCAL_WORLD_SIZE 1: out of range"),
        (
            {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK -1 of LOCAL_WORLD_SIZE 1: out of range"),
    ],
)
def test_an_environment_that_cannot_be(changed: dict[str, str | None], words: str) -> None:
    whole = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1", **changed}
    with pytest.raises(InputError, match=words):
        Launched.from_environment({name: value for name, value in whole.items() if value is not None})


class Launch:
    """torchrun, which trains in a folder. What its processes print goes to a file: nobody reads a pipe meanwhile, and a
    full pipe stops them."""

    def __init__(self, folder: Path, *flags: str, machine: int = 0, **variables: str) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / "train_net.py")]
        training = ["--config-file", str(config_path("demo/PFFNet_R18_FPN.yaml")), "--cpu-ranks", "1"]
        datasets = {"DETECTRON2_DATASETS": str(folder.parent / "datasets"), "OMP_NUM_THREADS": "1"}
        folder.mkdir(exist_ok=True)
        self.log = folder.parent / f"{folder.name}{machine}.txt"
        with self.log.open("w") as said:
            self.process = subprocess.Popen(
                [*launcher, *training, *OPTIONS, "OUTPUT_DIR", str(folder)],
                env={**os.environ, **datasets, **variables},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self.log.read_text()

    def check_it_trains(self) -> None:
        assert self.process.poll() is None, self.said()[-2000:]

    def check_it_ends_well(self) -> None:
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.terminate()  # torchrun ends its processes
            raise
        assert code == 0, self.said()[-2000:]

    def ranks(self) -> list[int]:
        """Process ids of the training processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"train_net.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "model_final.pth", weights_only=False)["model"]
    return found


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
def test_two_machines_and_a_rank_that_dies(tmp_path: Path) -> None:
    """Two launches train as one with two processes does. Where a rank is killed, all go on from the last checkpoint and
    end with the same weights, on one machine and on two."""
    prepare("phantoms", None, tmp_path / "datasets", Selection(count=3))
    Launch(tmp_path / "together", "--standalone", "--nproc-per-node", "2").check_it_ends_well()

    for machine in two_machines(tmp_path / "machines", "--master-addr", "127.0.0.1", "--master-port", free_port()):
        machine.check_it_ends_well()

    alone = Launch(tmp_path / "killed", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    kill_a_rank_of([alone], tmp_path / "killed")

    restarts = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--max-restarts", "1"]
    own_stores = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    folder = tmp_path / "killed on two"
    kill_a_rank_of(two_machines(folder, *restarts, **own_stores), folder)

    expected = weights(tmp_path / "together")
    for name in ("machines", "killed", "killed on two"):
        found = weights(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name


def two_machines(folder: Path, *flags: str, **variables: str) -> list[Launch]:
    """Two launches of one process each."""
    each = ["--nnodes", "2", "--nproc-per-node", "1", *flags]
    return [Launch(folder, *each, "--node-rank", str(i), machine=i, **variables) for i in range(2)]


def kill_a_rank_of(launches: list[Launch], folder: Path) -> None:
    """Kill a training process after the first checkpoint, and check that all are started again from there."""
    while not (folder / "last_checkpoint").exists():
        for launch in launches:
            launch.check_it_trains()
        time.sleep(0.02)
    os.kill(launches[-1].ranks()[-1], signal.SIGKILL)
    for launch in launches:
        launch.check_it_ends_well()
    said = "".join(launch.said() for launch in launches)
    assert "exitcode: -9" in said
    assert re.search(r"Starting training from iteration 2\b", said), said[-2000:]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_slurm_script() -> None:
    script = ROOT / "examples" / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    directives = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", script.read_text(), re.MULTILINE)
    asked = dict(directives)
    assert len(directives) == script.read_text().count("#SBATCH")
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "1", "4")
    assert "requeue" in asked


@pytest.mark.parametrize(
    "system", ["slurm", pytest.param("pbs", marks=pytest.mark.slow), pytest.param("lsf", marks=pytest.mark.slow)]
)
def test_the_script_of_a_dask_job(system: str) -> None:
    """One worker of one thread for each job, and a GPU where that is asked for."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    example = ROOT / "examples" / "slurm" / "dask_cluster.py"
    script = subprocess.run(
        [sys.executable, str(example), "--system", system, "--gpu", "--queue", "short", "--script"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    directives = {
        "slurm": ["#SBATCH -p short", "#SBATCH --cpus-per-task=4", "#SBATCH --gpus=1", "#SBATCH -t 04:00:00"],
        "pbs": ["#PBS -q short", "#PBS -l select=1:ncpus=4:ngpus=1:mem=16gb", "#PBS -l walltime=04:00:00"],
        "lsf": ["#BSUB -q short", "#BSUB -n 4", "#BSUB -gpu num=1", "#BSUB -W 04:00"],
    }[system]
    assert set(directives) <= set(script.splitlines())
    (worker,) = [line for line in script.splitlines() if "distributed.cli.dask_worker" in line]
    assert re.search(r"dask_worker tcp://\S+ .*--nthreads 1 ", worker)
    assert "--nworkers" not in worker
