"""The whole model: frozen losses, gradients for any batch, and masks that are predicted at the right place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn

from pffnet_d2.config import config_path, read_config
from pffnet_d2.errors import InputError
from pffnet_d2.masks.compose import instances_to_label_map
from pffnet_d2.masks.paste import instance_masks
from pffnet_d2.modeling.object_guided.centre_head import to_centres
from pffnet_d2.modeling.object_guided.meta_arch import mask_nms
from pffnet_d2.modeling.object_guided.rois import Rois, crop_masks

LOSSES = {"loss_heatmap", "loss_size", "loss_offset", "loss_mask", "loss_refine"}


def build(*options: Any) -> Any:
    cfg = read_config(
        str(config_path("dsb2018/ObjectGuided_R18_compact.yaml")),
        [
            *("MODEL.DEVICE", "cpu", "INPUT.SQUARE.TRAIN", "0", "INPUT.SQUARE.TEST", "0"),
            *("MODEL.OBJECT_GUIDED.HEAD_DIM", "8", *map(str, options)),
        ],
    )
    torch.manual_seed(0)
    return build_model(cfg)


def losses_of(model: Any, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    torch.manual_seed(1)  # for the points of the refinement
    losses: dict[str, Tensor] = model.train()(batch)
    return losses


def truth(masks: Tensor) -> dict[str, Any]:
    """An image of these masks (K, H, W)."""
    height, width = masks.shape[1:]
    instances = Instances((height, width), gt_masks=BitMasks(masks), gt_classes=torch.zeros(len(masks)).long())
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    image = (masks.any(0) * 200.0)[None].repeat(3, 1, 1)
    return {"image": image, "height": height, "width": width, "instances": instances, "image_id": 7}


def pixels(height: int, width: int, *places: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(places), height, width, dtype=torch.bool)
    for mask, (y, x) in zip(masks, places, strict=True):
        mask[y, x] = True
    return masks


KEY = "MODEL.OBJECT_GUIDED."
PAPER = {
    "RADIUS": "exact",
    "SIGMA": "paper",
    "REGRESSION_LOSS": "smooth_l1",
    "ROI_EXPAND": 1.0,
    "NORM_AFFINE": True,
    "LARGE_KERNEL": "offset",
    "REFINE.HEADS": "figure",
    "REFINE.UNCERTAINTY": "sample_first",
}


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, (2.21013, 0.59718, 0.33785, 1.40113, 0.78807)),
        (PAPER, (2.21259, 0.53604, 0.18807, 1.4196, 0.82681)),
        ({"ROI_MODE": "fixed", "ROI_SIZE": 32}, (2.21013, 0.59718, 0.33785, 1.40641, 0.78016)),
    ],
)
def test_golden_losses(make_batch: Callable, options: dict[str, Any], frozen: tuple[float, ...]) -> None:
    """The losses are frozen, because a change of them changes every training."""
    model = build(*(word for key, value in options.items() for word in (KEY + key, value)))
    losses = losses_of(model, make_batch((96, 96, 5), (70, 90, 3)))
    names = ("heatmap", "size", "offset", "mask", "refine")
    expected = {f"loss_{name}": value for name, value in zip(names, frozen, strict=True)}
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    "shapes",
    [
        [(96, 96, 5), (96, 96, 4)],
        [(70, 101, 3), (96, 64, 2)],  # not square, not multiples of 32, of different sizes
        [(96, 96, 0), (96, 96, 3)],
        [(64, 96, 0)],  # no object anywhere
        [(3, 2, 0)],  # smaller than a stride
    ],
)
@pytest.mark.parametrize("heads", ["code", "figure"])
def test_every_parameter_has_a_gradient(make_batch: Callable, shapes: list[tuple[int, int, int]], heads: str) -> None:
    """A parameter without a gradient would stop distributed training."""
    model = build("MODEL.OBJECT_GUIDED.REFINE.HEADS", heads)
    losses = losses_of(model, make_batch(*shapes))
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_objects_of_a_pixel() -> None:
    """By default they are not targets; with MIN_SIDE 1 they train at 2 x 2 points of the finest map."""
    image = truth(pixels(64, 64, (0, 0), (63, 63), (30, 20)))
    nothing = {**image, "instances": image["instances"][:0]}
    with_them, without = losses_of(build(), [image]), losses_of(build(), [nothing])
    for name in LOSSES:
        torch.testing.assert_close(with_them[name], without[name])
    model = build("MODEL.OBJECT_GUIDED.MIN_SIDE", 1)
    losses = losses_of(model, [image])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert float(losses["loss_mask"].detach()) > 0
    assert float(losses["loss_refine"].detach()) == 0  # four cells are too few for a point
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_weights_and_sums(make_batch: Callable) -> None:
    batch = make_batch((96, 96, 1))
    ones = losses_of(build("MODEL.OBJECT_GUIDED.LOSS_WEIGHTS", [1.0] * 5), batch)
    weighted = losses_of(build("MODEL.OBJECT_GUIDED.LOSS_WEIGHTS", [1.0, 2.0, 3.0, 4.0, 5.0]), batch)
    names = ("heatmap", "size", "offset", "mask", "refine")
    for factor, name in enumerate(names, start=1):
        torch.testing.assert_close(weighted[f"loss_{name}"], factor * ones[f"loss_{name}"])
    summed = losses_of(
        build("MODEL.OBJECT_GUIDED.LOSS_REDUCTION", "sum", "MODEL.OBJECT_GUIDED.LOSS_WEIGHTS", [1.0] * 5), batch
    )
    w, h = to_centres(batch[0]["instances"].gt_boxes.tensor)[0, 2:].double().tolist()
    area = int(w * 1.1) * int(h * 1.1)
    torch.testing.assert_close(summed["loss_mask"], area * ones["loss_mask"])
    torch.testing.assert_close(summed["loss_refine"], 2 * int(0.75 * (area // 8)) * ones["loss_refine"])
    torch.testing.assert_close(summed["loss_size"], 2 * ones["loss_size"], rtol=1e-3, atol=0)


def test_objects_beyond_the_limit_do_not_train_masks(make_batch: Callable) -> None:
    model = build("MODEL.OBJECT_GUIDED.MAX_TRAIN_ROIS", 2)
    seen: list[int] = []
    model.segmentation.register_forward_pre_hook(lambda _, given: seen.extend(given[1].image))
    losses_of(model, make_batch((96, 96, 5), (96, 96, 1), (96, 96, 3)))
    assert sorted(seen) == [0, 0, 1, 2, 2]


def test_without_refinement(make_batch: Callable) -> None:
    batch = make_batch((96, 96, 3))
    model = build("MODEL.OBJECT_GUIDED.REFINE.ENABLED", "False")
    losses = losses_of(model, batch)
    assert set(losses) == LOSSES - {"loss_refine"}
    # The rest of the network is the same.
    torch.testing.assert_close(losses["loss_mask"], losses_of(build(), batch)["loss_mask"])


class PerfectHead(nn.Module):
    """The maps of images whose objects are known."""

    def __init__(self, boxes: list[Tensor]) -> None:
        super().__init__()
        self.centres = [to_centres(each) / 4 for each in boxes]

    def forward(self, c3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heat = torch.full((len(c3), 1, *c3.shape[2:]), -9.0)
        size, offset = torch.zeros(2, len(c3), 2, *c3.shape[2:])
        for i, cells in enumerate(self.centres):
            x, y = cells[:, 0].long(), cells[:, 1].long()
            heat[i, 0, y, x] = 4 - 0.01 * torch.arange(len(cells))
            size[i, :, y, x] = cells[:, 2:].T
            offset[i, :, y, x] = (cells[:, :2] - cells[:, :2].floor()).T
        return heat, size, offset


class PerfectMasks(nn.Module):
    """The soft truth as logits; objects in the order of the scores, which is that of the masks."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, _: Any, rois: Rois) -> tuple[Tensor, None, None]:
        first = np.cumsum([0, *map(len, self.masks)])
        numbers = rois.index - torch.tensor([int(first[i]) for i in rois.image])
        return crop_masks(self.masks, numbers, rois).logit(eps=1e-6), None, None


def perfect(masks: list[Tensor], *options: Any) -> Any:
    model = build(*options).eval()
    model.centre_head = PerfectHead([BitMasks(each).get_bounding_boxes().tensor for each in masks])
    model.segmentation = PerfectMasks(masks)
    return model


def discs(side: int, *circles: tuple[float, float, float]) -> Tensor:
    """Discs (y, x, diameter) in a square image."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([(y - cy).square() + (x - cx).square() <= d * d / 4 for cy, cx, d in circles])


def iou(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize(
    ("diameter", "expected"),
    [(4, 0.88), (5, 0.93), (6, 0.97), (7, 0.98), (8, 0.99), (10, 0.997), (30, 0.997), (90, 0.99)],
)
@torch.no_grad()
def test_perfect_masks_survive_crop_and_paste(diameter: int, expected: float) -> None:
    """Mean IoU over positions. The voting of the released code gives 0.28 for 4 pixels and 0.64 for 8 pixels."""
    generator = torch.Generator().manual_seed(0)
    places = (diameter / 2 + 8 + torch.rand(12, 2, generator=generator)).tolist()
    masks = [discs(diameter + 20, (y, x, diameter)) for y, x in places]
    model = perfect(masks)
    pasted = model([truth(each) for each in masks])
    lean = model([truth(each) for each in masks], paste_masks=False)
    found = []
    for mask, whole, small in zip(masks, pasted, lean, strict=True):
        assert whole["instances"].pred_masks.shape == mask.shape
        assert small["instances"].pred_masks.shape == (1, 1, 56, 56)
        np.testing.assert_array_equal(instances_to_label_map(small["instances"]) > 0, whole["instances"].pred_masks[0])
        found.append(iou(whole["instances"].pred_masks[0], mask[0]))
    assert np.mean(found) > expected - 0.005


@torch.no_grad()
def test_detections_in_pixels_of_the_file() -> None:
    """A batch of two images of different sizes, one of them stretched, and one without objects."""
    circles = [(20.0, 20.0, 18.0), (70.3, 30.6, 25.0), (40, 75, 30)]
    small = [discs(96, *circles[:2]), discs(128, *circles), torch.zeros(0, 64, 64, dtype=torch.bool)]
    batch = [truth(each) for each in small]
    batch[0].update(height=96 * 2, width=96 * 3)
    outputs = perfect(small)(batch)
    for masks, output, given in zip(small, outputs, batch, strict=True):
        instances = output["instances"]
        assert instances.image_size == (given["height"], given["width"])
        assert instances.pred_masks.shape == (len(masks), given["height"], given["width"])
        assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)
        assert instances.pred_classes.tolist() == [0] * len(masks)
        for mask, box, wanted in zip(instances.pred_masks, instances.pred_boxes.tensor, masks, strict=True):
            high = nn.functional.interpolate(wanted[None, None].float(), mask.shape, mode="bilinear")[0, 0] >= 0.5
            assert iou(mask, high) > 0.97
            torch.testing.assert_close(BitMasks(mask[None]).get_bounding_boxes().tensor[0], box, rtol=0, atol=0)


@torch.no_grad()
def test_a_batch_gives_the_same_as_its_images(make_batch: Callable) -> None:
    model = build("MODEL.OBJECT_GUIDED.SCORE_THRESH_TEST", 0.01).eval()
    batch = make_batch((96, 96, 4), (96, 96, 2))
    model.segmentation.predictor.bias += 3  # otherwise the masks of an untrained network are below the threshold
    together, alone = model(batch, paste_masks=False), [model([x], paste_masks=False)[0] for x in batch]
    assert sum(len(x["instances"]) for x in alone) > 0
    for one, other in zip(together, alone, strict=True):
        for field in ("scores", "pred_masks"):
            torch.testing.assert_close(one["instances"].get(field), other["instances"].get(field))
        torch.testing.assert_close(one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)


@torch.no_grad()
def test_nothing_found_and_images_smaller_than_a_stride() -> None:
    model = build("MODEL.OBJECT_GUIDED.SCORE_THRESH_TEST", 0.999).eval()
    for paste, shape in ((True, (0, 20, 30)), (False, (0, 1, 56, 56))):
        images = [{"image": torch.zeros(3, h, w), "height": 20, "width": 30} for h, w in ((2, 3), (70, 40))]
        outputs = model(images, paste_masks=paste)
        for output in outputs:
            assert output["instances"].pred_masks.shape == shape
            assert instances_to_label_map(output["instances"]).max() == 0
    model = build("MODEL.OBJECT_GUIDED.SCORE_THRESH_TEST", 0.0).eval()
    (output,) = model([{"image": torch.zeros(3, 2, 3)}])
    assert output["instances"].image_size == (2, 3)


@torch.no_grad()
def test_more_objects_than_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    masks = discs(128, (20, 20, 18), (70, 30, 25), (40, 75, 30))
    model = perfect([masks], "TEST.DETECTIONS_PER_IMAGE", 2)
    logger = logging.getLogger("pffnet_d2")
    before, logger.propagate = logger.propagate, True
    try:
        (output,) = model([truth(masks)])
    finally:
        logger.propagate = before
    assert len(output["instances"]) == 2
    (message,) = {record.getMessage() for record in caplog.records}
    assert message.startswith("image 7: reached the limit of 2 detections")


def window(mask: Tensor) -> Any:
    instances = Instances(tuple(mask.shape), pred_boxes=Boxes(torch.zeros(1, 4)), pred_masks=mask[None])
    return instance_masks(instances)[0]


def test_masks_suppress_worse_ones_of_their_class() -> None:
    """Squares of 10 x 10, the second moved by 6 (IoU 40 / 160), the third by 8 (20 / 180 and, to the second, 2 / 3)."""
    masks = torch.zeros(4, 40, 40, dtype=torch.bool)
    for mask, x in zip(masks, (5, 11, 13), strict=False):
        mask[5:15, x : x + 10] = True
    windows = [window(mask) for mask in masks]
    assert mask_nms(windows, [0] * 4, 0.2) == [0, 2]
    assert mask_nms(windows, [0] * 4, 0.25) == [0, 1]
    assert mask_nms(windows, [0] * 4, 1.0) == [0, 1, 2]
    assert mask_nms(windows, [0, 1, 2, 0], 0.2) == [0, 1, 2]
    assert mask_nms([], [], 0.2) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("RADIUS", "right", "RADIUS 'right' is unknown; use cornernet or exact"),
        ("LOSS_WEIGHTS", "[1.0]", r"LOSS_WEIGHTS \[1\.0\]: give a list of 5"),
        ("REFINE.HEADS", "both", "HEADS 'both' is unknown"),
        ("REFINE.UNCERTAINTY", "none", "UNCERTAINTY 'none' is unknown"),
        ("REFINE.BETA", "4.0", r"BETA 4\.0 must be above 0 and at most K 3\.0"),
    ],
)
def test_mistakes_in_the_config(key: str, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(f"MODEL.OBJECT_GUIDED.{key}", value)
