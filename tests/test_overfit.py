"""If a network can memorise two images, all its parts are connected to its loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from pffnet_d2.config import config_path, read_config
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.engine.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("leave_no_trace")]


@pytest.mark.parametrize(
    ("config", "metric", "own"),
    [
        ("bbbc039/PFFNet_R18_FPN", "AJI", {}),
        ("bbbc039/CellRCNN_V2_R18_FPN", "AJI", {}),
        # It learns only the foreground; whether erosion splits touching objects does not depend on it.
        ("dsb2018/FCN8s_compact", "Dice", {}),
        ("dsb2018/ObjectGuided_R18_compact", "AJI", {"INPUT.SQUARE.TRAIN": "0", "INPUT.SQUARE.TEST": "0"}),
    ],
)
def test_two_images_are_memorised(
    config: str, metric: str, own: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("phantoms", None, tmp_path, Selection(splits=["train"], count=2))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = {
        "DATASETS.TRAIN": "('phantoms_train',)",
        "DATASETS.TEST": "('phantoms_train',)",
        "INPUT.CROP.ENABLED": "False",
        "INPUT.PFFNET.AUGMENTATIONS": "[]",
        "MODEL.DEVICE": "cpu",
        "SOLVER.MAX_ITER": "400",
        "SOLVER.STEPS": "(330,)",
        "SEED": "1",
        "SOLVER.IMS_PER_BATCH": "2",
        "OUTPUT_DIR": str(tmp_path / "run"),
        **own,
    }
    cfg = read_config(str(config_path(f"{config}.yaml")), [word for pair in options.items() for word in pair])
    (tmp_path / "run").mkdir()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    scores = trainer.train()["label_map"]
    assert scores[metric] > 0.9, scores
