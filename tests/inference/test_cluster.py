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
distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")
pytest.importorskip("zarr", reason="zarr is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from pffnet_d2.dask_tasks import ClusterOptions, connected, run_tasks
from pffnet_d2.errors import InputError
from pffnet_d2.inference import cluster as on_cluster
from pffnet_d2.inference.batch import Job, Worker, predict_files
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.sources import find_sources
from pffnet_d2.inference.summary import Summary

FORMATS = ("label-tiff", "csv", "geojson", "ome-zarr", "parquet")
Bytes = dict[str, bytes]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the cheap model, which new processes can import, too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    return importlib.import_module("stand_in")


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a cluster of one worker in a thread of this process, which costs no imports."""
    quiet = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**quiet, silence_logs=50) as cluster:
        yield cluster.scheduler_address
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


@pytest.mark.parametrize("formats", [FORMATS, ("ome-zarr", "parquet"), ("parquet",), ("csv",)])
def test_tiles_have_the_bytes_of_one_process(
    slide: Path, tmp_path: Path, stand_in: ModuleType, scheduler: str, formats: tuple[str, ...]
) -> None:
    def predict(out: Path, cluster: ClusterOptions | None, **options: Any) -> Summary:
        asked = job(slide, out, stand_in, cluster, tile=96, batch=3, **options)
        return predict_files(replace(asked, options=replace(asked.options, formats=formats)))

    for case, options in {"seams": {"overlap": 16}, "wide": {"overlap": "auto", "tissue": "auto"}}.items():
        alone = predict(tmp_path / case / "alone", None, **options)
        there = predict(tmp_path / case / "out", ClusterOptions(scheduler=scheduler), **options)
        assert there.outcomes == alone.outcomes
        assert alone.outcomes[0].objects > 200
        assert bytes_of(tmp_path / case / "out") == bytes_of(tmp_path / case / "alone")


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
    monkeypatch.setattr("pffnet_d2.dask_tasks._ANSWER", 0.5)
    with (
        pytest.raises(InputError, match=rf"--scheduler {address}: no Dask scheduler answers there") as error,
        connected(ClusterOptions(scheduler=address)),
    ):
        pass
    assert "\n" not in str(error.value)
