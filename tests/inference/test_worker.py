"""Reading, predicting and writing at the same time: how far ahead, and what is left when it ends early."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import torch
from detectron2.structures import Instances

from pffnet_d2.imaging.normalisation import AUTO, to_rgb8
from pffnet_d2.inference import worker
from pffnet_d2.inference.batch import predict_files
from pffnet_d2.inference.job import Job
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.predictor import Prediction, Predictor
from pffnet_d2.inference.sources import Source
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.model_zoo.facts import ModelFacts


class Blobs(Predictor):
    """Finds one object in each image, without a network.

    Attributes:
        read: released once per image that was read.
        begun: the number of images that were read so far, when each prediction began.
        ahead: the number of images that must have been read before each prediction ends.
    """

    precision = "float32"
    facts = ModelFacts(LabelMapRule(), AUTO.name, images="", diameter=0.0, stride=8, caps_area=0, caps={})
    normalisation, scale, own_scale, matching, matched = AUTO, 1.0, False, False, ""

    def __init__(self, options: PredictOptions, ahead: list[int], fails: type[BaseException] | None = None) -> None:
        self.ahead, self.fails = list(ahead), fails
        self.read, self.begun, self._taken = threading.Semaphore(0), list[int](), 0
        self._count = 0

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        rgb = to_rgb8(pixels, AUTO)
        self._count += 1
        self.read.release()
        return rgb

    def predict(self, images: list[np.ndarray]) -> list[Any]:
        self.begun.append(self._count)
        if self.fails is not None and len(self.begun) == 3:
            raise self.fails
        while self._taken < self.ahead[len(self.begun) - 1]:
            assert self.read.acquire(timeout=60), "the next image is not read while this one is predicted"
            self._taken += 1
        found = np.zeros(images[0].shape[:2], np.int32)
        found[2:5, 3:9] = 1
        return [Prediction(found, (), Instances(found.shape, scores=torch.tensor([0.9])))]


def plate(folder: Path, count: int) -> list[Source]:
    """Images of a plate, as sources."""
    folder.mkdir()
    for i in range(count):
        tifffile.imwrite(folder / f"{i}.tif", np.random.default_rng(i).integers(0, 400, (64, 96), dtype=np.uint16))
    return [Source(folder / f"{i}.tif", str(i)) for i in range(count)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_next_image_is_read_while_one_is_predicted(tmp_path: Path) -> None:
    """And no more than that one, so that memory is bounded."""
    sources, out = plate(tmp_path / "plate", 5), tmp_path / "out"
    models: list[Blobs] = []

    def model(options: PredictOptions) -> Blobs:
        models.append(Blobs(options, ahead=[2, 3, 4, 5, 5]))
        return models[-1]

    summary = predict_files(Job(sources, out, PredictOptions(formats=["label-tiff"]), model=model))
    assert [outcome.objects for outcome in summary.outcomes] == [1] * 5
    assert [outcome.index for outcome in summary.outcomes] == list(range(5))
    assert names(out) == [f"{i}_labels.tif" for i in range(5)]
    assert all(begun <= i + 2 for i, begun in enumerate(models[0].begun))
    assert "float32" in summary.lines()[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_leaves_whole_files(tmp_path: Path, error: type[BaseException]) -> None:
    """Images before the one that was predicted are complete, later ones are not begun."""
    sources, out = plate(tmp_path / "plate", 5), tmp_path / "out"
    job = Job(
        sources,
        out,
        PredictOptions(formats=["label-tiff"]),
        model=lambda options: Blobs(options, ahead=[0] * 5, fails=error),
    )
    threads = threading.active_count()
    with pytest.raises(error):
        predict_files(job)
    assert names(out) == ["0_labels.tif", "1_labels.tif"]
    assert threading.active_count() == threads


def test_an_error_while_reading_ahead_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as too little memory, which is not a fault of the file."""
    sources, out = plate(tmp_path / "plate", 4), tmp_path / "out"
    read = worker.read_selection

    def fails_at_two(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.stem == "2":
            raise MemoryError
        return read(path, *args, **kwargs)

    monkeypatch.setattr(worker, "read_selection", fails_at_two)
    job = Job(
        sources,
        out,
        PredictOptions(formats=["label-tiff"]),
        model=lambda options: Blobs(options, ahead=[0] * 4),
    )
    with pytest.raises(MemoryError):
        predict_files(job)
    assert names(out) == ["0_labels.tif", "1_labels.tif"]
