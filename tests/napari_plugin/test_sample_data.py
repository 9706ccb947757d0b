"""The sample images, and the manifest that leads to all parts of the plugin."""

from __future__ import annotations

import ast
import subprocess
import sys
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


def test_what_napari_imports_at_once_is_light() -> None:
    """In napari's own thread neither torch nor Detectron2 is imported, and the logic needs neither napari nor Qt."""
    modules = ["finetuning", "layers", "llvm", "models", "progress", "sample_data", "segment"]
    code = f"""
import sys
for name in ("napari", "qtpy", "torch", "detectron2"):
    sys.modules[name] = None
from importlib import import_module
for name in {modules}:
    import_module("pffnet_d2.napari_plugin." + name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
