"""From corrected labels to a model, in a few iterations; what is refused, and what a cancellation leaves behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2 import Predictor
from pffnet_d2.errors import InputError
from pffnet_d2.napari_plugin.finetuning import Example, finetune_on, write_examples
from pffnet_d2.napari_plugin.models import available
from pffnet_d2.napari_plugin.progress import Cancelled, Step

LOGGERS = [logging.getLogger(name) for name in ("detectron2", "fvcore", "pffnet_d2")]


def discs(height: int = 64, width: int = 96) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int64)
    for label, (y, x) in {3: (16, 20), 900: (40, 50), 12: (30, 80)}.items():
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= 100] = label
    return np.where(labels > 0, 3000, 100).astype(np.uint16), labels


def examples() -> list[Example]:
    image, labels = discs()
    return [Example("cells [1]: a/b", image, labels), Example("cells [1]: a/b", image[::-1], labels[::-1])]


def test_a_new_model(packaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "mine"
    steps: list[Step] = []
    handlers = [list(logger.handlers) for logger in LOGGERS]
    assert finetune_on(examples(), str(packaged), out, iterations=3, report=steps.append) == []
    assert steps[:2] == [Step(0, 0), Step(0, 3)]
    assert steps[-1].done == steps[-1].total == 3
    losses = [loss for step in steps for loss in step.losses]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert [list(logger.handlers) for logger in LOGGERS] == handlers

    assert str(out) in available(tmp_path / "models").values()
    predictor = Predictor(model=out)
    assert predictor.cfg.SOLVER.MAX_ITER == 3
    assert predictor(discs()[0]).label_map.shape == (64, 96)
    saved = sorted(path.relative_to(out / "corrected").as_posix() for path in (out / "corrected").rglob("*.tif"))
    assert saved == [f"{part}/00{i}_cells_1_a_b.tif" for part in ("images", "labels") for i in (1, 2)]
    assert (tifffile.imread(out / "corrected" / saved[0]) == discs()[0]).all()
    assert np.unique(tifffile.imread(out / "corrected" / saved[2])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("when", [Step(0, 0), Step(0, 5), 1, Step(2, 2)])
def test_cancelled(when: Step | int, packaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(step: Step) -> None:
        if when in (step, step.done):
            raise Cancelled

    out = tmp_path / "mine"
    handlers = [list(logger.handlers) for logger in LOGGERS]
    iterations = 2 if when == Step(2, 2) else 5
    with pytest.raises(Cancelled):
        finetune_on(examples(), str(packaged), out, iterations=iterations, report=stop)
    assert not out.exists()
    assert [list(logger.handlers) for logger in LOGGERS] == handlers
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "ERROR" not in said.out + said.err


@pytest.mark.parametrize(
    ("pixels", "dtype"),
    [
        (np.arange(12, dtype=np.float64).reshape(3, 4), np.float32),
        (np.arange(12, dtype=np.float16).reshape(3, 4), np.float32),
        (np.arange(12, dtype=np.int64).reshape(3, 4), np.float32),
        (np.arange(12, dtype=np.int16).reshape(3, 4), np.int16),
        (np.arange(12).reshape(3, 4) > 5, np.uint8),
        (np.zeros((3, 4, 3), np.uint8), np.uint8),
        (np.zeros((3, 4, 4), np.uint16), np.uint16),
    ],
)
def test_images_of_any_depth(pixels: NDArray[Any], dtype: Any, tmp_path: Path) -> None:
    from pffnet_d2.imaging.read import read_image

    labels = np.zeros((3, 4), np.uint8)
    labels[1:, 1:] = 1
    assert write_examples([Example("a", pixels, labels)], tmp_path) == []
    kept = pixels[..., :3] if pixels.ndim == 3 else pixels
    read = read_image(tmp_path / "images" / "001_a.tif")
    assert read.dtype == dtype
    assert read.shape == kept.shape
    assert (read == (kept * 255 if kept.dtype == bool else kept)).all()


def test_labels_in_parts(tmp_path: Path) -> None:
    image, labels = discs()
    labels[0, 0] = 900
    (line,) = write_examples([Example("cells", image, labels)], tmp_path)
    assert line == "cells: labels in separate parts, each learnt as one object: 900"


def one_label() -> NDArray[Any]:
    return (discs()[1] > 0).astype(np.int32)


@pytest.mark.parametrize(
    ("image", "labels", "said"),
    [
        (discs()[0], one_label(), "cells: its only label lies in separate parts; give each object a label of its own"),
        (discs()[0], -discs()[1], "cells: negative labels"),
        (discs()[0].astype(complex), discs()[1], "cells: an image of complex128 values"),
        (np.full((64, 96), np.nan), discs()[1], "not finite"),
    ],
)
def test_what_cannot_be_learnt_from(
    image: NDArray[Any], labels: NDArray[Any], said: str, packaged: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        finetune_on([Example("cells", image, labels)], str(packaged), tmp_path / "mine", iterations=1)
    assert list(tmp_path.iterdir()) == []


def test_places_and_models_that_do_not_work(packaged: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to learn from"):
        finetune_on([], str(packaged), tmp_path / "mine", iterations=1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="mine: cannot be made"):
        finetune_on(examples(), str(packaged), tmp_path / "file" / "mine", iterations=1)
    with pytest.raises(InputError, match="no such: no such model"):
        finetune_on(examples(), "no such", tmp_path / "mine", iterations=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
