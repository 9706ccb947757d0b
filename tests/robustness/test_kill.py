"""Killed at any moment and called again, a command ends with what it would have written undisturbed, and no more."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.robustness.case import files_below

TIMES = 20


def start(arguments: Sequence[str]) -> int:
    """Run a command in a process of its own, without output; its id.

    It is a copy of this process, which has imported everything: a new one would spend most of its life on that.
    """
    import torch

    import pffnet_d2.data.prepare
    import pffnet_d2.inference.batch  # noqa: F401
    from pffnet_d2.cli.main import main

    torch.set_num_threads(1)  # threads do not survive the copying
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silent, stream)
        code = main(list(arguments))
    finally:
        os._exit(code)


def finish(arguments: Sequence[str]) -> None:
    """Run a command to its end, which must be a good one."""
    _, status = os.waitpid(start(arguments), 0)
    assert os.waitstatus_to_exitcode(status) == 0


def kill(arguments: Sequence[str], after: float) -> bool:
    """Run a command and kill it after so many seconds; whether it was still running."""
    process = start(arguments)
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path): (folder / path).read_bytes() for path in sorted(files_below(folder))}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 900, (260, 300)).astype(np.uint16)
    for y, x in rng.integers(0, (240, 280), (60, 2)):
        pixels[y : y + 14, x : x + 14] += np.uint16(2000)
    (tmp_path / "images").mkdir()
    for name in "abc":
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", np.roll(pixels, ord(name) * 9, axis=1))
    return tmp_path / "images"


COMMANDS = {
    "prepare": "prepare phantoms --count 12 --out {out}",
    "prepare again": "prepare phantoms --count 12 --force --out {out}",
    "predict": "predict {images} --model {run} --out {out} --format label-tiff,overlay,geojson,csv,coco,roi",
    "predict --tile": "predict {images}/a.tif --model {run} --out {out} --tile 64 --overlap 32 "
    "--format label-tiff,overlay,geojson,csv",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_and_called_again(name: str, image: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Twenty times, each after a random part of the time that it takes, and once more while it resumes."""
    if "roi" in COMMANDS[name]:
        pytest.importorskip("roifile")

    def arguments(out: Path) -> list[str]:
        return [word.format(out=out, images=image, run=tiny_run) for word in COMMANDS[name].split()]

    started = time.perf_counter()
    finish(arguments(tmp_path / "whole"))
    lasts = time.perf_counter() - started
    expected = contents(tmp_path / "whole")
    assert expected
    rng = random.Random(name)
    hits = 0
    for number in range(TIMES):
        out = tmp_path / str(number)
        if "--force" in COMMANDS[name]:
            finish([word for word in arguments(out) if word != "--force"])
        for _ in range(2):
            hits += kill(arguments(out), rng.uniform(0, lasts))
        finish(arguments(out))
        assert contents(out) == expected, number
        assert [path.name for path in out.rglob(".*")] == []
        shutil.rmtree(out)
    assert hits >= TIMES // 2, f"{hits} of {2 * TIMES} runs were killed before they ended"
