"""Models by name and folder: found, verified, refused; and the shipped model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
import torch

from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import STRETCH
from pffnet_d2.model_zoo import find as pretrained
from pffnet_d2.model_zoo.find import CARD, CONFIG, DEFAULT, ONNX, ROOT, WEIGHTS, find_model

pytestmark = pytest.mark.usefixtures("leave_no_trace")

MAX_BYTES = 35e6


@pytest.fixture
def copy(packaged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packaged, tmp_path / "copy")


@pytest.fixture
def shipped(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packaged model in the place of the shipped one."""
    monkeypatch.setattr(pretrained, "ROOT", packaged.parent)
    return packaged


def squares() -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 20, (64, 80)).astype(np.uint8)
    for y, x in rng.integers(0, (44, 60), (6, 2)):
        image[y : y + 18, x : x + 18] += 100
    return image


def test_a_folder_with_and_without_a_card(copy: Path, tiny_run: Path) -> None:
    found = find_model(copy)
    assert (found.config, found.weights) == (copy / CONFIG, copy / WEIGHTS)
    assert found.card["licence"] == "CC0 1.0"
    assert find_model(str(tiny_run)).card == {}


def test_damage_is_found(copy: Path) -> None:
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    with pytest.raises(InputError, match=r"model_final\.pth: damaged or changed: its SHA-256 is not the one in card"):
        find_model(copy)
    (copy / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 32278495\n")
    with pytest.raises(InputError, match=r"model_final\.pth: a Git LFS pointer.*; type: git lfs pull"):
        find_model(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"model_final\.pth: is missing from this model; fetch it again"):
        find_model(copy)


def test_a_changed_config_or_card_is_found(copy: Path) -> None:
    with (copy / CONFIG).open("a") as file:
        file.write("SEED: 1\n")
    with pytest.raises(InputError, match=r"config\.yaml: damaged or changed"):
        find_model(copy)
    for text in ("{", "[]", '{"sha256": {}}'):
        (copy / CARD).write_text(text)
        with pytest.raises(InputError, match=r"card\.json: damaged, or not the card"):
            find_model(copy)


def test_unknown_names(shipped: Path, tmp_path: Path) -> None:
    assert pretrained.names() == ["nuclei"]
    with pytest.raises(InputError, match=r"cells: no such model; give nuclei, a folder with config"):
        find_model("cells")
    with pytest.raises(InputError, match="no such model"):
        find_model(tmp_path / "none")
    with pytest.raises(InputError, match=r"config\.yaml: is missing from this model; train it to the end"):
        find_model(tmp_path)


def test_an_installation_without_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pretrained, "ROOT", tmp_path)
    with pytest.raises(InputError, match="missing from this installation; give --config FILE"):
        Predictor()


def test_predictor_without_arguments(shipped: Path) -> None:
    by_default, by_folder = Predictor(), Predictor(model=shipped)
    assert str(shipped / WEIGHTS) == by_default.cfg.MODEL.WEIGHTS
    assert ("cuda" if torch.cuda.is_available() else "cpu") == by_default.cfg.MODEL.DEVICE
    image = squares()
    assert (by_default(image).label_map == by_folder(image).label_map).all()
    with pytest.raises(InputError, match="weights without a config"):
        Predictor(weights=shipped / WEIGHTS)
    with pytest.raises(InputError, match="give one of them"):
        Predictor(str(shipped / CONFIG), model="nuclei")


def test_the_first_command(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`pffnet predict image.tif` without options."""
    monkeypatch.chdir(tmp_path)
    Path("nuclei").mkdir()  # a folder of the user's, not the model
    tifffile.imwrite("image.tif", squares())
    assert main(["predict", "image.tif"]) == 0
    labels = tifffile.imread("results/image_labels.tif")
    assert labels.shape == (64, 80)
    assert labels.max() > 0
    assert capsys.readouterr().out.endswith("results in results/\n")
    assert main(["predict", "image.tif", "--weights", "x.pth"]) == 2
    assert main(["predict", "image.tif", "--model", "cells"]) == 2
    assert [line.split(":")[2].strip() for line in capsys.readouterr().err.splitlines()] == ["x.pth", "cells"]


needs_the_shipped_model = pytest.mark.skipif(
    not (ROOT / DEFAULT / CARD).is_file(), reason=f"this checkout has no pffnet_d2/model_zoo/pretrained/{DEFAULT}"
)


@needs_the_shipped_model
def test_the_shipped_model() -> None:
    """The real model is small, complete, documented, and trained with the normalisation that prediction uses."""
    found = find_model()
    assert found.weights.stat().st_size <= MAX_BYTES
    assert {"licence", "sources", "scores"} <= found.card.keys()
    assert found.card["normalisation"] == STRETCH.info()
    predictor = Predictor(device="cpu")
    assert predictor.cfg.MODEL.PFFNET.IMAGES == "nuclei"
    assert json.dumps(predictor.cfg.MODEL.PFFNET.DIAMETER) == json.dumps(found.card["diameter"])
    discs = np.zeros((96, 96), np.uint8)
    rows, columns = np.mgrid[:96, :96]
    for y, x in ((25, 30), (60, 70)):
        discs[(rows - y) ** 2 + (columns - x) ** 2 < 12**2] = 150
    assert predictor(discs).label_map.max() == 2


@needs_the_shipped_model
@pytest.mark.parametrize("style", ["fluorescence", "histology"])
def test_the_shipped_model_in_onnx(style: Literal["fluorescence", "histology"]) -> None:
    """The file in the wheel for machines without torch finds what the weights do."""
    pytest.importorskip("onnxruntime")
    file = ROOT / DEFAULT / ONNX
    assert file.stat().st_size <= MAX_BYTES
    image, _ = synthetic_image(4, 0, size=(192, 224), style=style)
    expected = Predictor(device="cpu")(image).label_map
    assert expected.max() > 5
    label_map = Predictor(model=file)(image).label_map
    assert label_map.max() == expected.max()
    assert np.mean(label_map != expected) < 0.001
