"""Panoptic and semantic scores of a model's outputs, by hand."""

from __future__ import annotations

import json
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
from detectron2.evaluation import SemSegEvaluator
from detectron2.structures import BoxMode

from pffnet_d2 import add_pffnet_config
from pffnet_d2.engine.trainer import Trainer
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.panoptic import PanopticEvaluator
from pffnet_d2.masks.coco import label_map_to_annotations

NAME = "panoptic_test"
# Objects 1 and 2 are of class 0, object 3 of class 1; the second image is empty.
TRUTHS = {1: np.array([[1, 1, 0, 2, 2, 0, 3, 3]] * 4, np.int32), 2: np.zeros((4, 8), np.int32)}


@pytest.fixture(autouse=True)
def data_set(tmp_path: Path) -> Iterator[None]:
    dicts = []
    for image_id, labels in TRUTHS.items():
        annotations = label_map_to_annotations(labels, image_id)
        for annotation, category in zip(annotations, (0, 0, 1), strict=False):
            annotation |= {"category_id": category, "bbox_mode": BoxMode.XYWH_ABS}
        semantic = tmp_path / f"semantic_{image_id}.png"
        Image.fromarray((labels > 0).astype(np.uint8)).save(semantic)
        dicts.append(
            {
                "file_name": f"{image_id}.png",
                "image_id": image_id,
                "height": 4,
                "width": 8,
                "annotations": annotations,
                "sem_seg_file_name": str(semantic),
            }
        )
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).set(
        thing_classes=["round", "long"], stuff_classes=["background", "cell"], ignore_label=255
    )
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def image(image_id: int) -> dict:
    return {"image_id": image_id, "file_name": f"{image_id}.png", "height": 4, "width": 8}


def segments(row: list[int], categories: dict[int, int], stuff: tuple[int, ...] = ()) -> dict:
    ids = torch.tensor([row] * 4, dtype=torch.int32)
    infos = [
        {"id": i, "category_id": category, "isthing": i not in stuff, "area": int((ids == i).sum())}
        for i, category in categories.items()
    ]
    return {"panoptic_seg": (ids, infos)}


def test_counts_are_pooled_over_images_and_classes_averaged(tmp_path: Path) -> None:
    evaluator = PanopticEvaluator(NAME, output_dir=tmp_path / "new")
    # 7 is object 1; 3 covers two thirds of object 2 and the gap; 9 lies on object 3 but is of the other class.
    evaluator.process([image(1)], [segments([7, 7, 3, 3, 3, 0, 9, 9], {7: 0, 3: 0, 9: 0})])
    # A false positive of class 1, and background as a segment of stuff, which is not a thing.
    evaluator.process([image(2)], [segments([5, 5, 4, 4, 4, 4, 4, 4], {5: 1, 4: 0}, stuff=(4,))])
    result = evaluator.evaluate()["panoptic_seg"]
    # Class 0: IoU 1 and 2/3, one false positive (9). Class 1: missed, and a false positive.
    sq, rq = (1 + 2 / 3) / 2, 2 / (2 + 0.5)
    assert result == {
        "PQ": pytest.approx(50 * sq * rq),
        "SQ": pytest.approx(50 * sq),
        "RQ": pytest.approx(50 * rq),
        "PQ-round": pytest.approx(100 * sq * rq),
        "PQ-long": 0,
    }
    assert json.loads((tmp_path / "new" / "panoptic_seg.json").read_text()) == dict(result)
    evaluator.reset()
    assert math.isnan(evaluator.evaluate()["panoptic_seg"]["PQ"])


def test_counts_of_ranks_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    perfect = segments([1, 1, 0, 2, 2, 0, 3, 3], {1: 0, 2: 0, 3: 1})
    evaluator = PanopticEvaluator(NAME)
    evaluator.process([image(1)], [perfect])
    other = PanopticEvaluator(NAME)
    other.process([image(2)], [segments([1, 1, 0, 0, 0, 0, 0, 0], {1: 1})])
    parts = [evaluator._counts, other._counts]
    monkeypatch.setattr("pffnet_d2.evaluation.panoptic.comm.gather", lambda counts, dst: parts)
    result = evaluator.evaluate()["panoptic_seg"]
    assert result["PQ-round"] == 100
    assert result["PQ-long"] == pytest.approx(100 * 1 / 1.5)
    monkeypatch.setattr("pffnet_d2.evaluation.panoptic.comm.is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_mistakes_end_in_one_line() -> None:
    evaluator = PanopticEvaluator(NAME)
    with pytest.raises(InputError, match=r"1\.png: the prediction has \(2, 8\) pixels, the truth \(4, 8\)"):
        evaluator.process([image(1)], [{"panoptic_seg": (torch.zeros(2, 8, dtype=torch.int32), [])}])
    with pytest.raises(InputError, match=r"5\.png: panoptic_test has no image 5"):
        evaluator.process([image(5)], [segments([0] * 8, {})])


def test_semantic_scores_of_logits() -> None:
    evaluator = SemSegEvaluator(NAME)
    evaluator.reset()
    foreground = torch.tensor([[1.0, 1, 1, 1, 1, -1, 1, 1]] * 4)  # the first gap is predicted as cell
    evaluator.process([image(1)], [{"sem_seg": torch.stack([-foreground, foreground])}])
    result = evaluator.evaluate()["sem_seg"]
    assert result["IoU-cell"] == pytest.approx(100 * 6 / 7)
    assert result["IoU-background"] == pytest.approx(100 * 1 / 2)
    assert result["mIoU"] == pytest.approx(50 * (6 / 7 + 1 / 2))


@pytest.mark.parametrize("outputs", [["instances"], ["instances", "semantic"], ["instances", "semantic", "panoptic"]])
def test_the_engine_scores_the_outputs_of_the_model(outputs: list[str], tmp_path: Path) -> None:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.MODEL.PFFNET.OUTPUTS = outputs
    names = [type(evaluator).__name__ for evaluator in Trainer.build_evaluator(cfg, NAME)._evaluators]
    assert (
        names == ["LabelMapEvaluator", "DenseCOCOEvaluator", "SemSegEvaluator", "PanopticEvaluator"][: len(outputs) + 1]
    )


def test_the_engine_adds_voc_ap_by_key(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.PFFNET.VOC_AP = True
    names = [type(evaluator).__name__ for evaluator in Trainer.build_evaluator(cfg, NAME)._evaluators]
    assert names == ["LabelMapEvaluator", "DenseCOCOEvaluator", "VOCEvaluator"]
