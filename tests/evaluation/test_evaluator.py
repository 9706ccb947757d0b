"""The evaluators on a small data set, from ROI masks and from pasted ones, alone and in several processes."""

import csv
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, print_csv_format, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes, BoxMode, Instances

from pffnet_d2.data.coco import label_map_to_annotations
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import evaluator as evaluator_module
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.evaluator import DenseCOCOEvaluator, LabelMapEvaluator, windows_to_rle
from pffnet_d2.evaluation.scores import METRICS
from pffnet_d2.inference.label_map import render_windows

SIZE = (60, 90)
NAME = "evaluator_test"


def squares(columns: int) -> np.ndarray:
    """Label map of 3 rows of 8x8 squares, 10 apart."""
    labels = np.zeros(SIZE, np.int32)
    for i in range(3 * columns):
        y, x = 10 * (i % 3) + 2, 10 * (i // 3) + 1
        labels[y : y + 8, x : x + 8] = i + 1
    return labels


TRUTHS = {11: squares(4), 12: squares(0), 13: squares(8)}


@pytest.fixture(autouse=True)
def data_set() -> Iterator[None]:
    """Three images, the second without objects, in Detectron2's format."""
    dicts = []
    for image_id, labels in TRUTHS.items():
        annotations = label_map_to_annotations(labels, image_id)
        for annotation in annotations:
            annotation |= {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        dicts.append(
            {
                "file_name": f"images/{image_id}.png",
                "image_id": image_id,
                "height": SIZE[0],
                "width": SIZE[1],
                "annotations": annotations,
            }
        )
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).thing_classes = ["nucleus"]
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def image(image_id: int) -> dict:
    return {"image_id": image_id, "file_name": f"images/{image_id}.png", "height": SIZE[0], "width": SIZE[1]}


def found(labels: np.ndarray, *, pasted: bool = False, keep: int | None = None) -> dict:
    """Instances of the objects of a label map (the first ``keep``), scores falling with the label."""
    ids = [label for label in np.unique(labels).tolist() if label][:keep]
    extents = [np.nonzero(labels == label) for label in ids]
    boxes = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in extents], dtype=torch.float32)
    instances = Instances(SIZE, pred_boxes=Boxes(boxes.reshape(-1, 4)))
    instances.scores = torch.linspace(0.95, 0.6, len(ids))
    instances.pred_classes = torch.zeros(len(ids), dtype=torch.int64)
    instances.pred_masks = torch.ones(len(ids), 1, 28, 28)
    if pasted:
        instances.pred_masks = paste_masks_in_image(instances.pred_masks[:, 0], instances.pred_boxes, SIZE)
    else:
        instances.class_scores = instances.scores.sqrt()
    return {"instances": instances}


def nothing() -> dict:
    return found(np.zeros(SIZE, np.int32))


# --- Label maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pasted", [False, True])
def test_scores_are_means_over_images_and_rows_are_written(tmp_path: Path, pasted: bool) -> None:
    evaluator = LabelMapEvaluator(NAME, score_threshold=0.5, output_dir=tmp_path / "new" / "folder")
    evaluator.reset()
    # The third image first, with only 18 of its 24 objects; the empty one with nothing; the first one perfect.
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
    print_csv_format(results)  # takes what Detectron2's own evaluators give

    written = tmp_path / "new" / "folder"
    rows = list(csv.DictReader((written / "label_map.csv").open(newline="")))
    assert [row["image"] for row in rows] == ["11", "12", "13"]
    assert [(row["truths"], row["predictions"]) for row in rows] == [("12", "12"), ("0", "0"), ("24", "18")]
    assert [float(row["AJI"]) for row in rows] == [1, 1, aji]
    summary = json.loads((written / "label_map.json").read_text())
    assert (summary["dataset"], summary["images"], summary["score_threshold"]) == (NAME, 3, 0.5)
    assert summary["mean"] == results["label_map"]
    assert summary["std"]["AJI"] == pytest.approx(np.std([1, 1, aji]))
    assert sorted(p.name for p in written.iterdir()) == ["label_map.csv", "label_map.json"]


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
    evaluator = LabelMapEvaluator(NAME, score_threshold=0.99)
    evaluator.process([image(11)], [found(TRUTHS[11])])
    assert evaluator.evaluate()["label_map"]["AJI"] == 0
    evaluator = LabelMapEvaluator(NAME, mask_threshold=0.9)
    soft = found(TRUTHS[11])
    soft["instances"].pred_masks *= 0.8
    evaluator.process([image(11)], [soft])
    assert evaluator.evaluate()["label_map"]["AJI"] == 0


def test_rows_of_all_ranks_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for image_id, keep in ((11, None), (13, 18)):
        evaluator = LabelMapEvaluator(NAME)
        evaluator.process([image(image_id)], [found(TRUTHS[image_id], keep=keep)])
        # Both saw the empty image: it counts once.
        evaluator.process([image(12)], [nothing()])
        parts.append(evaluator._rows)
    gather = "pffnet_d2.evaluation.evaluator.comm.gather"
    monkeypatch.setattr(gather, lambda rows, dst: parts)
    assert evaluator.evaluate()["label_map"]["AJI"] == pytest.approx((1 + 1 + 18 / 24) / 3)
    monkeypatch.setattr("pffnet_d2.evaluation.evaluator.comm.is_main_process", lambda: False)
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


def test_a_distance_that_is_no_number_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = LabelMapEvaluator(NAME, output_dir=tmp_path)
    evaluator.process([image(11), image(12), image(13)], [found(TRUTHS[11]), nothing(), nothing()])
    with caplog.at_level(logging.INFO):
        result = evaluator.evaluate()["label_map"]
    assert result["object_Hausdorff"] == 0  # of the two that have one
    assert result["AJI"] == pytest.approx(2 / 3)
    assert "1 left out" in caplog.text
    assert json.loads((tmp_path / "label_map.json").read_text())["left_out"] == {"object_Hausdorff": 1}
    assert [row["object_Hausdorff"] for row in csv.DictReader((tmp_path / "label_map.csv").open())] == [
        "0.0",
        "0.0",
        "nan",
    ]


def test_groups_come_from_the_prepared_json(tmp_path: Path) -> None:
    images = [{"file_name": f"{i}.png", "group": group} for i, group in ((11, "seen"), (12, "seen"), (13, "unseen"))]
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
    assert flatten_results_dict(results)["label_map/AJI"] == 1.0  # what BestCheckpointer looks up


def test_reset_forgets() -> None:
    evaluator = LabelMapEvaluator(NAME)
    evaluator.process([image(11)], [nothing()])
    evaluator.reset()
    evaluator.process([image(11)], [found(TRUTHS[11])])
    assert evaluator.evaluate()["label_map"]["AJI"] == 1


def test_mistakes_are_told_in_one_line() -> None:
    evaluator = LabelMapEvaluator(NAME)
    with pytest.raises(InputError, match=r"images/99\.png: evaluator_test has no image 99"):
        evaluator.process([image(99)], [nothing()])
    small = {"instances": Instances((30, 30), scores=torch.zeros(0))}
    with pytest.raises(InputError, match=r"images/11\.png: the prediction has \(30, 30\) pixels, the truth \(60, 90\)"):
        evaluator.process([image(11)], [small])
    del evaluator._truth[12]["annotations"]
    with pytest.raises(InputError, match=r"images/12\.png: evaluator_test has no annotations"):
        evaluator.process([image(12)], [nothing()])


# --- COCO AP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pasted", [False, True])
def test_perfect_predictions_score_full_ap(tmp_path: Path, pasted: bool) -> None:
    evaluator = DenseCOCOEvaluator(NAME, max_detections=1000, output_dir=tmp_path)
    for image_id, labels in TRUTHS.items():
        evaluator.process([image(image_id)], [found(labels, pasted=pasted)])
    results = evaluator.evaluate()
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AP75"] == pytest.approx(100)


def test_equal_to_upstream_below_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator_module, "faster_coco_eval", None)
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


def test_the_cap_counts_and_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    assert "24 detections reach the cap of 12" in caplog.text


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
    for module in (evaluator_module.faster_coco_eval, None):
        monkeypatch.setattr(evaluator_module, "faster_coco_eval", module)
        evaluator = DenseCOCOEvaluator(NAME, max_detections=20, output_dir=tmp_path)
        for image_id, labels in TRUTHS.items():  # some shifted away, some beyond the cap, some on nothing
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
    assert outputs[0]["instances"].has("pred_masks")  # neither takes the masks away from the other
    assert set(both.evaluate()) == {"label_map", "segm", "bbox"}


# --- Run lengths ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)), st.booleans())
def test_run_lengths_equal_pycocotools(masks: np.ndarray, solid: bool) -> None:
    masks = masks | solid
    height, width = masks.shape[1:]
    expected = mask_util.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    tight = render_windows(Instances((height, width), pred_masks=torch.from_numpy(masks)))
    for windows in ([(0, 0, mask) for mask in masks], tight):
        encoded = windows_to_rle(windows, height, width)
        assert [rle["counts"] for rle in encoded] == [rle["counts"].decode() for rle in expected]
        assert all(rle["size"] == [height, width] for rle in encoded)


def test_no_windows_no_run_lengths() -> None:
    assert windows_to_rle([], 5, 5) == []


def test_names_and_functions_agree_with_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in METRICS:
        assert f"| {name} |" in text
