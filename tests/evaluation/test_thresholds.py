"""Thresholds chosen on stored predictions, and the yaml for evaluation."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from pffnet_d2.cli import main as cli
from pffnet_d2.config import config_path, read_config
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.engine import trainer as engine
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.thresholds import (
    MASK_THRESHOLDS,
    SCORE_THRESHOLDS,
    PredictionStore,
    choose,
    read_stored,
    stored_file,
)
from pffnet_d2.masks.coco import annotations_to_label_map, paint
from pffnet_d2.masks.compose import LabelMapRule, instances_to_label_map
from pffnet_d2.masks.instance_mask import InstanceMasks
from pffnet_d2.masks.paste import instance_masks

NAME = "phantoms_val"


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave_no_trace: None) -> None:
    prepare("phantoms", None, tmp_path / "datasets", Selection(splits=("val",), count=2))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


class Model(nn.Module):
    """Finds every true object with class score 0.72, and as many false ones with 0.62."""

    runs = 0

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        Model.runs += 1
        entries = {entry["image_id"]: entry for entry in DatasetCatalog.get(NAME)}
        outputs = []
        for entry in (entries[image["image_id"]] for image in batch):
            size = entry["height"], entry["width"]
            masks = np.array([paint([a], *size)[0] for a in entry["annotations"]], dtype=bool)
            shifted = np.roll(masks, 23, axis=1) & ~masks.any(axis=0)
            instances = Instances(size, pred_masks=torch.from_numpy(np.concatenate([shifted, masks])))
            n = len(masks)
            instances.pred_boxes = Boxes(torch.zeros(2 * n, 4))
            # The false ones have the lowest scores, so only beta can remove them.
            instances.scores = torch.cat([torch.full((n,), 0.1), torch.full((n,), 0.5)])
            instances.class_scores = torch.cat([torch.full((n,), 0.62), torch.full((n,), 0.72)])
            outputs.append({"instances": instances})
        return outputs


def soft_instances(entry: dict[str, Any]) -> Instances:
    """ROI masks that are right at only one mask threshold, and random scores."""
    generator = torch.Generator().manual_seed(entry["image_id"])
    boxes = torch.tensor([a["bbox"] for a in entry["annotations"]], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    instances = Instances((entry["height"], entry["width"]), pred_boxes=Boxes(boxes))
    instances.scores = torch.rand(len(boxes), generator=generator)
    instances.class_scores = instances.scores.sqrt()
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    disc = torch.where(x**2 + y**2 < 1, 0.62, 0.38)
    instances.pred_masks = disc.expand(len(boxes), 1, 28, 28).clone()
    return instances


def store(folder: Path) -> list[dict[str, Any]]:
    entries = DatasetCatalog.get(NAME)
    writer = PredictionStore(folder)
    writer.reset()
    writer.process(entries, [{"instances": soft_instances(entry)} for entry in entries])
    assert writer.evaluate() == {}
    return entries


def test_what_is_stored_is_what_was_predicted(tmp_path: Path) -> None:
    entries = store(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == sorted(f"{e['image_id']}.npz" for e in entries)
    for entry in entries:
        before, after = soft_instances(entry), read_stored(stored_file(tmp_path, entry["image_id"]))
        assert after.image_size == before.image_size
        assert torch.equal(after.pred_boxes.tensor, before.pred_boxes.tensor)
        for name in ("scores", "class_scores", "pred_masks"):
            assert torch.equal(after.get(name), before.get(name))


def test_masks_kept_as_windows_are_stored_completely(tmp_path: Path) -> None:
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, :3, :3] = masks[1, 2:, 5] = True
    instances = Instances((6, 8), scores=torch.tensor([0.9, 0.8]), pred_boxes=Boxes(torch.zeros(2, 4)))
    instances.pred_masks = masks
    instances.pred_masks = InstanceMasks(instance_masks(instances), (6, 8))
    writer = PredictionStore(tmp_path)
    writer.process([{"image_id": 3}], [{"instances": instances}])
    assert torch.equal(read_stored(stored_file(tmp_path, 3)).pred_masks, masks)


@pytest.mark.parametrize("metric", ["AJI", "abs_DiC"])
def test_the_grid_is_what_each_pair_of_thresholds_scores(tmp_path: Path, metric: str) -> None:
    entries = store(tmp_path)
    choice = choose(NAME, tmp_path, metric, LabelMapRule())
    function = {"AJI": metrics.aji, "abs_DiC": lambda gt, pred: abs(metrics.difference_in_count(gt, pred))}[metric]
    expected = np.zeros(choice.grid.shape)
    for entry in entries:
        truth = annotations_to_label_map(entry["annotations"], entry["height"], entry["width"])
        instances = soft_instances(entry)
        for row, score in enumerate(SCORE_THRESHOLDS):
            for column, mask in enumerate(MASK_THRESHOLDS):
                labels = instances_to_label_map(instances, score_threshold=score, mask_threshold=mask)
                expected[row, column] += function(truth, labels) / len(entries)
    np.testing.assert_allclose(choice.grid, expected, atol=1e-12)
    assert choice.images == 2
    assert choice.value == (expected.min() if metric == "abs_DiC" else expected.max())
    assert choice.default == pytest.approx(expected[SCORE_THRESHOLDS.index(0.5), MASK_THRESHOLDS.index(0.5)])
    row, column = SCORE_THRESHOLDS.index(choice.score_threshold), MASK_THRESHOLDS.index(choice.mask_threshold)
    assert choice.grid[row, column] == choice.value


def command(tmp_path: Path, *more: str) -> int:
    config = str(config_path("demo/PFFNet_R18_FPN.yaml"))
    return cli.main(
        ["thresholds", "--config-file", config, *more, "MODEL.WEIGHTS", "none", "OUTPUT_DIR", str(tmp_path / "run")]
    )


def test_the_command_and_its_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "trained_model", lambda cfg, resume: Model())
    Model.runs = 0
    assert command(tmp_path) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(f"{NAME}: mean AJI 1.0000 with MODEL.PFFNET.LABEL_MAP.SCORE_THRESH 0.65")
    assert Model.runs == 2

    file = tmp_path / "run" / "thresholds.yaml"
    assert len(file.read_text().splitlines()) == 7
    rule = read_config(str(file)).MODEL.PFFNET.LABEL_MAP
    assert (rule.SCORE_THRESH, rule.MASK_THRESH, rule.MAX_COVERED) == (0.65, 0.5, 0.7)
    grid = list(csv.reader((tmp_path / "run" / "thresholds.csv").open(newline="")))
    assert grid[0][1:] == [str(threshold) for threshold in MASK_THRESHOLDS]
    assert [line[0] for line in grid[1:]] == [str(threshold) for threshold in SCORE_THRESHOLDS]
    assert {float(value) for line in grid[13:15] for value in line[1:]} == {1.0}  # 0.65 and 0.7

    assert command(tmp_path, "--stored", "--metric", "PQ") == 0
    assert "mean PQ 1.0000" in capsys.readouterr().out.splitlines()[-1]
    assert Model.runs == 2


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--stored") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert ".npz: no stored prediction can be read from it; run without --stored" in error
    assert command(tmp_path, "--stored", "--metric", "DiC") == 2
    assert "--metric DiC: choose one of AJI, AJI_plus" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "x.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="no stored prediction"):
        read_stored(tmp_path / "x.npz")
