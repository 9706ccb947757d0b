"""The sample images, and the manifest that leads to all parts of the plugin."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

from pffnet_d2 import napari_plugin
from pffnet_d2.inference.modality import unlike_fluorescence
from pffnet_d2.napari_plugin import sample_data

FOLDER = Path(napari_plugin.__file__).parent
MANIFEST = yaml.safe_load((FOLDER / "napari.yaml").read_text())


def test_fluorescence() -> None:
    ((image, arguments, kind),) = sample_data.fluorescence()
    assert (image.ndim, image.dtype, kind, arguments["name"]) == (2, np.uint8, "image", "nuclei")
    assert unlike_fluorescence(np.stack([image] * 3, axis=-1)) == ""


def test_histology_with_labels() -> None:
    (image, arguments, kind), (labels, named, other) = sample_data.histology()
    assert (kind, other, arguments["rgb"], named["name"]) == ("image", "labels", True, "tissue labels")
    assert image.shape == (*labels.shape, 3)
    assert labels.max() > 10
    assert "stained tissue" in unlike_fluorescence(image)


@pytest.mark.parametrize("command", MANIFEST["contributions"]["commands"], ids=lambda command: str(command["id"]))
def test_commands_of_the_manifest_exist(command: dict[str, str]) -> None:
    module, name = command["python_name"].split(":")
    file = FOLDER / f"{module.rpartition('.')[2]}.py"
    names = {getattr(node, "name", "") for node in ast.parse(file.read_text()).body}
    assert name in names
    assert command["id"].startswith(f"{MANIFEST['name']}.")


def test_contributions_are_commands() -> None:
    parts = MANIFEST["contributions"]
    ids = {command["id"] for command in parts["commands"]}
    assert {entry["command"] for entry in [*parts["widgets"], *parts["sample_data"]]} == ids


@pytest.mark.parametrize("module", ["layers", "segment", "finetuning", "models", "progress", "sample_data"])
def test_logic_imports_neither_napari_nor_qt(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("napari", "qtpy"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.delitem(__import__("sys").modules, f"pffnet_d2.napari_plugin.{module}", raising=False)
    assert import_module(f"pffnet_d2.napari_plugin.{module}")
