"""One training step and one prediction of each method whose config is shipped, at a tiny size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from pffnet_d2.config import config_path

DETECTOR = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
LOSSES = {
    "MaskRCNN_GN": DETECTOR,
    "CellRCNN": DETECTOR | {"loss_sem_seg"},
    "CellRCNN_V2": DETECTOR | {"loss_sem_seg", "loss_sem_seg_fusion"},
    "PFFNet": DETECTOR | {"loss_sem_seg", "loss_sem_seg_fusion", "loss_mask_quality", "loss_consistency"},
}


@pytest.mark.parametrize("shapes", [[(96, 96, 4), (70, 96, 2)], [(64, 64, 0)]])
@pytest.mark.parametrize("method", LOSSES)
def test_a_step_and_a_prediction(
    compact_cfg: Callable, make_batch: Callable, method: str, shapes: list[tuple[int, int, int]]
) -> None:
    cfg = compact_cfg()
    cfg.merge_from_file(str(config_path(f"bbbc039/{method}_R18_FPN.yaml")), allow_unsafe=False)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = make_batch(*shapes)
    with EventStorage():
        losses = model(batch)
    assert set(losses) == LOSSES[method]
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    model.eval()
    with torch.no_grad():
        results = model([{"image": x["image"], "height": 80, "width": 90} for x in batch])
    for result in results:
        instances = result["instances"]
        assert instances.pred_masks.shape == (len(instances), 80, 90)
        assert instances.has("mask_quality") == (method == "PFFNet")
