"""The package without torch or Detectron2: each case runs in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pffnet_d2 import env

MISSING = [("torch",), ("detectron2",), ("torch", "torchvision", "detectron2", "fvcore", "cv2")]


def run_without(modules: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter in which these modules cannot be imported."""
    block = f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("modules", MISSING, ids=" ".join)
def test_what_needs_neither_still_imports(modules: tuple[str, ...]) -> None:
    result = run_without(
        modules,
        """
import numpy as np
import pffnet_d2
from pffnet_d2 import config_path, env, imaging, masks
from pffnet_d2.cli import main as cli
from pffnet_d2.data import prepare, readers, synthetic
from pffnet_d2.imaging import read
from pffnet_d2.masks import coco
from pffnet_d2.evaluation import contingency, metrics
assert not hasattr(pffnet_d2, "__wrapped__")  # introspection works
labels = np.array([[1, 1, 0], [0, 2, 2]], dtype=np.int32)
print(metrics.aji(labels, labels))
""",
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == 1.0


@pytest.mark.parametrize("modules", MISSING, ids=" ".join)
def test_anything_else_says_the_remedy(modules: tuple[str, ...]) -> None:
    result = run_without(
        modules,
        """
import pffnet_d2
try:
    pffnet_d2.add_pffnet_config
except ImportError as error:
    print(error)
try:
    from pffnet_d2 import add_pffnet_config
except ImportError as error:
    print(error)
""",
    )
    assert result.returncode == 0, result.stderr
    line, same = result.stdout.splitlines()
    assert same == line
    assert line.startswith("pffnet_d2.add_pffnet_config: not everything it needs is installed (")
    assert ("torch: missing" in line) == ("torch" in modules)
    assert line.endswith("; to install: pffnet install-detectron2")


@pytest.mark.parametrize("modules", MISSING, ids=" ".join)
def test_report_names_what_is_missing(modules: tuple[str, ...]) -> None:
    result = run_without(modules, "from pffnet_d2.cli.main import main\nsys.exit(main(['env']))")
    assert result.returncode == 1, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("missing: ")
    assert "detectron2" in last
    for module in modules:
        assert dict(env.REQUIRED)[module] in last
    assert "Traceback" not in result.stderr


def test_prediction_without_torch() -> None:
    """Where onnxruntime is installed, the report says that this works; where it is not, what to install."""
    code = "from pffnet_d2 import env\nprint(env.problem(onnx=True))\nprint(env.collect())"
    stand_in = "from types import ModuleType\nfrom importlib.machinery import ModuleSpec\n"
    stand_in += "module = sys.modules['onnxruntime'] = ModuleType('onnxruntime')\n"
    stand_in += "module.__spec__ = ModuleSpec('onnxruntime', None)\n"
    line = "pffnet predict works as it is, with models in ONNX (docs/export.md)"
    result = run_without(("torch", "detectron2"), stand_in + code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == ""
    assert result.stdout.splitlines()[-2] == line
    result = run_without(("torch", "detectron2", "onnxruntime"), code)
    assert "(onnxruntime: missing); to install: pip install onnxruntime" in result.stdout.splitlines()[0]
    assert line not in result.stdout


def test_commands_that_need_detectron2_say_so_in_one_line() -> None:
    commands = ["train", "evaluate", "demo"]
    code = f"from pffnet_d2.cli.main import main\nprint([main([command]) for command in {commands}])"
    result = run_without(("detectron2",), code)
    assert result.stdout == "[2, 2, 2]\n"
    for command, line in zip(commands, result.stderr.splitlines(), strict=True):
        assert line.startswith(
            f"pffnet: error: {command}: not everything it needs is installed (detectron2: missing); "
        )


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("numpy", "pip install numpy"),
        ("tifffile", "pip install tifffile"),
        ("cv2", "pffnet install-detectron2"),
    ],
)
def test_report_when_a_small_part_is_missing(module: str, remedy: str) -> None:
    result = run_without((module,), "from pffnet_d2.cli.main import main\nsys.exit(main(['env']))")
    assert result.returncode == 1, result.stderr
    last = result.stdout.splitlines()[-1]
    # Detectron2 needs the missing part, and is not broken itself.
    assert last.split("; to install: ")[1] == remedy


def test_a_detectron2_that_does_not_fit_is_not_called_missing(tmp_path: Path) -> None:
    """An unchanged Detectron2 0.6 fails like this with current versions of Pillow."""
    package = tmp_path / "detectron2"
    for name in ("__init__.py", "modeling/__init__.py", "data/__init__.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / "data/__init__.py").write_text("import PIL.Image\nPIL.Image.no_such_filter\n")
    result = run_without(
        (),
        f"""
sys.path.insert(0, {str(tmp_path)!r})
from pffnet_d2 import env
print(env.problem())
(part,) = [part for part in env.collect().required if part.name == "detectron2"]
print(part.problem)
""",
    )
    assert result.returncode == 0, result.stderr
    problem, part = result.stdout.splitlines()
    fault = "does not import: AttributeError: module 'PIL.Image' has no attribute 'no_such_filter'"
    assert problem.startswith(
        f"not everything it needs is installed (detectron2: {fault}); to install: pffnet install-detectron2"
    )
    assert part == fault


def test_report_if_nothing_is_missing() -> None:
    report = env.collect()
    if report.missing:
        pytest.skip(f"{', '.join(report.missing)} missing")
    assert env.problem() == ""
    assert {"torch", "torchvision", "detectron2", "numpy", "scikit-image"} <= {part.name for part in report.required}
    assert all(part.version for part in report.required)
    assert report.devices[0].startswith("cpu: ")
    assert report.commands == []
    assert str(report).endswith("nothing is missing")
    (detectron2,) = [part for part in report.required if part.name == "detectron2"]
    assert "compiled operators: " in detectron2.note


def test_package_registers_with_detectron2() -> None:
    pytest.importorskip("detectron2")
    import detectron2.modeling
    from detectron2.data import DatasetCatalog

    import pffnet_d2

    assert "PFFNet" in detectron2.modeling.META_ARCH_REGISTRY
    assert {"phantoms_train", "phantoms_val", "bbbc039_train", "bbbc039_val", "bbbc039_test"} <= set(
        DatasetCatalog.list()
    )
    assert callable(pffnet_d2.add_pffnet_config)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pffnet_d2.no_such_name
