from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from pffnet_d2.modeling import roi_heads as roi_heads_module
from pffnet_d2.modeling.fusion import fuse
from pffnet_d2.modeling.roi_heads import PFFNetROIHeads, best_of_each_object, set_fusion_order


def heads_and_features(compact_cfg: Callable, *options: Any) -> tuple[PFFNetROIHeads, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = build_model(compact_cfg(*options)).eval()
    with torch.no_grad():
        features = model.backbone(torch.randn(2, 3, 64, 64) * 50)
    return model.roi_heads, features


def detections(*counts: int) -> list[Instances]:
    g = torch.Generator().manual_seed(1)
    out = []
    for n in counts:
        corner = torch.rand(n, 2, generator=g) * 40
        boxes = torch.cat([corner, corner + 4 + torch.rand(n, 2, generator=g) * 20], 1)
        out.append(
            Instances(
                (64, 64),
                pred_boxes=Boxes(boxes),
                scores=torch.rand(n, generator=g),
                pred_classes=torch.zeros(n, dtype=torch.long),
            )
        )
    return out


def test_chunks_change_nothing(compact_cfg: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    heads, features = heads_and_features(compact_cfg)
    with torch.no_grad():
        whole = heads.forward_with_given_boxes(features, detections(7, 9))
        monkeypatch.setattr(roi_heads_module, "ROIS_PER_CHUNK", 3)
        chunked = heads.forward_with_given_boxes(features, detections(7, 9))
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a.pred_masks, b.pred_masks)
        torch.testing.assert_close(a.mask_quality, b.mask_quality)


def test_scores_are_the_product_and_never_multiplied_twice(compact_cfg: Callable) -> None:
    heads, features = heads_and_features(compact_cfg)
    given = detections(4, 0)
    with torch.no_grad():
        once = heads.forward_with_given_boxes(features, given)
        first = once[0].scores.clone()
        again = heads.forward_with_given_boxes(features, once)
    class_scores = detections(4, 0)[0].scores
    assert torch.equal(once[0].class_scores, class_scores)
    assert torch.equal(first, class_scores * once[0].mask_quality)
    assert torch.equal(again[0].scores, first)
    assert again[1].pred_masks.shape == (0, 1, 28, 28)
    assert len(again[1].scores) == len(again[1].mask_quality) == 0


def test_without_quality_head_scores_are_class_scores(compact_cfg: Callable) -> None:
    heads, features = heads_and_features(compact_cfg, "MODEL.ROI_MASK_QUALITY_HEAD.NAME", "")
    with torch.no_grad():
        (x, _) = heads.forward_with_given_boxes(features, detections(3, 1))
    assert torch.equal(x.scores, x.class_scores)
    assert not x.has("mask_quality")


def train_rois(compact_cfg: Callable, batch: list[dict[str, Any]], *options: Any) -> list[Instances]:
    torch.manual_seed(0)
    model = build_model(compact_cfg(*options)).train()
    images = model.preprocess_image(batch)
    targets = [x["instances"] for x in batch]
    with EventStorage():
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, targets)
        instances, losses = model.roi_heads(images, features, proposals, targets)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_mask_quality"}
    return instances


def test_training_returns_positive_rois_with_masks_and_boxes(compact_cfg: Callable, make_batch: Callable) -> None:
    with_objects, empty = train_rois(compact_cfg, make_batch((96, 96, 5), (96, 96, 0)))
    assert len(empty) == 0
    assert empty.mask_logits.shape == (0, 2, 28, 28)
    assert empty.fusion_boxes.shape == (0, 4)
    assert len(with_objects) >= 5  # the ground truth boxes are among the proposals
    assert (with_objects.gt_classes == 0).all()
    assert with_objects.mask_logits.shape == (len(with_objects), 2, 28, 28)
    assert torch.equal(with_objects.fusion_boxes, with_objects.proposal_boxes.tensor.clamp(0, 96))
    assert not with_objects.fusion_boxes.requires_grad


def test_predicted_boxes_are_the_regressed_proposals(compact_cfg: Callable, make_batch: Callable) -> None:
    (rois,) = train_rois(compact_cfg, make_batch((96, 96, 5)), "MODEL.PFFNET.FUSION.BOXES", "predicted")
    assert rois.fusion_boxes.shape == rois.proposal_boxes.tensor.shape
    assert not torch.equal(rois.fusion_boxes, rois.proposal_boxes.tensor)
    assert not rois.fusion_boxes.requires_grad
    assert ((rois.fusion_boxes >= 0) & (rois.fusion_boxes <= 96)).all()


def test_best_roi_of_each_object(compact_cfg: Callable, make_batch: Callable) -> None:
    rois = Instances(
        (8, 8),
        gt_index=torch.tensor([2, 0, 2, 0, 1]),
        foreground_score=torch.tensor([0.3, 0.9, 0.8, 0.9, 0.1]),
        order=torch.arange(5),
    )
    assert best_of_each_object(rois).order.tolist() == [1, 2, 4]
    assert len(best_of_each_object(rois[:0])) == 0

    (trained,) = train_rois(compact_cfg, make_batch((96, 96, 5)), "MODEL.PFFNET.FUSION.ROIS", "best")
    assert sorted(trained.gt_index.tolist()) == [0, 1, 2, 3, 4]


def proposals_and_targets() -> tuple[Instances, Instances]:
    """Six proposals on three levels, two of them with equal scores, and two objects."""
    sides = torch.tensor([500.0, 20.0, 30.0, 120.0, 25.0, 40.0])
    proposals = Instances(
        (1000, 1000),
        proposal_boxes=Boxes(torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)),
        objectness_logits=torch.tensor([5.0, 1.0, 4.0, 9.0, 3.0, 1.0]),
    )
    targets = Instances((1000, 1000), gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 300.0, 300.0]])))
    return proposals, targets


def test_fusion_order_is_level_then_score_then_the_truth() -> None:
    proposals, targets = proposals_and_targets()
    pooler = ROIPooler(14, (1 / 4, 1 / 8, 1 / 16, 1 / 32), 2, "ROIAlignV2")
    set_fusion_order([proposals], [targets], pooler)
    assert proposals.fusion_order.argsort().tolist() == [2, 4, 1, 5, 3, 0]
    assert targets.fusion_order.tolist() == [6, 7]
    set_fusion_order([proposals[:0]], [targets[:0]], pooler)


@pytest.mark.parametrize("which", ["all", "best"])
def test_training_returns_the_rois_in_the_fusion_order(compact_cfg: Callable, make_batch: Callable, which: str) -> None:
    """For any order in which sampling draws them."""
    images = train_rois(compact_cfg, make_batch((96, 96, 5), (96, 96, 0)), "MODEL.PFFNET.FUSION.ROIS", which)
    order = images[0].fusion_order
    assert len(order) >= 5
    assert torch.equal(order, order.sort().values)


def test_true_boxes_win_in_replacement_fusion(compact_cfg: Callable, make_batch: Callable) -> None:
    """For any order of sampling, each pixel of an object's true box has the mask of a true box."""
    every = ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100_000, "MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.1])
    fusion = ("MODE", "replacement", "CHANNELS", "per_channel", "POST_CONVS", False)
    keys = (f"MODEL.PFFNET.FUSION.{x}" if i % 2 == 0 else x for i, x in enumerate(fusion))
    torch.manual_seed(0)
    model = build_model(compact_cfg(*every, *keys)).train()
    batch = make_batch((96, 96, 5))
    seen: list[Instances] = []
    model.fusion_head.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1]))
    losses = []
    for seed in range(4):
        torch.manual_seed(seed)
        with EventStorage():
            losses.append(model(batch)["loss_sem_seg_fusion"].item())
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)

    truth = batch[0]["instances"].gt_boxes.tensor
    for rois in seen:
        assert len(rois) > len(truth)
        numbers = torch.arange(1.0, len(rois) + 1)[:, None, None, None].expand(-1, 2, 28, 28)
        fused = fuse(
            torch.zeros(1, 2, 96, 96), numbers, rois.fusion_boxes, torch.zeros(len(rois)).long(), "replacement"
        )
        for x1, y1, x2, y2 in truth.round().int().tolist():
            assert (fused[0, :, y1:y2, x1:x2] > len(rois) - len(truth)).all()
        assert torch.equal(rois.fusion_boxes[-len(truth) :], truth)


@pytest.mark.parametrize(("key", "value"), [("BOXES", "anchors"), ("ROIS", "some")])
def test_unknown_choice_names_the_key(compact_cfg: Callable, key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"FUSION.{key} '{value}' is not one of"):
        build_model(compact_cfg(f"MODEL.PFFNET.FUSION.{key}", value))
