"""COCO AP of images with more detections than COCO counts."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.evaluation import COCOEvaluator, DatasetEvaluators

from pffnet_d2.evaluation import coco_ap
from pffnet_d2.evaluation.coco_ap import DenseCOCOEvaluator
from pffnet_d2.evaluation.evaluator import LabelMapEvaluator
from tests.evaluation.squares import NAME, TRUTHS, found, image, nothing, registered


@pytest.fixture(autouse=True)
def data_set() -> Iterator[None]:
    with registered():
        yield


@pytest.mark.parametrize("pasted", [False, True])
def test_perfect_predictions_score_full_ap(tmp_path: Path, pasted: bool) -> None:
    evaluator = DenseCOCOEvaluator(NAME, max_detections=1000, output_dir=tmp_path)
    for image_id, labels in TRUTHS.items():
        evaluator.process([image(image_id)], [found(labels, pasted=pasted)])
    results = evaluator.evaluate()
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AP75"] == pytest.approx(100)


def test_equal_to_detectron2_below_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_ap, "faster_coco_eval", None)
    ours = DenseCOCOEvaluator(NAME, max_detections=1000, output_dir=tmp_path)
    upstream = COCOEvaluator(NAME, ("bbox", "segm"), output_dir=str(tmp_path), use_fast_impl=False)
    upstream.reset()
    for image_id, labels in TRUTHS.items():
        shifted = np.roll(labels, (1, 1), (0, 1))
        ours.process([image(image_id)], [found(shifted)])
        upstream.process([image(image_id)], [found(shifted, pasted=True)])
    assert ours._predictions == upstream._predictions
    mine, theirs = ours.evaluate(), upstream.evaluate()
    assert 0 < theirs["segm"]["AP"] < 100
    for task in ("bbox", "segm"):
        np.testing.assert_equal(dict(mine[task]), dict(theirs[task]))


def test_the_limit_counts_and_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def ap(cap: int) -> float:
        evaluator = DenseCOCOEvaluator(NAME, max_detections=cap, output_dir=tmp_path)
        for image_id, labels in TRUTHS.items():
            evaluator.process([image(image_id)], [found(labels)])
        return evaluator.evaluate()["segm"]["AP"]

    with caplog.at_level(logging.WARNING, logger="pffnet_d2"):
        assert ap(25) == pytest.approx(100)
        assert not caplog.records
        assert ap(12) < 70  # 24 of 36 objects at most
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["images/11.png", "images/13.png"]
    assert "24 detections reach the limit of 12" in caplog.text


def test_no_detections_are_nan(tmp_path: Path) -> None:
    evaluator = DenseCOCOEvaluator(NAME, max_detections=500, output_dir=tmp_path)
    for image_id in TRUTHS:
        evaluator.process([image(image_id)], [nothing()])
    results = evaluator.evaluate()
    assert math.isnan(results["segm"]["AP"])
    assert math.isnan(results["bbox"]["AP"])


def test_the_fast_count_is_the_official_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    results = []
    for module in (coco_ap.faster_coco_eval, None):
        monkeypatch.setattr(coco_ap, "faster_coco_eval", module)
        evaluator = DenseCOCOEvaluator(NAME, max_detections=20, output_dir=tmp_path)
        for image_id, labels in TRUTHS.items():  # some are shifted, some beyond the limit, some on no object
            evaluator.process([image(image_id)], [found(np.roll(labels, (image_id - 11, 2), (0, 1)))])
        results.append(evaluator.evaluate())
    fast, official = results
    for task in ("bbox", "segm"):
        assert 0 < official[task]["AP"] < 100
        for name, value in official[task].items():
            assert fast[task][name] == pytest.approx(value, abs=1e-9, nan_ok=True), (task, name)


def test_both_evaluators_side_by_side(tmp_path: Path) -> None:
    both = DatasetEvaluators(
        [LabelMapEvaluator(NAME), DenseCOCOEvaluator(NAME, max_detections=100, output_dir=tmp_path)]
    )
    both.reset()
    outputs = [found(TRUTHS[11])]
    both.process([image(11)], outputs)
    assert outputs[0]["instances"].has("pred_masks")  # neither removes the masks that the other needs
    assert set(both.evaluate()) == {"label_map", "segm", "bbox"}
