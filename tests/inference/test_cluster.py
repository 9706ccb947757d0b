"""Prediction on a Dask cluster: the bytes of one process, whatever dies."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytest.importorskip("distributed", reason="Dask's distributed is not installed")
pytest.importorskip("zarr", reason="zarr is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")


from pffnet_d2.errors import InputError
from pffnet_d2.inference import cluster as on_cluster
from pffnet_d2.inference.batch import predict_files
from pffnet_d2.inference.job import Job
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.sources import find_sources
from pffnet_d2.inference.summary import Summary
from pffnet_d2.parallel.dask_tasks import ClusterOptions, connected, run_tasks

FORMATS = ("label-tiff", "csv", "geojson", "ome-zarr", "parquet")
Bytes = dict[str, bytes]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the cheap model, which new processes can import, too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    return importlib.import_module("stand_in")


@pytest.fixture
def scheduler(scheduler: str) -> Iterator[str]:
    """That of conftest.py, whose worker forgets its model."""
    yield scheduler
    on_cluster._loaded = None


def spots(seed: int, shape: tuple[int, int]) -> Any:
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, shape).astype(np.uint16)
    for _ in range(shape[0] * shape[1] // 600):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        h, w = rng.integers(3, 21, 2)
        image[y : y + h, x : x + w] = 1000 + rng.integers(50)
    return image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        tifffile.imwrite(folder / f"{i}.tif", spots(i, (60 + i, 80)))
    return folder


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """An image of 56 tiles, in a folder of its own."""
    folder = tmp_path / "slide"
    folder.mkdir()
    tifffile.imwrite(folder / "s.tif", spots(3, (700, 610)), tile=(64, 64))
    return folder


def job(images: Path, out: Path, stand_in: ModuleType, cluster: ClusterOptions | None, **options: Any) -> Job:
    asked = PredictOptions(formats=FORMATS, **options)
    sources = find_sources([str(images)], out, asked.exporters.files)
    return Job(sources, out, asked, cluster=cluster, model=stand_in.Threshold)


def bytes_of(folder: Path) -> Bytes:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def entries(out: Path) -> list[dict[str, Any]]:
    return [each for each in map(json.loads, (out / "manifest.jsonl").read_text().splitlines()) if "image" in each]


# --- One worker in this process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_images_have_the_bytes_of_one_process(
    images: Path, tmp_path: Path, stand_in: ModuleType, scheduler: str, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = predict_files(job(images, tmp_path / "alone", stand_in, None, batch=batch))
    there = ClusterOptions(scheduler=scheduler)
    together = predict_files(job(images, tmp_path / "out", stand_in, there, batch=batch))
    assert together.outcomes == alone.outcomes
    assert "dashboard: " in capsys.readouterr().err
    expected = bytes_of(tmp_path / "alone")
    assert bytes_of(tmp_path / "out") == expected
    assert len(expected) > 8 * 5


def test_a_run_again_predicts_only_what_changed(
    images: Path, tmp_path: Path, stand_in: ModuleType, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, there = tmp_path / "out", ClusterOptions(scheduler=scheduler)

    def kept(**options: Any) -> int:
        summary = predict_files(job(images, out, stand_in, there, **options))
        assert not summary.failed
        said = [line for line in capsys.readouterr().err.splitlines() if "by an earlier run" in line]
        return int(said[0].split()[0]) if said else 0

    assert kept() == 0
    first = bytes_of(out)
    assert kept() == 8
    tifffile.imwrite(images / "3.tif", spots(99, (63, 80)))
    (out / "5.csv").write_text("edited")
    (out / "6.csv").unlink()
    assert kept() == 5
    assert {name for name, data in bytes_of(out).items() if first.get(name) != data} <= {
        name for name in bytes_of(out) if name.startswith("3")
    }
    assert kept(pixel_size=0.5) == 0
    assert kept() == 0, "the results of the first run are replaced"
    with open(out / "manifest.jsonl", "a") as file:
        file.write('{"run": "cut')
    assert kept() == 8
    assert len(entries(out)) == 8 + 3 + 8 + 8


def test_a_file_that_fails_is_named_and_the_rest_done(
    images: Path, tmp_path: Path, stand_in: ModuleType, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "4.tif").write_bytes(b"II*\0nonsense")
    there = ClusterOptions(scheduler=scheduler)
    summary = predict_files(job(images, tmp_path / "out", stand_in, there))
    assert summary.exit_code == 1
    assert [bool(outcome.error) for outcome in summary.outcomes] == [i == 4 for i in range(8)]
    assert capsys.readouterr().err.count("pffnet: skipped: ") == 1
    assert len(entries(tmp_path / "out")) == 7
    with pytest.raises(InputError, match=r"4\.tif: cannot be read as an image.* \(stopped; \d of 8 images predicted\)"):
        predict_files(replace(job(images, tmp_path / "stop", stand_in, there), stop=True))


@pytest.mark.parametrize("formats", [FORMATS, ("ome-zarr", "parquet")])
def test_tiles_have_the_bytes_of_one_process(
    slide: Path, tmp_path: Path, stand_in: ModuleType, scheduler: str, formats: tuple[str, ...]
) -> None:
    def predict(out: Path, cluster: ClusterOptions | None, **options: Any) -> Summary:
        asked = job(slide, out, stand_in, cluster, tile=96, batch=3, **options)
        return predict_files(replace(asked, options=replace(asked.options, formats=formats)))

    alone = predict(tmp_path / "alone", None, overlap=16, tissue="auto")
    there = predict(tmp_path / "out", ClusterOptions(scheduler=scheduler), overlap=16, tissue="auto")
    assert there.outcomes == alone.outcomes
    assert alone.outcomes[0].objects > 200
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "alone")


def test_tasks_that_fail_run_twice(scheduler: str, stand_in: ModuleType) -> None:
    with connected(ClusterOptions(scheduler=scheduler)) as client:
        ended = {done.task: done for done in run_tasks(client, stand_in.fail_at_first, {3: 1, 5: 9}, list(range(8)))}
    assert sorted(ended) == list(range(8))
    assert {task: done.error for task, done in ended.items() if done.error} == {5: "task 5 failed"}
    assert [done.result for task, done in sorted(ended.items()) if task != 5] == [0, 1, 4, 9, 16, 36, 49]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either --workers or --scheduler"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "give either --workers or --scheduler"),
        ({"workers": 0}, "0 workers: must be at least 1"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ClusterOptions(**options)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "tcp://no.such.host.invalid:8786"])
def test_no_scheduler_answers(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pffnet_d2.parallel.dask_tasks._ANSWER", 0.5)
    with (
        pytest.raises(InputError, match=rf"--scheduler {address}: no Dask scheduler answers there") as error,
        connected(ClusterOptions(scheduler=address)),
    ):
        pass
    assert "\n" not in str(error.value)


# --- Workers that are processes --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers(
    images: Path, slide: Path, tmp_path: Path, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The model is loaded once in each."""
    loads = tmp_path / "loads"
    loads.mkdir()
    cluster = ClusterOptions(workers=workers)
    for source, options in ((images, {}), (slide, {"tile": 96, "overlap": 16})):
        alone, out = tmp_path / f"{source.name}_alone", tmp_path / f"{source.name}_out"
        expected = predict_files(job(source, alone, stand_in, None, **options))
        monkeypatch.setenv("PFFNET_TEST_LOADS", str(loads))
        found = predict_files(job(source, out, stand_in, cluster, **options))
        monkeypatch.delenv("PFFNET_TEST_LOADS")
        assert found.outcomes == expected.outcomes
        assert bytes_of(out) == bytes_of(alone)
        processes = [path.name.split("-")[0] for path in loads.iterdir()]
        assert len(processes) == len(set(processes)) <= workers
        for path in loads.iterdir():
            path.unlink()


@pytest.mark.slow
def test_a_worker_is_killed(
    images: Path, slide: Path, tmp_path: Path, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source, options in ((images, {}), (slide, {"tile": 96, "overlap": 16})):
        alone, out, mark = tmp_path / f"{source.name}_alone", tmp_path / f"{source.name}_out", tmp_path / "mark"
        predict_files(job(source, alone, stand_in, None, **options))
        mark.touch()
        monkeypatch.setenv("PFFNET_TEST_KILL", str(mark))
        assert not predict_files(job(source, out, stand_in, ClusterOptions(workers=2), **options)).failed
        monkeypatch.delenv("PFFNET_TEST_KILL")
        assert not mark.exists()
        assert bytes_of(out) == bytes_of(alone)


@pytest.mark.slow
def test_an_image_that_kills_its_worker_is_reported(
    images: Path,
    tmp_path: Path,
    stand_in: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PFFNET_TEST_POISON", "65")
    summary = predict_files(job(images, tmp_path / "out", stand_in, ClusterOptions(workers=2)))
    assert [outcome.index for outcome in summary.outcomes if outcome.error] == [5]
    assert "5.tif: the worker tcp://" in summary.outcomes[5].error
    assert len(entries(tmp_path / "out")) == 7


@pytest.mark.slow
def test_a_full_disk_on_one_worker(
    images: Path, tmp_path: Path, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one does all of it. If it is the only one, each image is named."""
    predict_files(job(images, tmp_path / "alone", stand_in, None))
    monkeypatch.setenv("PFFNET_TEST_FULL", "0")
    summary = predict_files(job(images, tmp_path / "out", stand_in, ClusterOptions(workers=2)))
    assert not summary.failed, summary.outcomes
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "alone")
    summary = predict_files(job(images, tmp_path / "one", stand_in, ClusterOptions(workers=1)))
    assert summary.exit_code == 2
    assert all("cannot be written (File too large)" in outcome.error for outcome in summary.outcomes)
    assert bytes_of(tmp_path / "one") == {}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts Dask's commands, with a scheduler file; all end with the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(command: str, *arguments: str) -> subprocess.Popen[bytes]:
        line = [
            sys.executable,
            "-m",
            f"distributed.cli.dask_{command}",
            "--scheduler-file",
            str(tmp_path / "file.json"),
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running.append(subprocess.Popen([*line, "--no-dashboard", *arguments], **quiet))  # type: ignore[call-overload]
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_scheduler_is_killed(
    images: Path, tiny_run: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """The client ends with one line. The same command skips what is done."""
    for i in range(8, 40):
        tifffile.imwrite(images / f"{i}.tif", spots(i, (96, 96)))
    out = tmp_path / "out"
    asked = ["--model", str(tiny_run), "--device", "cpu", "--format", "label-tiff", "--out", str(out)]
    command = [sys.executable, "-m", "pffnet_d2.cli", "predict", str(images), *asked]
    on_this = [*command, "--scheduler", str(tmp_path / "file.json")]

    def cluster() -> subprocess.Popen[bytes]:
        (tmp_path / "file.json").unlink(missing_ok=True)
        scheduler = started("scheduler", "--port", "0", "--host", "127.0.0.1")
        while not (tmp_path / "file.json").exists():
            time.sleep(0.1)
        started("worker", "--nworkers", "1", "--nthreads", "1")
        return scheduler

    scheduler = cluster()
    client = subprocess.Popen(on_this, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (out / "manifest.jsonl").exists() or len(entries(out)) < 3:
        assert client.poll() is None, client.communicate()
        time.sleep(0.05)
    scheduler.kill()
    _, said = client.communicate(timeout=180)
    assert client.returncode == 2
    lines = [line for line in said.splitlines() if not line.startswith(("dashboard", "pffnet: warning"))]
    assert len(lines) == 1, said
    assert lines[0].startswith("pffnet: error: the Dask scheduler tcp://")
    done = len(entries(out))
    assert 3 <= done < 40
    cluster()
    again = subprocess.run(on_this, capture_output=True, text=True, check=True)
    assert f"{done} of 40 images were done by an earlier run" in again.stderr
    subprocess.run([*command, "--out", str(tmp_path / "alone")], check=True, capture_output=True)
    assert bytes_of(out) == bytes_of(tmp_path / "alone")
