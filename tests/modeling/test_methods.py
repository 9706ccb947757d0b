"""Every method and variant with a config, at a tiny size: it trains, predicts, and computes the same as before."""

from __future__ import annotations

import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pffnet_d2.config import config_path, read_config

DETECTOR = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
LOSSES = {
    "MaskRCNN_GN": DETECTOR,
    "PanopticFPN": DETECTOR | {"loss_sem_seg"},
    "CellRCNN": DETECTOR | {"loss_sem_seg"},
    "CellRCNN_V2": DETECTOR | {"loss_sem_seg", "loss_sem_seg_fusion"},
    "PFFNet": DETECTOR | {"loss_sem_seg", "loss_sem_seg_fusion", "loss_mask_quality", "loss_consistency"},
}

# Equal widths and numbers, so that two configs differ only in their structure.
TINY = {
    "DEVICE": "cpu",
    "WEIGHTS": "",
    "PIXEL_MEAN": [128.0, 128.0, 128.0],
    "BACKBONE.FREEZE_AT": 0,
    "RESNETS.DEPTH": 50,
    "RESNETS.STEM_OUT_CHANNELS": 32,
    "RESNETS.RES2_OUT_CHANNELS": 32,
    "RESNETS.WIDTH_PER_GROUP": 32,
    "FPN.OUT_CHANNELS": 32,
    "ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "RPN.BOUNDARY_THRESH": -1,
    "RPN.PRE_NMS_TOPK_TRAIN": 64,
    "RPN.POST_NMS_TOPK_TRAIN": 32,
    "RPN.PRE_NMS_TOPK_TEST": 64,
    "RPN.POST_NMS_TOPK_TEST": 32,
    "ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "ROI_BOX_HEAD.FC_DIM": 32,
    "ROI_MASK_HEAD.CONV_DIM": 32,
    "ROI_MASK_HEAD.FC_PATH_DIM": 8,
    "ROI_MASK_QUALITY_HEAD.CONV_DIM": 32,
    "ROI_MASK_QUALITY_HEAD.FC_DIM": 32,
    "SEM_SEG_HEAD.CONVS_DIM": 32,
    "PFFNET.LABEL_MAP.SCORE_THRESH": 0.0,
}


def tiny(name: str, **more: Any) -> CfgNode:
    """A shipped config, or CONFIG+PART, at a tiny size. ``more`` are keys below MODEL, with __ for each dot."""
    keys = TINY | {key.replace("__", "."): value for key, value in more.items()}
    config, *parts = (str(config_path(file)) for file in name.split("+"))
    return read_config(config, [w for k, v in keys.items() for w in (f"MODEL.{k}", v)], parts)


BASE = "tnbc/PFFNet_R101_FPN.yaml"
ABLATIONS = [p.stem for p in sorted(config_path("ablations").iterdir()) if not p.name.startswith("ObjectGuided")]


def structures() -> dict[str, CfgNode]:
    """One config for each structure, by name; compact ones are preferred."""
    found: dict[str, tuple[str, CfgNode]] = {}
    folder = config_path()
    parts = ("methods/", "ablations/", "backbones/", "finetune.yaml")  # parts of configs, not complete models
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.yaml"))]
    names = [name for name in names if not name.startswith(parts)]
    names += [f"{BASE}+ablations/{name}.yaml" for name in ABLATIONS]
    for name in sorted(names, key=lambda name: "R101" in name):
        cfg = tiny(name)
        if cfg.MODEL.META_ARCHITECTURE in ("PFFNet", "GeneralizedRCNN", "PanopticFPN"):
            found.setdefault(cfg.MODEL.dump(), (name, cfg))
    return dict(found.values())


STRUCTURES = structures()


def step(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The losses of a batch, after one backward pass."""
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses


def test_there_is_a_structure_for_every_method_and_ablation() -> None:
    """Each ablation changes something. Compact and full-depth configs differ only in Detectron2's own head."""
    covered = set(STRUCTURES)
    assert {f"bbbc039/{method}_R18_FPN.yaml" for method in LOSSES if method != "PFFNet"} <= covered
    changed = {f"{BASE}+ablations/{name}.yaml" for name in ABLATIONS if name != "V2_Ab3"}  # Ab3 is Cell R-CNN
    assert changed <= covered
    assert "release/PFFNet_R101_FPN.yaml" in covered


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_step_and_a_prediction(make_batch: Callable, name: str) -> None:
    """Also without objects in any image: a parameter without a gradient would stop distributed training."""
    torch.manual_seed(0)
    model = build_model(STRUCTURES[name])
    batch = make_batch((64, 64, 3), (48, 64, 2))
    for images in (batch, make_batch((64, 64, 0))):
        model.zero_grad()
        losses = step(model, images)
        assert all(value.isfinite() for value in losses.values())
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    expected = [set_ for method, set_ in LOSSES.items() if name.split("/")[-1].startswith(f"{method}_R")]
    assert not expected or set(losses) == expected[0]

    model.eval()
    with torch.no_grad():
        results = model([{"image": x["image"], "height": 80, "width": 90} for x in batch])
    for result in results:
        instances = result["instances"]
        assert len(instances)
        assert instances.pred_masks.shape == (len(instances), 80, 90)
        assert instances.has("mask_quality") == ("loss_mask_quality" in losses)


class Frozen:
    """Parameters and images from a generator whose stream numpy promises never to change, by the names of the
    parameters: neither torch's initialisation nor the order of construction enters."""

    @staticmethod
    def parameters(model: nn.Module) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(parameter.shape))
                if parameter.dim() > 1:
                    values *= (1 / np.prod(parameter.shape[1:])) ** 0.5
                else:
                    values = (1.0 if name.endswith("weight") else 0.0) + 0.1 * values  # norms; biases
                parameter.copy_(torch.from_numpy(values))

    @staticmethod
    def noise(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for i, x in enumerate(batch):
            noise = np.random.RandomState(i).uniform(0, 50, tuple(x["image"].shape)).astype(np.float32)
            x["image"] = x["sem_seg"] * 150.0 + torch.from_numpy(noise)
        return batch


# Everything is sampled and nothing suppressed, so there is no random choice and no tie that rounding could decide.
ALL_ROIS = {
    "RPN__BATCH_SIZE_PER_IMAGE": 100_000,
    "RPN__NMS_THRESH": 1.0,
    "RPN__PRE_NMS_TOPK_TRAIN": 100_000,
    "RPN__POST_NMS_TOPK_TRAIN": 100_000,
    "ROI_HEADS__BATCH_SIZE_PER_IMAGE": 200_000,
    "PFFNET__FUSION__ROIS": "all",  # an untrained box head's scores are nearly equal: rounding would choose the best
}
GOLDEN: dict[str, dict[str, float]] = {
    "MaskRCNN_GN": {
        "loss_cls": 0.7339789,
        "loss_box_reg": 0.01775777,
        "loss_mask": 0.7291829,
        "loss_rpn_cls": 0.007182513,
        "loss_rpn_loc": 6.947033e-05,
        "backbone gradient": 1.599538,
        "mask gradient": 0.5444544,
    },
    "PanopticFPN": {
        "loss_sem_seg": 0.3289524,
        "loss_rpn_cls": 0.007182513,
        "loss_rpn_loc": 6.947033e-05,
        "loss_cls": 0.7339789,
        "loss_box_reg": 0.01775777,
        "loss_mask": 0.7291829,
        "backbone gradient": 71.23263,
        "mask gradient": 0.5444544,
    },
    "CellRCNN": {
        "loss_rpn_cls": 0.007182513,
        "loss_rpn_loc": 6.947033e-05,
        "loss_cls": 0.7339789,
        "loss_box_reg": 0.01775777,
        "loss_mask": 0.7291829,
        "loss_sem_seg": 4.26527,
        "backbone gradient": 167.9101,
        "mask gradient": 0.5444544,
    },
    "CellRCNN_V2": {
        "loss_rpn_cls": 0.007182513,
        "loss_rpn_loc": 6.947033e-05,
        "loss_cls": 0.7339789,
        "loss_box_reg": 0.01775777,
        "loss_mask": 0.7362325,
        "loss_sem_seg": 4.26527,
        "loss_sem_seg_fusion": 0.7159445,
        "backbone gradient": 171.1926,
        "mask gradient": 0.9498897,
    },
    "PFFNet": {
        "loss_rpn_cls": 0.007182513,
        "loss_rpn_loc": 6.947033e-05,
        "loss_cls": 0.7339789,
        "loss_box_reg": 0.01775777,
        "loss_mask": 0.7362325,
        "loss_mask_quality": 0.00409837,
        "loss_sem_seg": 0.426527,
        "loss_sem_seg_fusion": 0.07266218,
        "loss_consistency": 0.2893357,
        "backbone gradient": 21.8768,
        "mask gradient": 0.7938483,
    },
}


def losses_and_gradients(method: str, make_batch: Callable) -> dict[str, float]:
    """Losses, and the norms of the gradients of their sum in the backbone and in the mask head."""
    model = build_model(tiny(f"bbbc039/{method}_R18_FPN.yaml", **ALL_ROIS))
    Frozen.parameters(model)
    losses = step(model, Frozen.noise(make_batch((64, 64, 3))))
    found = {name: loss.item() for name, loss in losses.items()}
    for name, part in (("backbone gradient", model.backbone), ("mask gradient", model.roi_heads.mask_head)):
        found[name] = torch.cat([p.grad.double().flatten() for p in part.parameters()]).norm().item()
    return found


@pytest.mark.parametrize("method", LOSSES)
def test_losses_have_not_changed(make_batch: Callable, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values were recorded after every module had been checked. A different value means a different method."""
    monkeypatch.setattr(torch, "randperm", torch.arange)  # the last digits depend on the order of sums
    found = losses_and_gradients(method, make_batch)
    assert found.keys() == GOLDEN[method].keys()
    for name, value in found.items():
        # Gradients pass through a hundred layers, and processors round differently: up to 7e-4 between two of them.
        assert value == pytest.approx(GOLDEN[method][name], rel=2e-3 if "gradient" in name else 1e-4), name


class Waits(TorchDispatchMode):
    """Collects the functions of this package that ask the device for a value or for the size of a result, which
    operations on the CPU show as well as on a GPU."""

    ASKING = ("_local_scalar_dense", "nonzero", "repeat_interleave", "masked_select", "_unique2", "unique_dim")

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.overloadpacket.__name__.startswith("index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if by_mask or func.overloadpacket.__name__ in self.ASKING:
            # The innermost function of this package or of Detectron2.
            for frame in reversed(traceback.extract_stack()):
                parts = Path(frame.filename).parts
                if "detectron2" in parts:
                    break
                if "pffnet_d2" in parts:
                    self.found.add(frame.name)
                    break
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("bbbc039/CellRCNN_R18_FPN.yaml", {"_pairs"}),
        ("bbbc039/CellRCNN_V2_R18_FPN.yaml", {"_pairs", "box_pixels", "best_of_each_object"}),
        ("bbbc039/PFFNet_R18_FPN.yaml", {"_pairs", "box_pixels"}),
        (f"{BASE}+ablations/Fusion_predicted_boxes.yaml", {"_pairs", "box_pixels"}),
        (f"{BASE}+ablations/Fusion_best_rois.yaml", {"_pairs", "box_pixels", "best_of_each_object"}),
    ],
)
def test_a_step_waits_for_the_device_where_docs_say(make_batch: Callable, name: str, waits: set[str]) -> None:
    """docs/methods.md: in addition to Detectron2's own, one wait for the fusion and one for its choice of ROIs."""
    torch.manual_seed(0)
    model = build_model(tiny(name))
    with Waits() as seen:
        step(model, make_batch((64, 64, 3), (64, 64, 2)))
    assert seen.found == waits


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("bbbc039/PanopticFPN_R18_FPN.yaml", ["semantic", "panoptic"]),
        ("bbbc039/PFFNet_R18_FPN.yaml", ["semantic", "panoptic"]),
        ("bbbc039/PFFNet_R18_FPN.yaml", ["semantic_fused", "panoptic"]),
        ("bbbc039/CellRCNN_V2_R18_FPN.yaml", ["semantic_fused", "panoptic"]),
    ],
)
def test_the_visualizer_draws_every_output(make_batch: Callable, name: str, outputs: list[str]) -> None:
    metadata = Metadata(thing_classes=["nucleus"], stuff_classes=["background", "nucleus"])
    torch.manual_seed(0)
    model = build_model(tiny(name, PFFNET__OUTPUTS=outputs, PANOPTIC_FPN__COMBINE__INSTANCES_CONFIDENCE_THRESH=0.0))
    (batch,) = make_batch((64, 64, 3))
    with torch.no_grad():
        (result,) = model.eval()([{"image": batch["image"], "height": 80, "width": 90}])
    picture = np.full((80, 90, 3), 127, np.uint8)
    segments, infos = result["panoptic_seg"]
    assert {info["id"] for info in infos} == set(segments.unique().tolist()) - {0}
    assert all(info["isthing"] for info in infos)
    assert infos
    for draw in (
        lambda v: v.draw_instance_predictions(result["instances"]),
        lambda v: v.draw_sem_seg(result["sem_seg"].argmax(0)),
        lambda v: v.draw_panoptic_seg_predictions(segments, infos),
    ):
        drawn = draw(Visualizer(picture, metadata)).get_image()
        assert drawn.shape == picture.shape
        assert (drawn != picture).any()
