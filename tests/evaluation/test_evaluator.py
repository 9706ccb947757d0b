"""The evaluators on a small data set, from ROI masks and from pasted ones, alone and in several processes."""

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
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, print_csv_format, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes, BoxMode, Instances

from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import evaluator as evaluator_module
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.evaluator import DenseCOCOEvaluator, LabelMapEvaluator, VOCEvaluator
from pffnet_d2.evaluation.scores import METRICS
from pffnet_d2.masks.coco import label_map_to_annotations
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.masks.instance_mask import InstanceMask, InstanceMasks
from pffnet_d2.masks.paste import instance_masks
from pffnet_d2.visualization.overlay import side_by_side

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
    evaluator = LabelMapEvaluator(NAME, rule=LabelMapRule(score_threshold=0.5), output_dir=tmp_path / "new" / "folder")
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
    # The image without objects is none of them. That of the best, which is the median too, cannot be read.
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
        # Both saw the empty image: it counts once.
        evaluator.process([image(12)], [nothing()])
        parts.append(evaluator._scored)
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


# --- VOC AP ---------------------------------------------------------------------------------------------------------


def detected(*detections: tuple[float, tuple[int, int, int, int]]) -> dict:
    """Instances of (score, (x0, y0, x1, y1)) rectangles, as whole masks."""
    masks = [InstanceMask(y0, x0, np.ones((y1 - y0, x1 - x0), bool)) for _, (x0, y0, x1, y1) in detections]
    instances = Instances(SIZE, scores=torch.tensor([score for score, _ in detections]))
    instances.pred_masks = InstanceMasks(masks, SIZE)
    return {"instances": instances}


def voc(found: dict[int, dict], **options: object) -> dict[str, float]:
    evaluator = VOCEvaluator(NAME, **options)
    for image_id, output in found.items():
        evaluator.process([image(image_id)], [output])
    return evaluator.evaluate()["voc"]


def shrunk(truth: int, pixels: int) -> tuple[int, int, int, int]:
    """The truth of this number (from 0) without its lowest rows: IoU of mask and box (8 - pixels) / 8."""
    y, x = 10 * (truth % 3) + 2, 10 * (truth // 3) + 1
    return x, y, x + 8, y + 8 - pixels


@pytest.mark.parametrize("pasted", [False, True])
def test_perfect_predictions_score_full_voc_ap(tmp_path: Path, pasted: bool) -> None:
    result = voc({i: found(labels, pasted=pasted) for i, labels in TRUTHS.items()}, output_dir=tmp_path / "new")
    assert result == dict.fromkeys(
        ["mask_AP", "mask_AP50", "mask_AP75", "box_AP", "box_AP50", "box_AP75"], pytest.approx(100)
    )
    assert json.loads((tmp_path / "new" / "voc.json").read_text()) == result


def test_voc_ap_by_hand() -> None:
    # 36 objects. By score: a hit, a duplicate of it, a miss on the empty image, a hit of IoU 6/8, a hit of IoU 4/8.
    result = voc(
        {
            11: detected((0.9, shrunk(0, 0)), (0.8, shrunk(0, 1)), (0.6, shrunk(1, 2))),
            12: detected((0.7, (0, 0, 9, 9))),
            13: detected((0.5, shrunk(4, 4))),
        }
    )
    # A mask of IoU exactly 0.5 or 0.75 is no hit, a box is. Precision 1, 2/4, 3/5 at the hits, made monotonous.
    assert result["mask_AP50"] == pytest.approx(100 * (1 + 2 / 4) / 36)
    assert result["mask_AP75"] == pytest.approx(100 * 1 / 36)
    assert result["box_AP50"] == pytest.approx(100 * (1 + 3 / 5 + 3 / 5) / 36)
    assert result["box_AP75"] == pytest.approx(100 * (1 + 2 / 4) / 36)
    # Above 0.75 the first alone counts: of ten thresholds, 5 with two mask hits, and of boxes 1, 5 and 4.
    assert result["mask_AP"] == pytest.approx(100 * (5 * 1.5 + 5 * 1) / 10 / 36)
    assert result["box_AP"] == pytest.approx(100 * (1 * 2.2 + 5 * 1.5 + 4 * 1) / 10 / 36)


def test_boxes_are_those_of_the_masks() -> None:
    corner = np.zeros((8, 8), bool)
    corner[0, :] = corner[:, 0] = True
    output = detected((0.9, shrunk(0, 0)))
    output["instances"].pred_masks = InstanceMasks([InstanceMask(2, 1, corner)], SIZE)
    result = voc({11: output, 12: nothing(), 13: nothing()})
    assert result["mask_AP50"] == 0
    assert result["box_AP"] == pytest.approx(100 / 36)


def test_equal_scores_go_by_the_data_sets_order(monkeypatch: pytest.MonkeyPatch) -> None:
    hit, miss = detected((0.5, shrunk(0, 0))), detected((0.5, (80, 50, 90, 60)))
    first, last = {11: hit, 13: miss}, {13: miss, 11: hit}
    assert voc(first)["mask_AP"] == voc(last)["mask_AP"] == pytest.approx(100 / 36)
    assert voc({11: miss, 13: hit})["mask_AP"] == pytest.approx(50 / 36)
    # Within an image by the order of the detections.
    two = detected((0.5, (80, 50, 90, 60)), (0.5, shrunk(0, 0)))
    assert voc({11: two})["mask_AP"] == pytest.approx(50 / 12)
    # And whatever ranks saw them; an image seen twice counts once.
    parts = []
    for image_id, output in ((13, miss), (11, hit)):
        evaluator = VOCEvaluator(NAME)
        evaluator.process([image(image_id)], [output])
        evaluator.process([image(12)], [nothing()])
        parts.append(evaluator._found)
    monkeypatch.setattr("pffnet_d2.evaluation.evaluator.comm.gather", lambda found, dst: parts)
    assert evaluator.evaluate()["voc"]["mask_AP"] == pytest.approx(100 / 36)
    monkeypatch.setattr("pffnet_d2.evaluation.evaluator.comm.is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_voc_ap_at_the_edges(caplog: pytest.LogCaptureFixture) -> None:
    assert set(voc({12: nothing()}).values()) == {100}  # neither objects nor detections
    assert set(voc({11: nothing()}).values()) == {0}
    with caplog.at_level(logging.WARNING):
        assert set(voc({12: detected((0.9, (0, 0, 5, 5)))}).values()) == {0}
    assert "1 of 3 images were scored" in caplog.text
    with pytest.raises(InputError, match=r"images/99\.png: evaluator_test has no image 99"):
        VOCEvaluator(NAME).process([image(99)], [nothing()])


def test_overlapping_truths_count_whole_and_crowds_do_not() -> None:
    dicts = DatasetCatalog.get(NAME)
    whole, part = np.zeros(SIZE, np.int32), np.zeros(SIZE, np.int32)
    whole[2:22, 2:22], part[4:10, 4:10] = 1, 1
    crowd = label_map_to_annotations(np.roll(whole, 40, axis=1), 11)[0] | {"iscrowd": 1}
    dicts[0]["annotations"] = [*label_map_to_annotations(whole, 11), *label_map_to_annotations(part, 11), crowd]
    both = detected((0.9, (2, 2, 22, 22)), (0.8, (4, 4, 10, 10)))
    assert voc({11: both})["mask_AP"] == pytest.approx(100)


def test_voc_ap_equals_the_function_on_label_maps() -> None:
    def images() -> Iterator[tuple]:
        for labels in TRUTHS.values():
            instances = found(np.roll(labels, (1, 1), (0, 1)), keep=20)["instances"]
            yield labels, instance_masks(instances), instances.scores.tolist()

    result = voc({i: found(np.roll(labels, (1, 1), (0, 1)), keep=20) for i, labels in TRUTHS.items()})
    assert result["mask_AP50"] == pytest.approx(100 * metrics.voc_average_precision(images()))
    assert 0 < result["mask_AP50"] < 100
    assert result["mask_AP75"] == 0


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
