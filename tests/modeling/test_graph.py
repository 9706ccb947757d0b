"""The graph of a network finds what the network finds, in every image and for every network that has one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from torch import Tensor, nn

from pffnet_d2.config import config_path, read_config
from pffnet_d2.errors import InputError
from pffnet_d2.modeling.caps import scaled_caps
from pffnet_d2.modeling.graph import DetectionGraph, outputs_of

NARROW = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]
NARROW += ["MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TEST", 60, "TEST.DETECTIONS_PER_IMAGE", 20]
CONFIGS = {
    "demo/PFFNet_R18_FPN.yaml": ["class_scores", "mask_quality", "scores"],
    "bbbc039/MaskRCNN_GN_R18_FPN.yaml": ["scores"],
    "bbbc039/CellRCNN_R18_FPN.yaml": ["class_scores", "scores"],
    "bbbc039/CellRCNN_V2_R18_FPN.yaml": ["class_scores", "scores"],
    "bbbc039/PanopticFPN_R18_FPN.yaml": ["scores"],
    "dsb2018/PFFNet_Lite0_FPN.yaml": ["class_scores", "mask_quality", "scores"],
}


def config(name: str, *opts: Any) -> CfgNode:
    return read_config(str(config_path(name)), [str(word) for word in (*NARROW, *opts)])


def distinct(cfg: CfgNode) -> Any:
    """A network whose random weights give scores that differ by more than rounding, about half of them objects."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for layer in (model.roi_heads.box_predictor.cls_score, model.proposal_generator.rpn_head.objectness_logits):
        nn.init.normal_(layer.weight, std=0.5)
    return model


def picture(height: int, width: int) -> Tensor:
    """(3, H, W) RGB of the three channels' own squares."""
    rng = np.random.default_rng(height)
    image = rng.integers(0, 30, (3, height, width)).astype(np.float32)
    for c, y, x in rng.integers(0, (3, height, width), (20, 3)):
        image[c, y : y + 14, x : x + 14] += 150
    return torch.from_numpy(image)


def found_by(model: Any, image: Tensor, cfg: CfgNode) -> dict[str, Tensor]:
    """The detections of the network itself."""
    seen = image.flip(0) if cfg.INPUT.FORMAT == "BGR" else image
    with torch.no_grad():
        (found,) = GeneralizedRCNN.inference(model, [{"image": seen}], do_postprocess=False)
    names = [name for name in ("class_scores", "mask_quality", "scores") if found.has(name)]
    return {
        "boxes": found.pred_boxes.tensor,
        **{name: found.get(name) for name in names},
        "masks": found.pred_masks[:, 0],
    }


def graph_of(model: Any, cfg: CfgNode) -> DetectionGraph:
    return DetectionGraph(model, bgr=cfg.INPUT.FORMAT == "BGR", caps_area=cfg.MODEL.PFFNET.CAPS_AREA)


@torch.no_grad()
def outputs(graph: DetectionGraph, image: Tensor) -> dict[str, Tensor]:
    return dict(zip(outputs_of(graph.model), graph(image), strict=True))


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        *((name, ["MODEL.PFFNET.BOX_REFINEMENTS", 0]) for name in CONFIGS),
        ("dsb2018/PFFNet_Lite0_FPN.yaml", []),
        (
            "bbbc039/MaskRCNN_GN_R18_FPN.yaml",
            ["MODEL.ROI_HEADS.NAME", "RefinedBoxROIHeads", "MODEL.PFFNET.BOX_REFINEMENTS", 2],
        ),
    ],
)
def test_equals_the_network(name: str, opts: list[Any]) -> None:
    cfg = config(name, *opts)
    model = distinct(cfg)
    graph = graph_of(model, cfg)
    for height, width in ((64, 96), (75, 101)):
        image = picture(height, width)
        found, expected = outputs(graph, image), found_by(model, image, cfg)
        assert len(expected["boxes"]) > 3
        assert list(found) == ["boxes", *CONFIGS[name], "masks", "capped"]
        del found["capped"]
        for key, value in expected.items():
            torch.testing.assert_close(found.pop(key), value, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")
        assert not found


@pytest.mark.parametrize("name", ["demo/PFFNet_R18_FPN.yaml", "bbbc039/CellRCNN_R18_FPN.yaml"])
def test_rescoring_by_the_semantic_branch(name: str) -> None:
    cfg = config(name, "MODEL.PFFNET.SEMANTIC_POWER", 0.5)
    model = distinct(cfg)
    graph = graph_of(model, cfg)
    image = picture(75, 101)
    found = outputs(graph, image)
    with torch.no_grad():
        seen = image.flip(0) if cfg.INPUT.FORMAT == "BGR" else image
        (expected,) = model.inference([{"image": seen, "normalised": True}], do_postprocess=False)
    torch.testing.assert_close(found["class_scores"], expected.class_scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["scores"], expected.scores, rtol=1e-5, atol=1e-5)
    graph.semantic_power = 0.0
    assert (outputs(graph, image)["class_scores"] > found["class_scores"]).all()


def test_an_image_without_objects() -> None:
    cfg = config("demo/PFFNet_R18_FPN.yaml")
    model = distinct(cfg)
    nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias, 0)
    model.roi_heads.box_predictor.cls_score.bias.data[1] = 1000  # background
    found = outputs(graph_of(model, cfg), picture(64, 64))
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "boxes": (0, 4),
        "class_scores": (0,),
        "mask_quality": (0,),
        "scores": (0,),
        "masks": (0, 28, 28),
        "capped": (2,),
    }


@pytest.mark.parametrize("area", [64 * 64, 0])
def test_caps_grow_with_the_image(area: int) -> None:
    """As in prediction, where three images of that area have three times as many."""
    opts = ["MODEL.PFFNET.CAPS_AREA", area, "MODEL.RPN.PRE_NMS_TOPK_TEST", 31, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.9]
    cfg = config("demo/PFFNet_R18_FPN.yaml", *opts, "TEST.DETECTIONS_PER_IMAGE", 7)
    model = distinct(cfg)
    image = picture(64, 192)
    found = outputs(graph_of(model, cfg), image)
    with scaled_caps(model, cfg, 3.0 if area else 1.0) as reached:
        expected = found_by(model, image, cfg)
    assert len(expected["boxes"]) == (21 if area else 7)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-5, atol=1e-5)
    keys = {key.partition(" ")[0] for key in reached._rpn[0]}
    assert found["capped"].tolist() == [
        "MODEL.RPN.PRE_NMS_TOPK_TEST" in keys,
        "MODEL.RPN.POST_NMS_TOPK_TEST" in keys,
    ]
    assert found["capped"][0]


def test_colours_in_the_order_of_the_network() -> None:
    """The graph takes RGB whatever INPUT.FORMAT is."""
    cfg = config("demo/PFFNet_R18_FPN.yaml")
    model = distinct(cfg)
    image = picture(64, 64)
    seen = outputs(DetectionGraph(model, bgr=True, caps_area=0), image)["boxes"]
    other = outputs(DetectionGraph(model, bgr=False, caps_area=0), image.flip(0))["boxes"]
    assert torch.equal(seen, other)
    assert not torch.equal(seen, outputs(DetectionGraph(model, bgr=False, caps_area=0), image)["boxes"])


REFUSED = {
    "FCN8s": ("dsb2018/FCN8s_compact.yaml", [], "MODEL.META_ARCHITECTURE FCN8s: cannot be exported"),
    "ObjectGuided": (
        "dsb2018/ObjectGuided_R18_compact.yaml",
        [],
        "MODEL.META_ARCHITECTURE ObjectGuided: cannot be exported",
    ),
    "two classes": (
        "bbbc039/MaskRCNN_GN_R18_FPN.yaml",
        ["MODEL.ROI_HEADS.NUM_CLASSES", 2],
        "NUM_CLASSES 2: only models of one class",
    ),
    "a cascade": (
        "bbbc039/MaskRCNN_GN_R18_FPN.yaml",
        ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
        "MODEL.ROI_HEADS.NAME CascadeROIHeads: cannot be exported",
    ),
    "boxes alone": ("bbbc039/MaskRCNN_GN_R18_FPN.yaml", ["MODEL.MASK_ON", False], "MODEL.MASK_ON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_refused(case: str) -> None:
    name, opts, message = REFUSED[case]
    given = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *map(str, opts)]
    model = build_model(read_config(str(config_path(name)), given))
    with pytest.raises(InputError, match=message):
        DetectionGraph(model, bgr=False, caps_area=0)
