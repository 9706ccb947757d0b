"""Views in both directions; one view is the model itself; all eight do not depend on the orientation of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.modeling import build_model

from pffnet_d2 import Predictor
from pffnet_d2.config import read_config
from pffnet_d2.errors import InputError
from pffnet_d2.modeling.tta import VIEWS, turn, turn_back, turn_boxes, turn_boxes_back


@pytest.mark.parametrize("name", VIEWS)
def test_boxes_follow_the_pixels(name: str) -> None:
    view, size = VIEWS[name], (7, 11)
    mask = torch.zeros(size)
    mask[1:3, 4:9] = 1
    box = torch.tensor([[4.0, 1.0, 9.0, 3.0]])
    ys, xs = torch.nonzero(turn(mask, view), as_tuple=True)
    expected = [xs.min().item(), ys.min().item(), xs.max().item() + 1, ys.max().item() + 1]
    turned = turn_boxes(box, view, size)
    assert turned.tolist() == [expected]
    assert turn_boxes_back(turned, view, size).tolist() == box.tolist()
    some = torch.arange(77).reshape(size)
    assert (turn_back(turn(some, view), view) == some).all()


def test_views_by_hand() -> None:
    square = torch.tensor([[1, 2], [3, 4]])
    seen = {name: turn(square, view).flatten().tolist() for name, view in VIEWS.items()}
    assert seen["hflip"] == [2, 1, 4, 3]
    assert seen["vflip"] == [3, 4, 1, 2]
    assert seen["rotate90"] == [2, 4, 1, 3]
    assert seen["transpose"] == [1, 3, 2, 4]
    assert seen["antitranspose"] == [4, 2, 3, 1]
    assert len({tuple(view) for view in seen.values()}) == 8


def outputs(tiny_run: Path, views: list[str], image: torch.Tensor, *opts: str) -> Any:
    keys = ["MODEL.PFFNET.TTA", str(views), "MODEL.WEIGHTS", str(tiny_run / "model_final.pth"), *opts]
    predictor = Predictor(read_config(str(tiny_run / "config.yaml"), keys))
    with torch.no_grad():
        (output,) = predictor.model([{"image": image, "height": image.shape[1], "width": image.shape[2]}])
    return output["instances"]


def picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 96, 96, generator=generator) * 60
    for y, x in torch.randint(0, 70, (7, 2), generator=generator).tolist():
        image[:, y : y + 20, x : x + 26] += 120
    return image


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_one_view_is_the_model_itself(tiny_run: Path, power: float) -> None:
    """Scores are therefore class score times mask quality, multiplied once, and class scores are rescored once."""
    opts = ("MODEL.PFFNET.SEMANTIC_POWER", str(power))
    plain, one = (outputs(tiny_run, views, picture(), *opts) for views in ([], ["identity"]))
    # Views are merged in descending order of the class score before rescoring.
    assert (one.scores / one.mask_quality).diff().max() < 1e-6
    plain, one = (x[x.pred_boxes.area().argsort()] for x in (plain, one))
    assert len(one) == len(plain) > 5
    for name in ("scores", "class_scores", "mask_quality"):
        torch.testing.assert_close(one.get(name), plain.get(name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.pred_boxes.tensor, plain.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(one.pred_masks, plain.pred_masks, rtol=1e-3, atol=1e-4)
    unscored = outputs(tiny_run, [], picture())
    unscored = unscored[unscored.pred_boxes.area().argsort()]
    torch.testing.assert_close(one.scores, unscored.class_scores * one.mask_quality)
    assert torch.equal(one.class_scores < unscored.class_scores - 1e-3, torch.full((len(one),), power > 0))


@pytest.mark.parametrize("name", ["hflip", "rotate90"])
def test_all_views_do_not_depend_on_the_orientation(tiny_run: Path, name: str) -> None:
    view = VIEWS[name]
    straight = outputs(tiny_run, list(VIEWS), picture())
    turned = outputs(tiny_run, list(VIEWS), turn(picture(), view))
    boxes = turn_boxes(straight.pred_boxes.tensor, view, (96, 96))
    # Equal scores may change their order, and sums differ in the last bits, so the best ones are compared.
    best = straight.class_scores[:5]
    torch.testing.assert_close(turned.class_scores[:5], best, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(turned.pred_boxes.tensor[:5], boxes[:5], rtol=1e-3, atol=0.05)
    torch.testing.assert_close(turned.pred_masks[:5], turn(straight.pred_masks[:5], view), rtol=1e-2, atol=1e-2)


def test_a_stock_model(tiny_run: Path, tmp_path: Path) -> None:
    keys = [
        *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        *("MODEL.FPN.OUT_CHANNELS", "64"),  # at the coarsest level there is one pixel for a group of the norm
    ]
    cfg = read_config(str(tiny_run / "config.yaml"), keys)
    torch.manual_seed(1)
    weights = tmp_path / "stock.pth"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    instances = outputs(tiny_run, ["identity", "hflip"], picture(), *keys, "MODEL.WEIGHTS", str(weights))
    assert not instances.has("mask_quality")
    assert instances.pred_masks.shape[1:] == (1, 28, 28)
    predictor = Predictor(cfg, weights)  # pasted masks
    prediction = predictor(np.uint8(picture().permute(1, 2, 0)))
    assert prediction.label_map.max() == len(prediction.instances)
    assert list(prediction.scores) == ["score"]


def test_nothing_found(tiny_run: Path) -> None:
    none = outputs(tiny_run, ["identity", "rotate90"], picture()[:, :64], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.9999")
    assert len(none) == 0
    assert none.pred_masks.shape == (0, 1, 28, 28)
    assert none.image_size == (64, 96)


@pytest.mark.parametrize(("views", "words"), [(["flip"], "unknown view 'flip'"), (["hflip", "hflip"], "twice")])
def test_refused(tiny_run: Path, views: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        outputs(tiny_run, views, picture())
