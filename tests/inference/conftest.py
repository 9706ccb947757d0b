"""A small model with random weights that finds something, its config and weights as files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """A predictor on the CPU turns them off for the process; Hypothesis wants them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@dataclass(frozen=True)
class SmallModel:
    config: Path
    weights: Path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    """Every detection counts (SCORE_THRESH 0), at most 20 of them."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    import torch
    from detectron2.modeling import build_model

    from pffnet_d2.config import config_path, read_config

    folder = tmp_path_factory.mktemp("model")
    config = folder / "small.yaml"
    keys = {
        "_BASE_": str(config_path("demo/PFFNet_R18_FPN.yaml")),
        "MODEL": {
            "DEVICE": "cpu",
            "RPN": {"POST_NMS_TOPK_TEST": 50},
            "PFFNET": {"LABEL_MAP": {"SCORE_THRESH": 0.0}},
        },
        "TEST": {"DETECTIONS_PER_IMAGE": 20},
    }
    config.write_text(yaml.safe_dump(keys))
    torch.manual_seed(0)
    model = build_model(read_config(str(config)))
    torch.save({"model": model.state_dict()}, folder / "small.pth")
    return SmallModel(config, folder / "small.pth")
