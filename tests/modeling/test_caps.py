"""Caps on proposals and detections grow with the image, in prediction alone; one that hides objects is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.modeling import build_model

from pffnet_d2 import Predictor, config_path
from pffnet_d2.config import read_config
from pffnet_d2.inference.caps import warning
from pffnet_d2.modeling import caps


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


def predictor(tiny_run: Path, *opts: object) -> Predictor:
    """Images of training have 64 x 96 pixels; at most 20 objects in each, and random weights find as many."""
    keys = ["MODEL.PFFNET.CAPS_AREA", 64 * 96, *opts]
    return Predictor(model=tiny_run, device="cpu", opts=[str(key) for key in keys])


@pytest.mark.parametrize(("height", "width", "most"), [(64, 96, 20), (40, 40, 20), (128, 192, 80), (128, 144, 60)])
def test_detections_grow_with_the_area(tiny_run: Path, height: int, width: int, most: int) -> None:
    """And by that alone: other predictions are those of the caps as they are."""
    model = predictor(tiny_run, "MODEL.RPN.POST_NMS_TOPK_TEST", 400)
    found: list[int] = []
    model.model.register_forward_hook(lambda _, __, outputs: found.append(len(outputs[0]["instances"])))
    (prediction,) = model.predict([noise(height, width)])
    assert found == [most]
    assert "TEST.DETECTIONS_PER_IMAGE 20" in prediction.capped
    plain = predictor(tiny_run, "MODEL.RPN.POST_NMS_TOPK_TEST", 400, "MODEL.PFFNET.CAPS_AREA", 0)
    (other,) = plain.predict([noise(height, width)])
    assert (other.label_map == prediction.label_map).all() == (most == 20)


def test_the_config_of_a_model_is_left_as_it_is(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a prediction, and after one that failed; evaluation uses the model as it is."""
    model = predictor(tiny_run)
    network = model.model.model
    rpn, box = network.proposal_generator, network.roi_heads.box_predictor
    before = dict(rpn.pre_nms_topk), dict(rpn.post_nms_topk), box.test_topk_per_image
    model.predict([noise(128, 192)])
    assert (rpn.pre_nms_topk, rpn.post_nms_topk, box.test_topk_per_image) == before

    def fail(*_: object, **__: object) -> None:
        assert box.test_topk_per_image == 80
        raise MemoryError

    monkeypatch.setattr(network.roi_heads, "forward", fail)
    with pytest.raises(MemoryError):
        model.predict([noise(128, 192)])
    assert (rpn.pre_nms_topk, rpn.post_nms_topk, box.test_topk_per_image) == before
    assert not rpn._forward_hooks
    assert not rpn.rpn_head._forward_hooks


def test_every_network_has_its_caps_scaled() -> None:
    """The places where they lie, of all that `predict` takes."""
    for name, opts, places in (
        ("demo/PFFNet_R18_FPN.yaml", [], 3),
        ("dsb2018/coursework/MaskRCNN_R101_FPN.yaml", ["MODEL.RESNETS.DEPTH", "50"], 3),
        ("dsb2018/ObjectGuided_R18_compact.yaml", [], 1),
        ("dsb2018/FCN8s_compact.yaml", [], 1),
    ):
        cfg = read_config(str(config_path(name)), ["MODEL.DEVICE", "cpu", *opts])
        model = build_model(cfg)
        before = [(place, key, place[key]) for module in model.modules() for place, key in caps._caps_of(module)]
        assert len(before) == places, name
        assert cfg.TEST.DETECTIONS_PER_IMAGE in [cap for _, _, cap in before]
        with caps.scaled_caps(model, cfg, 2.5):
            assert [place[key] for place, key, _ in before] == [int(np.ceil(cap * 2.5)) for _, _, cap in before]
        assert [place[key] for place, key, _ in before] == [cap for _, _, cap in before]


@pytest.mark.parametrize(
    ("opts", "reached"),
    [
        ({"TEST.DETECTIONS_PER_IMAGE": 5}, {"TEST.DETECTIONS_PER_IMAGE 5"}),
        ({"MODEL.RPN.POST_NMS_TOPK_TEST": 10}, {"MODEL.RPN.POST_NMS_TOPK_TEST 10"}),
        ({"MODEL.RPN.PRE_NMS_TOPK_TEST": 10}, {"MODEL.RPN.PRE_NMS_TOPK_TEST 10"}),
        ({}, set()),
        # Detections that no label map takes for objects hide none.
        ({"TEST.DETECTIONS_PER_IMAGE": 5, "MODEL.PFFNET.LABEL_MAP.SCORE_THRESH": 0.999}, set()),
    ],
)
@pytest.mark.parametrize("views", [[], ["identity", "hflip", "vflip"]])
def test_a_cap_that_hides_objects_is_named(
    tiny_run: Path, opts: dict[str, Any], reached: set[str], views: list[str]
) -> None:
    enough = {"MODEL.RPN.POST_NMS_TOPK_TEST": 4000, "MODEL.RPN.PRE_NMS_TOPK_TEST": 9000, "MODEL.PFFNET.TTA": views}
    enough |= {"TEST.DETECTIONS_PER_IMAGE": 4000}
    model = predictor(tiny_run, *(word for pair in (enough | opts).items() for word in pair))
    for prediction in model.predict([noise(64, 96), noise(64, 96)]):
        assert set(prediction.capped) == reached
    if not reached:
        assert warning(prediction.capped) == ""


def test_images_in_which_a_cap_is_reached_are_counted(tiny_run: Path) -> None:
    """Over several calls, whose caps are those of the config whatever the size of the image."""
    model = predictor(tiny_run, "MODEL.RPN.POST_NMS_TOPK_TEST", 400)
    network = model.model
    inputs = [{"image": torch.from_numpy(noise(128, 192).transpose(2, 0, 1).copy()), "height": 128, "width": 192}]
    with torch.no_grad(), caps.counted_caps(network, model.cfg) as counted:
        assert len(network(inputs)[0]["instances"]) == 20
        network(2 * inputs)
    assert counted["TEST.DETECTIONS_PER_IMAGE 20"] == 3
    network(inputs)
    assert counted["TEST.DETECTIONS_PER_IMAGE 20"] == 3


def test_who_calls_a_predictor_is_warned(tiny_run: Path) -> None:
    with pytest.warns(UserWarning, match="objects may be missing") as told:
        predictor(tiny_run)(noise(64, 96))
    (line,) = (text for text in (str(each.message) for each in told) if "missing" in text)
    assert line.startswith("the image: objects may be missing: ")
    assert "TEST.DETECTIONS_PER_IMAGE 20" in line
    assert "TEST.DETECTIONS_PER_IMAGE 40" in line.partition("--opts")[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(tiny_run, "MODEL.PFFNET.LABEL_MAP.SCORE_THRESH", 0.999, "MODEL.RPN.POST_NMS_TOPK_TEST", 4000)(
            np.zeros((64, 96), np.uint8)
        )


@pytest.mark.slow
def test_nothing_is_lost_beside_other_fields(pffnet_data: Callable[[str], Path]) -> None:
    """The shipped model on nine fields of BBBC039 side by side finds what it finds in each of them."""
    from pffnet_d2.data.readers import READERS
    from pffnet_d2.evaluation.contingency import ContingencyTable
    from pffnet_d2.evaluation.metrics import panoptic_quality

    every = READERS["bbbc039"].records(pffnet_data("bbbc039"), "val")
    model = Predictor(device="cpu")
    fields = [model.normalise(record.read_image()) for record, _ in zip(every, range(9), strict=False)]
    apart = np.zeros((3 * 520, 3 * 696), np.int32)
    for i, field in enumerate(fields):
        y, x = i // 3 * 520, i % 3 * 696
        labels = model.predict([field])[0].label_map
        apart[y : y + 520, x : x + 696] = np.where(labels, labels + apart.max(), 0)
    whole = np.concatenate([np.concatenate(fields[i : i + 3], axis=1) for i in (0, 3, 6)])
    together = model.predict([whole])[0].label_map
    assert together.max() > 500
    assert panoptic_quality(ContingencyTable.from_labels(apart, together)).dq > 0.96


def test_detections_that_no_label_map_needs_get_no_mask(tiny_run: Path) -> None:
    """The others stay as they are, and so does the model, after an error too."""
    model = predictor(tiny_run, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    image = torch.from_numpy(noise(64, 96).transpose(2, 0, 1).copy())
    (everything,) = (output["instances"] for output in model.model([{"image": image}]))
    middle = everything.class_scores.median().item()
    box = model.model.model.roi_heads.box_predictor
    with caps.only_above(model.model, middle):
        (some,) = (output["instances"] for output in model.model([{"image": image}]))
    kept = everything[everything.class_scores > middle]
    assert 0 < len(some) == len(kept) < len(everything)
    assert torch.equal(some.class_scores, kept.class_scores)
    torch.testing.assert_close(some.pred_masks, kept.pred_masks)
    with caps.only_above(model.model, 0.9):
        assert box.test_score_thresh == 0.9
    with pytest.raises(TypeError), caps.only_above(model.model, 0.9):
        model.model(None)
    assert box.test_score_thresh == 0.0
    with caps.only_above(model.model, -1.0):
        assert box.test_score_thresh == 0.0


def test_merged_views_need_every_detection(tiny_run: Path) -> None:
    model = predictor(tiny_run, "MODEL.PFFNET.TTA", "('identity', 'hflip')")
    box = model.model.model.roi_heads.box_predictor
    before = box.test_score_thresh
    with caps.only_above(model.model, 0.9):
        assert box.test_score_thresh == before
