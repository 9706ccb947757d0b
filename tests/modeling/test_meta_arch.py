from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.utils.events import EventStorage

from pffnet_d2.errors import InputError
from pffnet_d2.masks.compose import LabelMapRule, instances_to_label_map
from pffnet_d2.modeling.fusion import fuse
from pffnet_d2.modeling.meta_arch import consistency_loss
from pffnet_d2.modeling.semantic_support import semantic_support

ALL_LOSSES = {
    "loss_rpn_cls",
    "loss_rpn_loc",
    "loss_cls",
    "loss_box_reg",
    "loss_mask",
    "loss_mask_quality",
    "loss_sem_seg",
    "loss_sem_seg_fusion",
    "loss_consistency",
}


def build(compact_cfg: Callable, *options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(compact_cfg(*options))


def train_once(model: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    model.train()
    torch.manual_seed(1)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize(
    "shapes",
    [
        [(96, 96, 5), (96, 96, 4)],
        [(70, 101, 3), (96, 64, 2)],  # not square, not multiples of 32, of different sizes
        [(96, 96, 0), (96, 96, 3)],
        [(64, 96, 0)],  # no object and therefore no positive ROI
    ],
)
def test_losses_are_finite_and_every_parameter_has_a_gradient(
    compact_cfg: Callable, make_batch: Callable, shapes: list[tuple[int, int, int]]
) -> None:
    """A parameter without a gradient would stop distributed training."""
    model = build(compact_cfg)
    losses = train_once(model, make_batch(*shapes))
    assert set(losses) == ALL_LOSSES
    assert all(v.isfinite() for v in losses.values())
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_weights_scale_their_losses(compact_cfg: Callable, make_batch: Callable) -> None:
    batch = make_batch((96, 96, 4))
    keys = {
        "loss_mask": "MODEL.PFFNET.MASK_LOSS_WEIGHT",
        "loss_mask_quality": "MODEL.ROI_MASK_QUALITY_HEAD.LOSS_WEIGHT",
        "loss_sem_seg": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        "loss_sem_seg_fusion": "MODEL.PFFNET.FUSION.LOSS_WEIGHT",
        "loss_consistency": "MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT",
    }
    ones = train_once(build(compact_cfg, *chain(*((k, 1.0) for k in keys.values()))), batch)
    threes = train_once(build(compact_cfg, *chain(*((k, 3.0) for k in keys.values()))), batch)
    for name in keys:
        torch.testing.assert_close(threes[name], 3 * ones[name], rtol=1e-4, atol=1e-7)


def test_default_weights_are_the_papers(compact_cfg: Callable) -> None:
    model = build(compact_cfg)
    assert model.sem_seg_head.loss_weight == model.fusion_head.loss_weight == 0.1  # alpha_1
    assert model.consistency_loss_weight == 1.0  # alpha_2


def test_fusion_trains_the_mask_head_unless_detached(compact_cfg: Callable, make_batch: Callable) -> None:
    """The mask head's gradient from the fusion loss alone."""
    others = ["MODEL.PFFNET.MASK_LOSS_WEIGHT", 0.0, "MODEL.ROI_MASK_QUALITY_HEAD.LOSS_WEIGHT", 0.0]
    for detach in (False, True):
        model = build(compact_cfg, *others, "MODEL.PFFNET.FUSION.DETACH", detach)
        train_once(model, make_batch((96, 96, 5)))
        grad = model.roi_heads.mask_head.predictor.weight.grad
        assert bool((grad[1] != 0).any()) is not detach
        assert (grad[0] == 0).all()  # P_i, the foreground, does not use the background channel


def test_padding_does_not_count_in_the_semantic_losses(compact_cfg: Callable, make_batch: Callable) -> None:
    model = build(compact_cfg)
    batch = make_batch((70, 96, 3), (96, 50, 2))
    targets = model._semantic_targets(batch, model.preprocess_image(batch))
    assert targets.shape == (2, 96, 96)
    assert (targets[0, 70:] == 255).all()
    assert (targets[1, :, 50:] == 255).all()
    assert torch.equal(targets[0, :70], batch[0]["sem_seg"])


def test_consistency_loss_by_hand() -> None:
    """p_sem = 1/2 and p_ins = 3/4 on one valid pixel, equal on another, anything on padding: (1/4)^2 / 2."""
    s_sem, s_ins = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    s_ins[0, 1, 0, 0] = torch.tensor(3.0).log()
    s_ins[0, 1, 0, 2] = 50.0
    loss = consistency_loss(s_sem, s_ins, torch.tensor([[[True, True, False]]]))
    assert loss.item() == pytest.approx((1 / 4) ** 2 / 2)
    assert consistency_loss(s_sem, s_ins, torch.zeros(1, 1, 3, dtype=torch.bool)).item() == 0


def test_heads_can_be_left_out(compact_cfg: Callable, make_batch: Callable) -> None:
    """Cell R-CNN has no fusion; [V2] Ab1 has fusion without the semantic branch."""
    batch = make_batch((96, 96, 3))
    alone = ("MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT", 0.0)
    no_fusion = train_once(build(compact_cfg, *alone, "MODEL.PFFNET.FUSION.NAME", ""), batch)
    assert set(no_fusion) == ALL_LOSSES - {"loss_sem_seg_fusion", "loss_consistency"}
    no_semantic = train_once(build(compact_cfg, *alone, "MODEL.SEM_SEG_HEAD.NAME", ""), batch)
    assert set(no_semantic) == ALL_LOSSES - {"loss_sem_seg", "loss_consistency"}
    no_consistency = train_once(build(compact_cfg, *alone), batch)
    assert set(no_consistency) == ALL_LOSSES - {"loss_consistency"}


@torch.no_grad()
def infer(model: torch.nn.Module, batch: list[dict[str, Any]], paste: bool = True) -> list[dict[str, Any]]:
    images = [{k: v for k, v in x.items() if k in ("image", "height", "width")} for x in batch]
    return model.eval()(images, paste_masks=paste)


# Random weights give all scores near 1/2; a low threshold keeps some detections.
EAGER = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20)


def test_instances_pasted_or_not(compact_cfg: Callable, make_batch: Callable) -> None:
    """ROI masks pasted afterwards equal the pasted masks, in the size of the original image."""
    model = build(compact_cfg, *EAGER)
    batch = make_batch((70, 96, 3), (64, 64, 0))
    batch[0].update(height=140, width=192)  # the network gets the image at half its size
    pasted, held = infer(model, batch, paste=True), infer(model, batch, paste=False)
    for a, b in zip(pasted, held, strict=True):
        a, b = a["instances"], b["instances"]
        assert len(a) > 0
        assert set(a.get_fields()) == set(b.get_fields()) == {
            "pred_boxes", "pred_classes", "class_scores", "mask_quality", "scores", "pred_masks",
        }  # fmt: skip
        assert a.pred_masks.shape == (len(a), *a.image_size)
        assert a.pred_masks.dtype == torch.bool
        assert b.pred_masks.shape == (len(b), 1, 28, 28)
        assert b.pred_masks.dtype == torch.float32
        torch.testing.assert_close(b.scores, b.class_scores * b.mask_quality)
        again = detector_postprocess(b, *b.image_size)
        assert torch.equal(again.pred_masks, a.pred_masks)
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    assert pasted[0]["instances"].image_size == (140, 192)


def test_an_image_gives_the_same_alone_and_in_a_batch(compact_cfg: Callable, make_batch: Callable) -> None:
    model = build(compact_cfg, *EAGER)
    batch = make_batch((96, 96, 3), (96, 96, 5))
    together, alone = infer(model, batch), infer(model, batch[1:])
    a, b = together[1]["instances"], alone[0]["instances"]
    assert len(a) == len(b)
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-5)


def test_no_detection(compact_cfg: Callable, make_batch: Callable) -> None:
    model = build(compact_cfg, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.9999)
    for paste, shape in ((True, (0, 64, 64)), (False, (0, 1, 28, 28))):
        (result,) = infer(model, make_batch((64, 64, 0)), paste)
        assert result["instances"].pred_masks.shape == shape
        assert len(result["instances"].mask_quality) == 0


@pytest.mark.parametrize(
    ("outputs", "ran"),
    [(["instances"], []), (["semantic", "panoptic"], ["gcn"]), (["semantic_fused", "panoptic"], ["fusion"])],
)
def test_a_branch_runs_only_when_asked_for(
    compact_cfg: Callable, make_batch: Callable, outputs: list[str], ran: list[str]
) -> None:
    calls: list[str] = []
    model = build(compact_cfg, *EAGER, "MODEL.PFFNET.OUTPUTS", outputs)
    model.sem_seg_head.register_forward_hook(lambda *_: calls.append("gcn"))
    model.fusion_head.register_forward_hook(lambda *_: calls.append("fusion"))
    (result,) = infer(model, make_batch((70, 96, 3)))
    assert calls == ran
    assert set(result) == {"instances"} | ({"sem_seg", "panoptic_seg"} if ran else set())
    assert not result["instances"].has("mask_logits")
    if not ran:
        return
    assert result["sem_seg"].shape == (2, 70, 96)
    segments, infos = result["panoptic_seg"]
    expected = instances_to_label_map(result["instances"], model.label_map)
    assert np.array_equal(segments.numpy(), expected)
    assert [i["id"] for i in infos] == list(range(1, expected.max() + 1))
    assert [i["area"] for i in infos] == np.bincount(expected.ravel())[1:].tolist()


@torch.no_grad()
def test_the_fused_map_uses_detections_above_beta_with_the_best_last(
    compact_cfg: Callable, make_batch: Callable
) -> None:
    fusion = ("MODE", "replacement", "CHANNELS", "per_channel", "POST_CONVS", False)
    keys = (f"MODEL.PFFNET.FUSION.{x}" if i % 2 == 0 else x for i, x in enumerate(fusion))
    model = build(compact_cfg, *EAGER, *keys, "MODEL.PFFNET.OUTPUTS", ["semantic_fused"])
    (image,) = batch = make_batch((64, 96, 3))
    (raw,) = model.eval().inference(batch, do_postprocess=False)
    beta = raw.class_scores.median().item()
    model.label_map = LabelMapRule(score_threshold=beta)
    (result,) = infer(model, [{"image": image["image"]}])

    kept = [i for i in raw.scores.argsort().tolist() if raw.class_scores[i] > beta]
    assert 0 < len(kept) < len(raw)
    f0 = model.fusion_head.f0(model.backbone(model.preprocess_image(batch).tensor)["p2"])
    expected = fuse(
        f0, raw.mask_logits[kept], raw.pred_boxes.tensor[kept], torch.zeros(len(kept)).long(), "replacement"
    )
    torch.testing.assert_close(result["sem_seg"], expected[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_class_scores_are_multiplied_by_the_semantic_support(compact_cfg: Callable, make_batch: Callable) -> None:
    batch = make_batch((64, 96, 3), (96, 70, 2))
    plain = build(compact_cfg, *EAGER).eval().inference(batch, do_postprocess=False)
    model = build(compact_cfg, *EAGER, "MODEL.PFFNET.SEMANTIC_POWER", 0.5).eval()
    rescored = model.inference(batch, do_postprocess=False)
    features = model.backbone(model.preprocess_image(batch).tensor)
    support = semantic_support(model.sem_seg_head(features, None)[0], plain)
    for before, after, own in zip(plain, rescored, support, strict=True):
        assert len(before) == len(after) > 0
        torch.testing.assert_close(after.class_scores, before.class_scores * own.sqrt())
        assert torch.equal(after.scores, before.scores)


@pytest.mark.parametrize("paste", [True, False])
def test_panoptic_output_of_a_resized_image(compact_cfg: Callable, make_batch: Callable, paste: bool) -> None:
    """Detectron2 scales boxes in place: instances and segments must be scaled only once."""
    model = build(compact_cfg, *EAGER, "MODEL.PFFNET.OUTPUTS", ["instances", "panoptic"])
    batch = make_batch((70, 96, 3))
    batch[0].update(height=140, width=192)
    (result,) = infer(model, batch, paste)
    segments, _ = result["panoptic_seg"]
    assert np.array_equal(segments.numpy(), instances_to_label_map(result["instances"], model.label_map))
    assert segments.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("PFFNET.OUTPUTS", ["boxes"]), r"OUTPUTS \['boxes'\] is unknown; choose from"),
        (
            ("PFFNET.OUTPUTS", ["semantic", "semantic_fused"]),
            "OUTPUTS names two semantic maps; keep semantic or semantic_fused",
        ),
        (
            ("PFFNET.OUTPUTS", ["semantic"], "SEM_SEG_HEAD.NAME", ""),
            r"semantic without its branch; set MODEL\.SEM_SEG_HEAD\.NAME GCNHead",
        ),
        (
            ("PFFNET.OUTPUTS", ["semantic_fused"], "PFFNET.FUSION.NAME", ""),
            r"semantic_fused without its branch; set MODEL\.PFFNET\.FUSION\.NAME RAFFHead",
        ),
        (("SEM_SEG_HEAD.NAME", ""), r"one is empty; set MODEL\.PFFNET\.CONSISTENCY_LOSS_WEIGHT 0\.0"),
        (("SEM_SEG_HEAD.NAME", "", "PFFNET.SEMANTIC_POWER", 0.5), r"SEMANTIC_POWER rescores .* set it to GCNHead"),
        (("PFFNET.FUSION.NAME", ""), r"one is empty; set MODEL\.PFFNET\.CONSISTENCY_LOSS_WEIGHT 0\.0"),
        (("MASK_ON", False), r"needs a mask head; set MODEL\.MASK_ON True"),
        (("ROI_HEADS.NUM_CLASSES", 3), "NUM_CLASSES 3: PFFNetROIHeads segments one class; set it to 1"),
        (
            ("ROI_HEADS.NAME", "StandardROIHeads"),
            r'FUSION\.NAME RAFFHead: .*; set .* or MODEL\.PFFNET\.FUSION\.NAME ""',
        ),
        (
            ("ROI_HEADS.NAME", "StandardROIHeads", "PFFNET.FUSION.NAME", ""),
            r"QUALITY_HEAD\.NAME MaskQualityHead: .*; set MODEL\.ROI_HEADS\.NAME PFFNetROIHeads",
        ),
        (("BACKBONE.NAME", "build_resnet_fpn_backbone"), r"no res2.*; set MODEL\.BACKBONE\.NAME build_pffnet"),
        (
            ("PFFNET.FUSION.MODE", "replacement", "PFFNET.FUSION.POST_CONVS", False),
            r"CHANNELS foreground: replacement .*; set MODEL\.PFFNET\.FUSION\.CHANNELS per_channel",
        ),
        (
            ("PFFNET.FUSION.CHANNELS", "per_channel", "ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
            "masks have 1 channels, but .*NUM_CLASSES is 2; set .* DualModalMaskHead or TwoChannelMaskHead",
        ),
    ],
)
def test_contradictory_keys(compact_cfg: Callable, options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build(compact_cfg, *(f"MODEL.{o}" if i % 2 == 0 else o for i, o in enumerate(options)))
    assert "\n" not in str(error.value)


def test_compact_model_is_small(compact_cfg: Callable) -> None:
    assert sum(p.numel() for p in build(compact_cfg).parameters()) <= 17_000_000
