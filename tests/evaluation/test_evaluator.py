"""Label-map scores of a small data set, from ROI masks and pasted masks, in one and in several processes."""

import csv
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, print_csv_format, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Instances

from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.coco_ap import DenseCOCOEvaluator
from pffnet_d2.evaluation.evaluator import LabelMapEvaluator
from pffnet_d2.evaluation.scores import METRICS
from pffnet_d2.evaluation.voc import VOCEvaluator
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.masks.instance_mask import InstanceMasks
from pffnet_d2.masks.paste import instance_masks
from pffnet_d2.visualization.overlay import side_by_side
from tests.evaluation.squares import NAME, SIZE, TRUTHS, found, image, nothing, registered


@pytest.fixture(autouse=True)
def data_set() -> Iterator[None]:
    with registered():
        yield


@pytest.mark.parametrize("pasted", [False, True])
def test_scores_are_means_over_images_and_rows_are_written(tmp_path: Path, pasted: bool) -> None:
    evaluator = LabelMapEvaluator(NAME, rule=LabelMapRule(score_threshold=0.5), output_dir=tmp_path / "new" / "folder")
    evaluator.reset()
    # The third image comes first and has only 18 of its 24 objects; the empty one has none; the first one is perfect.
    evaluator.process([image(13)], [found(TRUTHS[13], pasted=pasted, keep=18)])
    evaluator.process([image(12), image(11)], [nothing(), found(TRUTHS[11], pasted=pasted)])
    results = evaluator.evaluate()

    assert list(results) == ["label_map"]
    assert list(results["label_map"]) == list(METRICS)
    aji, f1 = 18 / 24, 2 * 18 / (18 + 24)
    expected = {"AJI": aji, "AJI_plus": aji, "Dice": f1, "F1": f1, "PQ": f1, "DQ": f1, "SQ": 1.0, "SBD": aji}
    for name, value in expected.items():
        assert results["label_map"][name] == pytest.approx((1 + 1 + value) / 3)
    assert results["label_map"]["DiC"] == -2
    assert results["label_map"]["abs_DiC"] == 2
    print_csv_format(results)  # accepts the format of Detectron2's own evaluators

    written = tmp_path / "new" / "folder"
    rows = list(csv.DictReader((written / "label_map.csv").open(newline="")))
    assert [row["image"] for row in rows] == ["11", "12", "13"]
    assert [(row["truths"], row["predictions"]) for row in rows] == [("12", "12"), ("0", "0"), ("24", "18")]
    assert [float(row["AJI"]) for row in rows] == [1, 1, aji]
    summary = json.loads((written / "label_map.json").read_text())
    assert (summary["dataset"], summary["images"], summary["score_threshold"]) == (NAME, 3, 0.5)
    assert summary["mean"] == results["label_map"]
    assert summary["std"]["AJI"] == pytest.approx(np.std([1, 1, aji]))
    assert sorted(p.name for p in written.iterdir()) == ["label_map.csv", "label_map.json", "label_map_errors.csv"]
    (*_, errors) = csv.DictReader((written / "label_map_errors.csv").open(newline=""))
    assert (errors["truths"], errors["found"], errors["missed"]) == ("36", "30", "6")


def test_best_median_and_worst_image_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for image_id in (12, 13):
        Image.new("RGB", SIZE[::-1], (image_id, 0, 0)).save(tmp_path / f"images/{image_id}.png")
    evaluator = LabelMapEvaluator(NAME, output_dir=tmp_path / "out")
    evaluator.process([image(13)], [found(TRUTHS[13], keep=18)])
    evaluator.process([image(12), image(11)], [nothing(), found(TRUTHS[11])])
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate()
    # The image without objects is not drawn. The best image, which is the median too, cannot be read.
    assert [path.name for path in (tmp_path / "out" / "examples").iterdir()] == ["worst.png"]
    assert "no picture of the best image" in caplog.text
    drawn = np.asarray(Image.open(tmp_path / "out" / "examples" / "worst.png"))
    grey = np.full((*SIZE, 3), (13, 0, 0), np.uint8)
    expected = side_by_side(grey, TRUTHS[13], np.where(TRUTHS[13] <= 18, TRUTHS[13], 0))
    outlined = (expected != (13, 0, 0)).any(axis=2)
    assert ((drawn != (13, 0, 0)).any(axis=2) == outlined).all()


def test_every_reported_name_is_the_metric_it_says() -> None:
    evaluator = LabelMapEvaluator(NAME)
    shifted = np.roll(TRUTHS[11], (1, 1), (0, 1))
    evaluator.process([image(11)], [found(shifted)])
    result = evaluator.evaluate()["label_map"]
    gt, quality = TRUTHS[11], metrics.panoptic_quality(TRUTHS[11], shifted)
    assert result == {
        "AJI": metrics.aji(gt, shifted),
        "AJI_plus": metrics.aji_plus(gt, shifted),
        "AJI_reuse": metrics.aji_reuse(gt, shifted),
        "AJI_pffnet": metrics.aji_pffnet(gt, shifted),
        "Dice": metrics.dice(gt, shifted),
        "F1": metrics.object_f1(gt, shifted),
        "PQ": quality.pq,
        "DQ": quality.dq,
        "SQ": quality.sq,
        "SBD": metrics.symmetric_best_dice(gt, shifted),
        "DiC": 0,
        "abs_DiC": 0,
        "DSB_mAP": metrics.dsb_average_precision(gt, shifted),
        "object_Dice": metrics.object_dice(gt, shifted),
        "splits": 0,
        "merges": 0,
        "object_Hausdorff": metrics.object_hausdorff(gt, shifted),
    }
    assert result["object_Hausdorff"] == pytest.approx(math.sqrt(2))
    assert 0 < result["AJI"] < result["Dice"] < result["F1"] == 1


def test_thresholds_reach_the_label_map() -> None:
    evaluator = LabelMapEvaluator(NAME, rule=LabelMapRule(score_threshold=0.99))
    evaluator.process([image(11)], [found(TRUTHS[11])])
    assert evaluator.evaluate()["label_map"]["AJI"] == 0
    evaluator = LabelMapEvaluator(NAME, rule=LabelMapRule(mask_threshold=0.9))
    soft = found(TRUTHS[11])
    soft["instances"].pred_masks *= 0.8
    evaluator.process([image(11)], [soft])
    assert evaluator.evaluate()["label_map"]["AJI"] == 0


def test_rows_of_all_ranks_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for image_id, keep in ((11, None), (13, 18)):
        evaluator = LabelMapEvaluator(NAME)
        evaluator.process([image(image_id)], [found(TRUTHS[image_id], keep=keep)])
        # Both ranks saw the empty image; it counts once.
        evaluator.process([image(12)], [nothing()])
        parts.append(evaluator._scored)
    gather = "pffnet_d2.evaluation.truth.comm.gather"
    monkeypatch.setattr(gather, lambda rows, dst: parts)
    assert evaluator.evaluate()["label_map"]["AJI"] == pytest.approx((1 + 1 + 18 / 24) / 3)
    monkeypatch.setattr("pffnet_d2.evaluation.truth.comm.is_main_process", lambda: False)
    monkeypatch.setattr(gather, lambda rows, dst: [])
    assert evaluator.evaluate() == {}


def test_nothing_scored_is_nan_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = LabelMapEvaluator(NAME, output_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        result = evaluator.evaluate()["label_map"]
    assert all(math.isnan(value) for value in result.values())
    assert "0 of 3 images" in caplog.text
    assert json.loads((tmp_path / "label_map.json").read_text())["mean"]["AJI"] is None
    assert len((tmp_path / "label_map.csv").read_text().splitlines()) == 1


def test_a_distance_that_is_not_a_number_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = LabelMapEvaluator(NAME, output_dir=tmp_path)
    evaluator.process([image(11), image(12), image(13)], [found(TRUTHS[11]), nothing(), nothing()])
    with caplog.at_level(logging.INFO):
        result = evaluator.evaluate()["label_map"]
    assert result["object_Hausdorff"] == 0  # mean of the two images that have a distance
    assert result["AJI"] == pytest.approx(2 / 3)
    assert "1 left out" in caplog.text
    assert json.loads((tmp_path / "label_map.json").read_text())["left_out"] == {"object_Hausdorff": 1}
    assert [row["object_Hausdorff"] for row in csv.DictReader((tmp_path / "label_map.csv").open())] == [
        "0.0",
        "0.0",
        "nan",
    ]


def test_groups_come_from_the_prepared_json(tmp_path: Path) -> None:
    images = [
        {"file_name": f"{i}.png", "split_group": f"patient {i}", "report_group": group}
        for i, group in ((11, "seen"), (12, "seen"), (13, "unseen"))
    ]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images}))
    MetadataCatalog.get(NAME).json_file = str(tmp_path / "instances.json")
    evaluator = LabelMapEvaluator(NAME, output_dir=tmp_path)
    evaluator.process([image(11), image(12), image(13)], [found(TRUTHS[11]), nothing(), nothing()])
    assert evaluator.evaluate()["label_map"]["AJI"] == pytest.approx(2 / 3)
    groups = json.loads((tmp_path / "label_map.json").read_text())["groups"]
    assert {name: (group["images"], group["mean"]["AJI"]) for name, group in groups.items()} == {
        "seen": (2, 1.0),
        "unseen": (1, 0.0),
    }


def test_detectron2_checks_expected_results_and_flattens_them() -> None:
    evaluator = LabelMapEvaluator(NAME)
    evaluator.process([image(11)], [found(TRUTHS[11])])
    results = evaluator.evaluate()
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [["label_map", "AJI_plus", 1.0, 0.001], ["label_map", "abs_DiC", 0.0, 0.001]]
    assert verify_results(cfg, results)
    assert flatten_results_dict(results)["label_map/AJI"] == 1.0  # the name that BestCheckpointer uses


def test_reset_forgets() -> None:
    evaluator = LabelMapEvaluator(NAME)
    evaluator.process([image(11)], [nothing()])
    evaluator.reset()
    evaluator.process([image(11)], [found(TRUTHS[11])])
    assert evaluator.evaluate()["label_map"]["AJI"] == 1


def test_mistakes_end_in_one_line() -> None:
    evaluator = LabelMapEvaluator(NAME)
    with pytest.raises(InputError, match=r"images/99\.png: evaluator_test has no image 99"):
        evaluator.process([image(99)], [nothing()])
    small = {"instances": Instances((30, 30), scores=torch.zeros(0))}
    with pytest.raises(InputError, match=r"images/11\.png: the prediction has \(30, 30\) pixels, the truth \(60, 90\)"):
        evaluator.process([image(11)], [small])
    del evaluator._truth.images[12]["annotations"]
    with pytest.raises(InputError, match=r"images/12\.png: evaluator_test has no annotations"):
        evaluator.process([image(12)], [nothing()])


def test_masks_kept_in_their_windows_score_as_pasted_ones(tmp_path: Path) -> None:
    results = []
    for as_windows in (False, True):
        evaluators = DatasetEvaluators(
            [
                LabelMapEvaluator(NAME),
                DenseCOCOEvaluator(NAME, max_detections=100, output_dir=tmp_path),
                VOCEvaluator(NAME),
            ]
        )
        evaluators.reset()
        for image_id, labels in TRUTHS.items():
            output = found(np.roll(labels, (1, 1), (0, 1)), pasted=True, keep=20)
            if as_windows:
                output["instances"].pred_masks = InstanceMasks(instance_masks(output["instances"]), SIZE)
            evaluators.process([image(image_id)], [output])
        results.append(evaluators.evaluate())
    for task, scores in results[0].items():
        assert results[1][task] == pytest.approx(scores, nan_ok=True)


def test_names_and_functions_agree_with_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in METRICS:
        assert f"| {name} |" in text
