"""Shared by all tests: real data from folders in the environment, few threads, no influence of the user's settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before NumPy or torch are imported: the tensors of the tests are small, and more threads would slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# The tests write and read their own data sets.
os.environ.pop("DETECTRON2_DATASETS", None)

# On a busy machine a deadline would fail examples that are only slow.
settings.register_profile("pffnet_d2", deadline=None)
settings.load_profile("pffnet_d2")


@pytest.fixture(scope="session")
def pffnet_data() -> Callable[[str], Path]:
    """Folder of a publisher's files, as in ``pffnet_data("bbbc039")``; skips the test if it does not exist."""

    def folder(name: str) -> Path:
        path = _folder("PFFNET_DATA") / name
        if not path.is_dir():
            pytest.skip(f"PFFNET_DATA has no folder {name}")
        return path

    return folder


@pytest.fixture(scope="session")
def pffnet_oracles() -> Path:
    """Folder of the reference values; skips the test if it does not exist."""
    return _folder("PFFNET_ORACLES")


@pytest.fixture
def leave_no_trace() -> Iterator[None]:
    """Remove loggers that a run attaches to stdout, because pytest closes that stdout afterwards."""
    yield
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "pffnet_d2"):
        logging.getLogger(name).handlers.clear()


@pytest.fixture(scope="session")
def prepared_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a prepared data set: "phantoms", three images per split. To be read only."""
    from pffnet_d2.data.prepare import Selection, prepare

    root = tmp_path_factory.mktemp("datasets")
    prepare("phantoms", None, root, Selection(count=3))
    return root


@pytest.fixture(scope="module")
def datasets(prepared_phantoms: Path) -> Iterator[Path]:
    """``prepared_phantoms``, as the root that DETECTRON2_DATASETS names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(prepared_phantoms))
        yield prepared_phantoms


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a Dask cluster of one worker in a thread of this process, which costs no imports."""
    distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    quiet = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**quiet, silence_logs=50) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of config.yaml and model_final.pth as training leaves them, of a narrow PFFNet with random weights that
    calls everything an object."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    import torch
    import yaml
    from detectron2.modeling import build_model

    from pffnet_d2.config import config_path, read_config

    folder = tmp_path_factory.mktemp("tiny_run")
    narrow = {"CONV_DIM": 16, "FC_DIM": 256}
    keys = {
        "_BASE_": str(config_path("demo/PFFNet_R18_FPN.yaml")),
        "MODEL": {
            "DEVICE": "cpu",
            "FPN": {"OUT_CHANNELS": 32},
            "RPN": {"POST_NMS_TOPK_TEST": 50},
            "ROI_BOX_HEAD": {"FC_DIM": 256},
            "ROI_MASK_HEAD": {"CONV_DIM": 32, "FC_PATH_DIM": 1},
            "ROI_MASK_QUALITY_HEAD": narrow,
            "PFFNET": {"DIAMETER": 20.0, "IMAGES": "fluorescence", "LABEL_MAP": {"SCORE_THRESH": 0.01}},
        },
        "TEST": {"DETECTIONS_PER_IMAGE": 20},
        "OUTPUT_DIR": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(keys))
    torch.manual_seed(0)
    model = build_model(read_config(str(folder / "config.yaml")))
    torch.save({"model": model.state_dict(), "iteration": 1}, folder / "model_final.pth")
    return folder


@pytest.fixture(scope="session")
def onnx_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_run`` with weights whose scores differ by more than rounding, packaged, and model.onnx."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    import torch

    from pffnet_d2.inference.model_config import config_of
    from pffnet_d2.inference.options import ModelOptions
    from pffnet_d2.model_zoo.export import export_onnx
    from pffnet_d2.model_zoo.package import package_model

    folder = tmp_path_factory.mktemp("pretrained") / "nuclei"
    weights = torch.load(tiny_run / "model_final.pth", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for layer in ("roi_heads.box_predictor.cls_score", "proposal_generator.rpn_head.objectness_logits"):
        weights["model"][f"{layer}.weight"].normal_(std=0.5, generator=generator)
    torch.save(weights, folder.parent / "distinct.pth")
    package_model(str(tiny_run / "config.yaml"), str(folder.parent / "distinct.pth"), folder)
    export_onnx(config_of(ModelOptions(model=folder, device="cpu")), folder)
    return folder


@pytest.fixture(scope="session")
def packaged(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pffnet package` makes of ``tiny_run``, in a folder that may stand for that of the shipped models."""
    from pffnet_d2.model_zoo.package import package_model

    folder = tmp_path_factory.mktemp("pretrained") / "nuclei"
    package_model(
        str(tiny_run / "config.yaml"), str(tiny_run / "model_final.pth"), folder, about={"licence": "CC0 1.0"}
    )
    return folder


def _folder(variable: str) -> Path:
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{variable} is not set")
    folder = Path(named)
    if not folder.is_dir():
        pytest.skip(f"{variable}={named} is not a folder")
    return folder
