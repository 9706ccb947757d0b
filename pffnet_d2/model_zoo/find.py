"""Finding a model by its name or folder, and verifying its files. The shipped models are in ``pretrained/``.

A model is a folder with ``config.yaml`` and ``model_final.pth``, as training writes it. `pffnet package` adds
``card.json``: what the model was made of, its scores, and the SHA-256 of the other two files. `pffnet export` makes
``model.onnx``, which needs none of the others.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pffnet_d2 import env
from pffnet_d2.errors import InputError

ROOT = Path(__file__).parent / "pretrained"  # one folder per shipped model
DEFAULT = "nuclei"
CONFIG, WEIGHTS, CARD = "config.yaml", "model_final.pth", "card.json"
ONNX = "model.onnx"  # the form that `pffnet export` writes, which is predicted without torch
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model, and the content of its card ({} where there is none)."""

    config: Path
    weights: Path
    card: dict[str, Any]


def names() -> list[str]:
    """The names of the shipped models."""
    return sorted(path.parent.name for path in ROOT.glob(f"*/{CARD}"))


def find_model(model: str | os.PathLike[str] = DEFAULT) -> ModelFiles:
    """A shipped model by its name, or any model by its folder (``./nuclei`` where that is the name of a shipped one).

    Raises:
        InputError: there is no such model; a file is missing, is a Git LFS pointer, or differs from the one that the
            card describes.
    """
    name = os.fspath(model)
    shipped = names()
    if name == DEFAULT and name not in shipped:
        raise InputError(
            "the model that comes with the package is missing from this installation; give --config FILE and "
            "--weights FILE, or --model FOLDER"
        )
    folder = ROOT / name if name in shipped else Path(name)
    if not folder.is_dir():
        raise InputError(
            f"{name}: no such model; give {', '.join([*shipped, f'a folder with {CONFIG} and {WEIGHTS}'])}"
        )
    found = ModelFiles(folder / CONFIG, folder / WEIGHTS, _card(folder / CARD))
    for path in (found.config, found.weights):
        if not path.is_file():
            hint = "train it to the end" if not found.card else "fetch it again, or reinstall the package"
            raise InputError(f"{path}: is missing from this model; {hint}")
        _verify(path, found.card.get("sha256", {}).get(path.name))
    return found


def onnx_form(model: str | os.PathLike[str] | None = None) -> Path | None:
    """The ONNX file that a model is predicted with; None: config and weights, with torch.

    Args:
        model: an ONNX file, whatever is installed; or a name or a folder as for :func:`find_model`, whose ONNX file is
            taken if torch or Detectron2 is not installed, or if the folder holds no other form. None: the default.
    """
    name = os.fspath(DEFAULT if model is None else model)
    if name.lower().endswith(Path(ONNX).suffix) and not os.path.isdir(name):
        return Path(name)
    folder = ROOT / name if name in names() else Path(name)
    if not (folder / ONNX).is_file():
        return None
    return folder / ONNX if env.missing("torch", "detectron2") or not (folder / CONFIG).is_file() else None


def check_onnx(path: Path) -> None:
    """Raises InputError if an ONNX file is missing or a Git LFS pointer."""
    if not path.is_file():
        raise InputError(f"{path}: no such model file; check the path")
    _verify(path, None)


def check_made_of(path: Path, weights: str) -> None:
    """Check that an ONNX file belongs to the model in whose folder it is.

    Args:
        path: of the file.
        weights: the SHA-256 of the weights that it was made of.

    Raises:
        InputError: the card beside it describes a model of other weights.
    """
    described = _card(path.with_name(CARD)).get("sha256", {}).get(WEIGHTS)
    if described and described != weights:
        raise InputError(
            f"{path}: was made of other weights than {CARD} describes; write it again with `pffnet export`"
        )


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _card(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        _ = {name: str(card["sha256"][name]) for name in (CONFIG, WEIGHTS)}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or not the card of a model; fetch it again") from error
    return dict(card)


def _verify(path: Path, expected: str | None) -> None:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path}: a Git LFS pointer, not the file itself; type: git lfs pull")
    if expected and sha256(path) != expected:
        raise InputError(f"{path}: damaged or changed: its SHA-256 is not the one in {CARD}; fetch it again")
