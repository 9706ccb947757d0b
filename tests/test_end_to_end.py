"""Train, evaluate, resume and draw with PFFNet on generated images, with the commands that a user types."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from PIL import Image

from pffnet_d2.cli import demo
from pffnet_d2.cli.main import main
from pffnet_d2.config import config_path
from pffnet_d2.data import prepare as prepare_module
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.engine import read_config
from pffnet_d2.masks.compose import instances_to_label_map
from pffnet_d2.visualization.plots import read_metrics

pytestmark = pytest.mark.usefixtures("leave_no_trace")

COMPACT = ["--config-file", str(config_path("demo/PFFNet_R18_FPN.yaml"))]
TINY = [
    *("MODEL.DEVICE", "cpu", "SEED", "7", "INPUT.CROP.SIZE", "[96, 96]", "SOLVER.CHECKPOINT_PERIOD", "2"),
    # Random weights give hundreds of false detections in every image.
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "50", "TEST.DETECTIONS_PER_IMAGE", "20"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """OUTPUT_DIR of a training of two iterations on two images."""
    root = tmp_path_factory.mktemp("end_to_end")
    prepare("phantoms", None, root / "datasets", Selection(count=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root / "datasets"))
        out = root / "run"
        assert main(["train", *COMPACT, *TINY, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(out)]) == 0
        yield out


def scores(out: Path) -> dict[str, float]:
    summary = json.loads((out / "inference" / "phantoms_val" / "label_map.json").read_text())
    assert summary["images"] == 2
    return dict(summary["mean"])


def test_training_writes_finite_losses_scores_and_weights(trained: Path) -> None:
    metrics = read_metrics(trained / "metrics.json")
    assert metrics[0]["iteration"] == 1
    last = {key: value for scalars in metrics for key, value in scalars.items()}
    losses = {key: value for key, value in last.items() if "loss" in key}
    assert len(losses) >= 8  # RPN (2), box (2), mask, quality, two semantic ones, consistency, total
    assert all(math.isfinite(value) for value in losses.values())
    assert last["label_map/AJI"] == pytest.approx(scores(trained)["AJI"])
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 1
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("resume", [False, True])
def test_evaluating_the_checkpoint_gives_the_same_scores(trained: Path, tmp_path: Path, resume: bool) -> None:
    before = scores(trained)
    if resume:
        source, out = ["--resume"], trained
    else:
        source, out = [], tmp_path
    weights = ["MODEL.WEIGHTS", "" if resume else str(trained / "model_final.pth")]
    assert main(["evaluate", *source, *COMPACT, *TINY, *weights, "OUTPUT_DIR", str(out)]) == 0
    assert scores(out) == pytest.approx(before, nan_ok=True)


def test_default_predictor(trained: Path) -> None:
    """The README's script: Detectron2's own predictor, any image size, no resizing."""
    cfg = read_config(str(config_path("demo/PFFNet_R18_FPN.yaml")), [*TINY, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"])
    cfg.MODEL.WEIGHTS = str(trained / "model_final.pth")
    image = np.random.default_rng(0).integers(0, 255, (70, 101, 3)).astype(np.uint8)
    instances = DefaultPredictor(cfg)(image)["instances"]
    assert len(instances) > 0
    assert instances.pred_masks.shape == (len(instances), 70, 101)
    torch.testing.assert_close(instances.scores, instances.class_scores * instances.mask_quality)
    assert (instances.pred_classes == 0).all()
    assert instances_to_label_map(instances).shape == (70, 101)


@pytest.mark.parametrize("semantic", ["semantic", "semantic_fused"])
def test_semantic_and_panoptic_outputs_are_scored(trained: Path, tmp_path: Path, semantic: str) -> None:
    outputs = ["MODEL.PFFNET.OUTPUTS", f"['instances', '{semantic}', 'panoptic']", "MODEL.WEIGHTS"]
    weights = str(trained / "model_final.pth")
    assert main(["evaluate", *COMPACT, *TINY, *outputs, weights, "OUTPUT_DIR", str(tmp_path)]) == 0
    folder = tmp_path / "inference" / "phantoms_val"
    assert set(json.loads((folder / "panoptic_seg.json").read_text())) == {"PQ", "SQ", "RQ"}
    scored = torch.load(folder / "sem_seg_evaluation.pth", weights_only=False)
    assert 0 <= scored["mIoU"] <= 100


def test_thresholds_are_chosen_and_used(trained: Path, tmp_path: Path) -> None:
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), "OUTPUT_DIR", str(tmp_path)]
    assert main(["thresholds", *COMPACT, "--metric", "Dice", *TINY, *weights]) == 0
    assert len(list((tmp_path / "inference" / "phantoms_val" / "predictions").glob("*.npz"))) == 2
    assert main(["evaluate", "--config-file", str(tmp_path / "thresholds.yaml")]) == 0
    text = (tmp_path / "thresholds.yaml").read_text()
    assert f"mean Dice {scores(tmp_path)['Dice']:.4f}" in text


def test_a_checkpoint_of_another_model_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), "MODEL.FPN.OUT_CHANNELS", "32"]
    for command in ("train", "evaluate"):
        capsys.readouterr()
        assert main([command, *COMPACT, *TINY, *weights, "OUTPUT_DIR", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "model_final.pth: does not fit the model: backbone.fpn" in error
        assert "Traceback" not in error


def test_a_damaged_image_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained.parent / "datasets" / "phantoms" / "train" / "images"
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    try:
        for path, data in whole.items():
            path.write_bytes(data[: len(data) // 2])
        for workers in ("0", "1"):
            opts = ["SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", str(tmp_path)]
            assert main(["train", *COMPACT, *TINY, *opts]) == 2
            captured = capsys.readouterr()
            assert str(folder) in captured.err
            assert captured.err.count("\n") == 1
            assert "Traceback" not in captured.out + captured.err
    finally:
        for path, data in whole.items():
            path.write_bytes(data)


def test_resuming_continues_from_the_last_iteration(trained: Path) -> None:
    assert main(["train", "--resume", *COMPACT, *TINY, "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(trained)]) == 0
    assert [scalars["iteration"] for scalars in read_metrics(trained / "metrics.json")] == [1, 2, 3, 4]
    log = (trained / "log.txt").read_text()
    assert "Starting training from iteration 2" in log
    states = torch.load(trained / "model_final.pth", weights_only=True)["trainer"]["_trainer"]["optimizer"]["state"]
    assert any(state["momentum_buffer"].abs().max() > 0 for state in states.values())


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(prepare_module, "prepare", partial(prepare_module.prepare, selection=Selection(count=2)))
    for name in ("phantoms_train", "phantoms_val"):  # the demonstration registers them again
        monkeypatch.setitem(MetadataCatalog.data, name, MetadataCatalog[name])
    opts = [*TINY, "SOLVER.MAX_ITER", "2"]
    for _ in range(2):  # running it again works
        capsys.readouterr()
        assert demo.demonstrate(tmp_path, opts) == 0
        said = capsys.readouterr().out
        assert "2/2  loss" in said
        assert "AJI" in said
        assert str(tmp_path / "overlays") in said
        assert len(said.splitlines()) < 30
        assert [m["iteration"] for m in read_metrics(tmp_path / "training" / "metrics.json")] == [1, 2]
        overlays = sorted((tmp_path / "overlays").iterdir())
        assert len(overlays) == 2
        assert np.asarray(Image.open(overlays[0])).shape == (512, 3 * 512 + 8, 3)  # enlarged twice
        assert np.asarray(Image.open(tmp_path / "learning_curve.png")).std() > 0
