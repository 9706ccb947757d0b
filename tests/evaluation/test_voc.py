"""Pascal VOC's AP of masks and boxes."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog
from detectron2.structures import Instances

from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.voc import VOCEvaluator
from pffnet_d2.masks.coco import label_map_to_annotations
from pffnet_d2.masks.instance_mask import InstanceMask, InstanceMasks
from pffnet_d2.masks.paste import instance_masks
from tests.evaluation.squares import NAME, SIZE, TRUTHS, found, image, nothing, registered


@pytest.fixture(autouse=True)
def data_set() -> Iterator[None]:
    with registered():
        yield


def detected(*detections: tuple[float, tuple[int, int, int, int]]) -> dict:
    """Instances of (score, (x0, y0, x1, y1)) rectangles, as full masks."""
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
    """The truth with this number (from 0) without its lowest rows: mask and box have IoU (8 - pixels) / 8."""
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
    # With an IoU of exactly 0.5 or 0.75, a mask is not a hit, but a box is. Monotone precision at hits: 1, 2/4, 3/5.
    assert result["mask_AP50"] == pytest.approx(100 * (1 + 2 / 4) / 36)
    assert result["mask_AP75"] == pytest.approx(100 * 1 / 36)
    assert result["box_AP50"] == pytest.approx(100 * (1 + 3 / 5 + 3 / 5) / 36)
    assert result["box_AP75"] == pytest.approx(100 * (1 + 2 / 4) / 36)
    # Above 0.75 only the first is a hit: of ten thresholds, 5 have two mask hits; of boxes 1, 5 and 4.
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


def test_equal_scores_follow_the_order_of_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    hit, miss = detected((0.5, shrunk(0, 0))), detected((0.5, (80, 50, 90, 60)))
    first, last = {11: hit, 13: miss}, {13: miss, 11: hit}
    assert voc(first)["mask_AP"] == voc(last)["mask_AP"] == pytest.approx(100 / 36)
    assert voc({11: miss, 13: hit})["mask_AP"] == pytest.approx(50 / 36)
    # Within an image they follow the order of the detections.
    two = detected((0.5, (80, 50, 90, 60)), (0.5, shrunk(0, 0)))
    assert voc({11: two})["mask_AP"] == pytest.approx(50 / 12)
    # This holds for any distribution over ranks; an image seen twice counts once.
    parts = []
    for image_id, output in ((13, miss), (11, hit)):
        evaluator = VOCEvaluator(NAME)
        evaluator.process([image(image_id)], [output])
        evaluator.process([image(12)], [nothing()])
        parts.append(evaluator._found)
    monkeypatch.setattr("pffnet_d2.evaluation.truth.comm.gather", lambda found, dst: parts)
    assert evaluator.evaluate()["voc"]["mask_AP"] == pytest.approx(100 / 36)
    monkeypatch.setattr("pffnet_d2.evaluation.truth.comm.is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_voc_ap_at_the_edges(caplog: pytest.LogCaptureFixture) -> None:
    assert set(voc({12: nothing()}).values()) == {100}  # neither objects nor detections
    assert set(voc({11: nothing()}).values()) == {0}
    with caplog.at_level(logging.WARNING):
        assert set(voc({12: detected((0.9, (0, 0, 5, 5)))}).values()) == {0}
    assert "1 of 3 images were scored" in caplog.text
    with pytest.raises(InputError, match=r"images/99\.png: evaluator_test has no image 99"):
        VOCEvaluator(NAME).process([image(99)], [nothing()])


def test_overlapping_truths_are_complete_and_crowds_do_not_count() -> None:
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
