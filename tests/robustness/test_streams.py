"""Pipes that close, devices that are full, streams that lack characters, signals: what takes a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.robustness.process import CLOSED, Done, run, start
from tests.robustness.process import done as ended

ROOT = Path(__file__).parents[2]
SCORE = ["evaluate", "--truth", "truth", "--prediction", "prediction"]
FULL = "free some space, or choose another folder"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and limits on file sizes are Linux's")


def assert_one_line(done: Done, *says: str) -> None:
    lines = done.stderr.splitlines()
    assert done.code == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert [line for line in lines if "error: " in line] == lines[-1:], done.stderr
    assert lines[-1].startswith("pffnet: error: "), done.stderr
    for part in says:
        assert part in lines[-1]


def files(folder: Path) -> set[str]:
    """But those in which the output is kept."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {".stdout", ".stderr"}


@pytest.fixture(scope="module")
def prepared(prepared_phantoms: Path) -> dict[str, str]:
    """The environment that names prepared images."""
    return {"DETECTRON2_DATASETS": str(prepared_phantoms), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With truth/ and prediction/, label images."""
    for part in ("truth", "prediction"):
        (tmp_path / part).mkdir()
        for name in ("a", "b"):
            Image.fromarray(np.eye(64, dtype=np.uint8)).save(tmp_path / part / f"{name}.png")
    return tmp_path


@pytest.fixture
def full() -> Iterator[int]:
    device = os.open("/dev/full", os.O_WRONLY)
    yield device
    os.close(device)


@pytest.fixture
def pipe() -> Iterator[int]:
    """The end of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def train(run_folder: Path, *opts: str) -> list[str]:
    small = ["INPUT.CROP.SIZE", "[64, 64]", "SOLVER.IMS_PER_BATCH", "1"]
    schedule = ["SOLVER.MAX_ITER", "10000", "SOLVER.STEPS", "()"]
    config = str(run_folder / "config.yaml")
    return ["train", "--config-file", config, *small, *schedule, *opts, "OUTPUT_DIR", "run"]


@pytest.mark.slow
def test_as_a_user_starts_it(folder: Path, full: int, pipe: int) -> None:
    """The whole of it, to the end of the interpreter: /dev/full, `| head -0`, and the same unbuffered."""
    command = [sys.executable, "-m", "pffnet_d2.cli", *SCORE]
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    inherited |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for stdout, unbuffered, expected in ((full, "", 2), (pipe, "", 141), (pipe, "1", 141)):
        environment = {**inherited, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, check=False)
        said = done.stderr.decode()
        assert done.returncode == expected, said
        assert said == (f"pffnet: error: standard output: No space left on device; {FULL}\n" if expected == 2 else "")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["env"], SCORE], ids=" ".join)
def test_full_device(full: int, folder: Path, arguments: list[str]) -> None:
    assert_one_line(run(arguments, folder, stdout=full), "standard output: No space left on device", FULL)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["env"], SCORE], ids=" ".join)
def test_closed_pipe(pipe: int, folder: Path, arguments: list[str]) -> None:
    done = run(arguments, folder, stdout=pipe)
    assert (done.code, done.stderr) == (141, "")


def test_training_into_a_closed_pipe(prepared: dict[str, str], tiny_run: Path, tmp_path: Path, pipe: int) -> None:
    """Logging would print a traceback for every message."""
    done = run(train(tiny_run), tmp_path, stdout=pipe, variables=prepared)
    assert (done.code, done.stderr) == (141, "")


def test_training_into_a_full_device(prepared: dict[str, str], tiny_run: Path, tmp_path: Path, full: int) -> None:
    assert_one_line(run(train(tiny_run), tmp_path, stdout=full, variables=prepared), "No space left on device")


def test_no_stdout_at_all(folder: Path) -> None:
    done = run(SCORE, folder, stdout=CLOSED)
    assert (done.code, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_stdout_cannot_write(folder: Path, encoding: str) -> None:
    """A character that ASCII lacks, in a table and in an error; and a name in no encoding."""
    name = "Zellkern–é"
    shutil.copytree(folder / "truth", folder / name)
    scored = ["evaluate", "--truth", name, "--prediction", name, "--out", f"{name}/out"]
    assert run(scored, folder, encoding=encoding).code == 0
    report = run(["report", f"{name}={name}/out", "--out", "report"], folder, encoding=encoding)
    assert (report.code, report.stderr) == (0, "")
    assert "Zellkern" in report.stdout
    missing = run(["report", f"{name}={name}/none"], folder, encoding=encoding)
    assert_one_line(missing, "Zellkern", "cannot be read")
    strange = os.fsdecode(b"Zellkern\xff")
    missing = run(["report", f"A={strange}"], folder, encoding=encoding)
    assert_one_line(missing, "Zellkern\\udcff", "cannot be read")
    named = run(["report", f"{strange}={name}/out", "--out", "report2"], folder, encoding=encoding)
    assert_one_line(named, "Zellkern\\udcff", "is not UTF-8", "rename")
    assert not list((folder / "report2").iterdir())


def test_full_disk_while_preparing(tmp_path: Path) -> None:
    done = run(["prepare", "phantoms", "--count", "1", "--out", "root"], tmp_path, file_size=2000)
    assert_one_line(done, "root/phantoms/train: File too large", FULL)
    assert files(tmp_path) == set()


def test_full_disk_while_scoring(folder: Path) -> None:
    before = files(folder)
    done = run([*SCORE, "--out", "out"], folder, file_size=100)
    assert done.code == 2
    assert files(folder) == before


@pytest.mark.parametrize("size", [2000, 20_000, 300_000], ids=["log", "settings", "checkpoint"])
def test_full_disk_while_training(prepared: dict[str, str], tiny_run: Path, tmp_path: Path, size: int) -> None:
    done = run(train(tiny_run, "SOLVER.CHECKPOINT_PERIOD", "1"), tmp_path, file_size=size, variables=prepared)
    assert_one_line(done, "File too large")
    assert not [name for name in files(tmp_path) if name.endswith((".pth", ".partial"))]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ended_while_training(prepared: dict[str, str], tiny_run: Path, tmp_path: Path, sent: signal.Signals) -> None:
    process = start(train(tiny_run), tmp_path, variables=prepared)
    until = time.monotonic() + 120
    while not ((tmp_path / "run/log.txt").is_file() and "Starting training" in (tmp_path / "run/log.txt").read_text()):
        assert process.is_alive(), ended(process, tmp_path).stderr
        assert time.monotonic() < until
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, sent)
    process.join(120)
    assert process.exitcode == (130 if sent == signal.SIGINT else -sent), ended(process, tmp_path).stderr
    assert "Traceback" not in ended(process, tmp_path).stderr
    assert not [name for name in files(tmp_path) if name.endswith((".pth", ".partial"))]
