"""The content of a wheel, and its configs, which are found from a wheel and from a checkout."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import pffnet_d2

ROOT = Path(__file__).parents[1]
MODEL_FILES = ("config.yaml", "model_final.pth", "card.json")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, because building leaves files behind."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("packaging")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("pffnet_d2", "configs", "tests", "benchmarks", "third_party"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    # A model is installed with the package, even if this checkout does not have the shipped one.
    model = sources / "pffnet_d2" / "model_zoo" / "pretrained" / "of_the_test"
    model.mkdir()
    for name in MODEL_FILES:
        (model / name).write_text("{}")
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(folder)!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return zipfile.ZipFile(folder / result.stdout.splitlines()[-1])


def files_below(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if "__pycache__" not in path.parts}


def test_holds_every_module_config_and_split(wheel: zipfile.ZipFile) -> None:
    packaged = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {f"pffnet_d2/{name}" for name in files_below(ROOT / "pffnet_d2", "*.py")}
    expected |= {f"pffnet_d2/{name}" for name in files_below(ROOT / "pffnet_d2", "*.json")}
    pretrained = "pffnet_d2/model_zoo/pretrained"
    expected |= {f"{pretrained}/{name}" for name in files_below(ROOT / pretrained, "*/*.*")}
    configs = files_below(ROOT / "configs", "*.yaml")
    assert any("/" in name for name in configs)
    expected |= {f"pffnet_d2/model_zoo/pretrained/of_the_test/{name}" for name in MODEL_FILES}
    expected |= {"pffnet_d2/py.typed", "pffnet_d2/napari_plugin/napari.yaml"}
    builder = ("build_detectron2.py", "pyproject.toml", "README.md")
    expected |= {f"pffnet_d2/third_party/detectron2/{name}" for name in builder}
    assert packaged == expected | {f"pffnet_d2/configs/{name}" for name in configs}


def test_metadata(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Version"] == pffnet_d2.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("bioimageio", "cluster", "codecs", "czi", "docs", "export", "fast", "formats", "hdf5", "lite", "napari"),
        *("ome-zarr", "onnx", "onnx-export", "slides", "tables", "test", "torch"),
    }
    # What needs torch is in [torch]; Detectron2 is nowhere, because no index has it under its name.
    lines = metadata.get_all("Requires-Dist", [])
    always = {distribution(line) for line in lines if "extra ==" not in line}
    with_torch = {distribution(line) for line in lines if 'extra == "torch"' in line}
    assert "numpy" in always
    assert {"timm", "torch", "torchvision", "opencv-python-headless"} <= with_torch
    assert not with_torch & always
    assert "detectron2" not in {distribution(line) for line in lines}
    (entry_points,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert "pffnet = pffnet_d2.cli.main:main" in wheel.read(entry_points).decode()
    assert "[napari.manifest]\npffnet_d2 = pffnet_d2.napari_plugin:napari.yaml" in wheel.read(entry_points).decode()
    (licence,) = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    assert "Apache License" in wheel.read(licence).decode()


def distribution(requirement: str) -> str:
    """The name of the package that a requirement is about, in one spelling."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def imported() -> dict[str, set[str]]:
    """The top modules that the package imports, at any place, with the files that do."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "pffnet_d2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_every_imported_package_is_required() -> None:
    """By the package itself or by an extra. Modules that no installed package here provides are not looked up."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    required = {distribution(line) for each in lists for line in each}
    packages = importlib.metadata.packages_distributions()
    ours = {"pffnet_d2", "detectron2"}
    modules = {name: files for name, files in imported().items() if name not in sys.stdlib_module_names | ours}
    assert {"numpy", "torch", "PIL"} <= modules.keys()
    for name, files in modules.items():
        provided = {distribution(each) for each in packages.get(name, [])}
        assert not provided or provided & required, f"{name} ({provided}) of {files}"


def test_configs_are_found_when_installed(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    names = sorted(files_below(ROOT / "configs", "*.yaml"))
    code = f"""
import sys
sys.modules["torch"] = sys.modules["detectron2"] = None  # not needed for this
sys.path.insert(0, {str(tmp_path)!r})
import pffnet_d2
for name in {names!r}:
    print(pffnet_d2.config_path(name))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.splitlines() == [str(tmp_path.resolve() / "pffnet_d2" / "configs" / name) for name in names]


def test_configs_are_found_in_a_checkout() -> None:
    path = Path(pffnet_d2.config_path("PFFNet_R101_FPN.yaml"))
    assert path.read_text() == (ROOT / "configs" / "PFFNet_R101_FPN.yaml").read_text()
