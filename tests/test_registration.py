"""Importing the package registers it with Detectron2, for any order of imports; each case in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

EVERYTHING = """
from detectron2.data import DatasetCatalog
from detectron2.engine import defaults
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.utils.file_io import PathManager
assert {"PFFNet", "ObjectGuided", "FCN8s"} <= set(dict(META_ARCH_REGISTRY))
assert "PFFNetROIHeads" in ROI_HEADS_REGISTRY
assert "build_efficientnet_lite_fpn_backbone" in BACKBONE_REGISTRY
assert {"phantoms_train", "bbbc039_test"} <= set(DatasetCatalog.list())
assert PathManager.isfile("package://efficientnet-lite0")
assert defaults.build_optimizer.__module__.startswith("pffnet_d2.")
"""


def run(code: str, folder: Path | None = None, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "first",
    [
        "import pffnet_d2",
        "import warnings; warnings.simplefilter('ignore'); import detectron2.modeling; import pffnet_d2",
        # Modules that are also imported by registration, and one that is not.
        "import pffnet_d2.modeling.backbone_lite",
        "from pffnet_d2.data.catalog import load",
        "from pffnet_d2.engine.optimizer import build_optimizer",
        "from pffnet_d2.masks.compose import instances_to_label_map",
        "from pffnet_d2 import Predictor",
    ],
)
def test_in_every_order_of_imports(first: str) -> None:
    run(f"{first}\n{EVERYTHING}")


def test_with_a_yaml_and_with_a_config_that_was_pickled(tmp_path: Path) -> None:
    run(
        """
import pffnet_d2, pickle
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg()
pffnet_d2.add_pffnet_config(cfg)
assert cfg.MODEL.DEVICE == get_cfg().MODEL.DEVICE
cfg.merge_from_file(str(pffnet_d2.config_path("demo/PFFNet_R18_FPN.yaml")))
cfg.MODEL.DEVICE = "cpu"
assert type(build_model(cfg)).__name__ == "PFFNet"
pickle.dump(cfg, open("cfg.pkl", "wb"))
""",
        tmp_path,
    )
    run(
        """
import pickle
import pffnet_d2
cfg = pickle.load(open("cfg.pkl", "rb"))
from detectron2.modeling import build_model
assert type(build_model(cfg)).__name__ == "PFFNet"
""",
        tmp_path,
    )


def test_without_detectron2() -> None:
    """And without onnxruntime, with which Predictor needs neither."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("detectron2", "onnxruntime"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import pffnet_d2
from pffnet_d2.evaluation import metrics
for name in pffnet_d2.__all__:
    try:
        print(name, getattr(pffnet_d2, name) is not None)
    except ImportError as error:
        print(name, str(error).partition(";")[0])
"""
    problem = "not everything it needs is installed (detectron2: missing)"
    assert run(code).splitlines() == [
        f"Predictor pffnet_d2.Predictor: {problem}",
        "__version__ True",
        f"add_pffnet_config pffnet_d2.add_pffnet_config: {problem}",
        "config_path True",
    ]


def test_importing_reads_no_file_of_the_users_and_no_library(tmp_path: Path) -> None:
    """Neither the prepared data sets, which are registered by a command, nor libraries that are slow to import."""
    root = tmp_path / "root" / "own" / "train"
    root.mkdir(parents=True)
    (root / "instances.json").write_text("{")
    code = f"""
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event in ("open", "os.listdir", "os.scandir") else 0)
import pffnet_d2
import pffnet_d2.cli.main
print(sorted({{"torch", "detectron2", "numpy", "scipy", "matplotlib", "PIL", "yaml"}} & set(sys.modules)))
{EVERYTHING}
print([path for path in seen if path.startswith({str(tmp_path)!r})])
"""
    assert run(code, DETECTRON2_DATASETS=str(tmp_path / "root")) == "[]\n[]\n"


def test_help_imports_no_command(tmp_path: Path) -> None:
    code = """
import sys
from pffnet_d2.cli.main import main
try:
    main(["{command}"] * bool("{command}") + ["--help"])
except SystemExit:
    print(sorted({{"torch", "detectron2"}} & set(sys.modules)))
"""
    for command in ("", "predict", "train", "finetune"):
        assert run(code.format(command=command)).splitlines()[-1] == "[]", command
