"""Finding a model by its name or folder, and verifying its files. The shipped models are in ``pretrained/``.

A model is a folder with ``config.yaml`` and ``model_final.pth``, as training writes it. `pffnet package` adds
``card.json``: what the model was made of, its scores, and the SHA-256 of the other two files.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pffnet_d2.errors import InputError

ROOT = Path(__file__).parent / "pretrained"  # one folder per shipped model
DEFAULT = "nuclei"
CONFIG, WEIGHTS, CARD = "config.yaml", "model_final.pth", "card.json"
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
