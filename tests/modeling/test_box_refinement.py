from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

MASK_RCNN = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
MASK_RCNN += ["MODEL.ROI_HEADS.NAME", "RefinedBoxROIHeads", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
THREE_CLASSES = [*MASK_RCNN, "MODEL.ROI_HEADS.NUM_CLASSES", 3]


@pytest.fixture
def build(compact_cfg: Callable[..., CfgNode]) -> Callable[..., Any]:
    """``build(times, *options)``: a network in evaluation mode, whose random box head moves boxes by pixels."""

    def make(times: int, *options: Any) -> Any:
        torch.manual_seed(0)
        # Random weights are sure of nothing.
        sure = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
        model = build_model(compact_cfg("MODEL.PFFNET.BOX_REFINEMENTS", times, *sure, *options)).eval()
        torch.nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.3)
        return model

    return make


def detections(*counts: int, classes: int = 1) -> list[Instances]:
    g = torch.Generator().manual_seed(1)
    out = []
    for n in counts:
        corner = torch.rand(n, 2, generator=g) * 40
        x = Instances(
            (64, 64), pred_boxes=Boxes(torch.cat([corner, corner + 4 + torch.rand(n, 2, generator=g) * 20], 1))
        )
        x.scores, x.pred_classes = torch.rand(n, generator=g), torch.randint(classes, (n,), generator=g)
        out.append(x)
    return out


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "classes"), [([], 1), (MASK_RCNN, 1), (THREE_CLASSES, 3)], ids=["PFFNet", "Mask R-CNN", "three classes"]
)
def test_boxes_are_refined_one_by_one(build: Callable[..., Any], options: list[Any], classes: int) -> None:
    """Against a plain loop over boxes. Images without detections stay without."""
    model = build(2, *options)
    heads, features = model.roi_heads, model.backbone(torch.randn(2, 3, 64, 64) * 50)
    assert heads.box_refinements == 2
    given = detections(5, 3, classes=classes)
    corners = [x.pred_boxes.tensor.clone() for x in given]
    heads._refine_boxes(features, given)
    for i, boxes in enumerate(corners):
        own = [features[f][i : i + 1] for f in heads.box_in_features]
        for j, box in enumerate(boxes):
            all_deltas = heads.box_predictor(heads.box_head(heads.box_pooler(own, [Boxes(box[None])])))[1][0]
            deltas = all_deltas.view(classes, 4)[given[i].pred_classes[j]]
            (x1, y1, x2, y2), (dx, dy, dw, dh) = box.tolist(), (deltas / torch.tensor([10.0, 10, 5, 5])).tolist()
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            w, h = math.exp(dw) * (x2 - x1), math.exp(dh) * (y2 - y1)
            expected = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clamp(0, 64)
            torch.testing.assert_close(given[i].pred_boxes.tensor[j], expected, rtol=1e-4, atol=1e-3)
            assert not torch.allclose(expected, box, atol=0.1)
    untouched = detections(5, 3, classes=classes)[0]
    assert torch.equal(given[0].scores, untouched.scores)
    assert torch.equal(given[0].pred_classes, untouched.pred_classes)

    none = detections(0, 0)
    heads._refine_boxes(features, none)
    assert [tuple(x.pred_boxes.tensor.shape) for x in none] == [(0, 4), (0, 4)]


@torch.no_grad()
@pytest.mark.parametrize("options", [[], MASK_RCNN], ids=["PFFNet", "Mask R-CNN"])
def test_detections_are_refined_as_often_as_the_config_says(build: Callable[..., Any], options: list[Any]) -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255

    def found(times: int) -> Instances:
        model = build(times, *options)
        (instances,) = model.inference([{"image": image}], do_postprocess=False)
        if times == 0:
            features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
            model.roi_heads._refine_boxes(features, [instances])
        return instances

    by_hand, once, twice = found(0), found(1), found(2)
    assert len(by_hand) == len(once) == len(twice) > 3
    torch.testing.assert_close(by_hand.pred_boxes.tensor, once.pred_boxes.tensor)
    score = "scores" if options else "class_scores"
    torch.testing.assert_close(by_hand.get(score), twice.get(score))
    assert not torch.allclose(once.pred_boxes.tensor, twice.pred_boxes.tensor, atol=0.1)
    assert not torch.allclose(once.pred_masks, twice.pred_masks, atol=1e-3)


def test_training_does_not_refine(build: Callable[..., Any], make_batch: Callable) -> None:
    """Mask R-CNN with refined boxes has the weights and losses of Detectron2's own."""

    def losses(*options: Any) -> dict[str, torch.Tensor]:
        model = build(*options).train()
        torch.manual_seed(1)
        with EventStorage():
            return dict(model(make_batch((64, 64, 3))))

    ours = losses(2, *MASK_RCNN)
    theirs = losses(0, *MASK_RCNN, "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
