"""Caps on the proposals and detections per image: scales them with the image area and reports when they are reached.

The caps of a config are meant for an image of MODEL.PFFNET.CAPS_AREA pixels, which is enough for the training images.
An image of nine times that area contains about nine times as many objects, so prediction multiplies the caps by the
ratio of the areas. Measured on nine fields of BBBC039 side by side (1560 x 2088 pixels, the shipped model, one CPU
core), where predicting the fields one by one finds 1,658 objects:

- caps not scaled: 500 objects;
- caps scaled: 1,624 objects (F1 0.980; the rest are cut by the borders of the fields) in 12 s;
- tiles of 1024 pixels: 1,616 objects (F1 0.978) in 17 s;
- tiles of 512 pixels: 1,619 objects (F1 0.975) in 30 s.

Scaled caps are therefore faster and more accurate than automatic tiling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from pffnet_d2.modeling.fcn8s import FCN8s
from pffnet_d2.modeling.object_guided.meta_arch import ObjectGuided
from pffnet_d2.modeling.tta import TestTimeAugmentation


class CapsReached:
    """Records, while the model runs, which caps removed likely objects, as "KEY VALUE" of the config.

    A cap is reported only if it may have removed real objects: proposals count if their objectness is at least one
    half, and detections if their class score reaches the threshold of the label map.
    """

    def __init__(self, cfg: CfgNode, factor: float) -> None:
        self._cfg, self._factor = cfg, factor
        self._rpn: list[set[str]] = []  # one set per image that the RPN saw, or per view of it

    def watch(self, rpn: RPN, hooks: ExitStack) -> None:
        """Counts the proposals of an RPN until ``hooks`` is closed."""
        topk = self._cfg.MODEL.RPN
        crowded: list[bool] = []

        def before_nms(_: nn.Module, __: Any, output: tuple[Sequence[Tensor], Any]) -> None:
            above = torch.stack([(level > 0).flatten(1).sum(1) for level in output[0]])  # (levels, images)
            crowded[:] = (above > rpn.pre_nms_topk[False]).any(0).tolist()

        def after_nms(_: nn.Module, __: Any, output: tuple[Sequence[Instances], Any]) -> None:
            for more, proposals in zip(crowded, output[0], strict=True):
                kept = proposals.objectness_logits
                full = len(kept) >= rpn.post_nms_topk[False] and bool((kept > 0).all())
                keys = {f"MODEL.RPN.PRE_NMS_TOPK_TEST {topk.PRE_NMS_TOPK_TEST}"} if more else set()
                self._rpn.append(
                    keys | ({f"MODEL.RPN.POST_NMS_TOPK_TEST {topk.POST_NMS_TOPK_TEST}"} if full else set())
                )

        hooks.callback(rpn.rpn_head.register_forward_hook(before_nms).remove)
        hooks.callback(rpn.register_forward_hook(after_nms).remove)

    def of_image(self, index: int, images: int, instances: Instances) -> tuple[str, ...]:
        """The caps that were reached in image ``index`` of the ``images`` in a call of the model.

        Args:
            index: of the image in the call.
            images: number of images in the call.
            instances: what the model found in this image.
        """
        views = len(self._rpn) // images  # test-time augmentation shows several views of each image
        keys = set().union(*self._rpn[index * views : (index + 1) * views])
        cap = self._cfg.TEST.DETECTIONS_PER_IMAGE
        if 0 < math.ceil(cap * self._factor) <= len(instances):
            scores: Tensor = instances.class_scores if instances.has("class_scores") else instances.scores
            if bool((scores > self._cfg.MODEL.PFFNET.LABEL_MAP.SCORE_THRESH).all()):
                keys.add(f"TEST.DETECTIONS_PER_IMAGE {cap}")
        return tuple(sorted(keys))


def factor_for(cfg: CfgNode, height: int, width: int) -> float:
    """The factor by which to multiply the caps of a config for an image of this size in the network; at least 1."""
    area = cfg.MODEL.PFFNET.CAPS_AREA
    return max(height * width / area, 1.0) if area > 0 else 1.0


@contextmanager
def scaled_caps(model: nn.Module, cfg: CfgNode, factor: float) -> Iterator[CapsReached]:
    """Multiplies the caps of a model by ``factor`` inside the block. Yields a record of the caps that were reached."""
    before = [(place, key, place[key]) for module in model.modules() for place, key in _caps_of(module)]
    reached = CapsReached(cfg, factor)
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, RPN):
                reached.watch(module, hooks)
        try:
            for place, key, cap in before:
                if cap > 0:  # -1 means no cap in Detectron2
                    place[key] = math.ceil(cap * factor)
            yield reached
        finally:
            for place, key, cap in before:
                place[key] = cap


def _caps_of(module: nn.Module) -> list[tuple[MutableMapping[Any, Any], Any]]:
    """Where a module stores its caps for prediction, as pairs of a mapping and a key in it."""
    if isinstance(module, RPN):
        return [(module.pre_nms_topk, False), (module.post_nms_topk, False)]
    attributes = {
        FastRCNNOutputLayers: "test_topk_per_image",
        TestTimeAugmentation: "max_detections",
        ObjectGuided: "top",
        FCN8s: "max_instances",
    }
    return [(vars(module), name) for kind, name in attributes.items() if isinstance(module, kind)]


def warning(reached: Sequence[str]) -> str:
    """One line that names the caps that were reached and says what to do; "" if no cap was reached."""
    if not reached:
        return ""
    doubled = [f"{key} {2 * int(value)}" for key, _, value in (cap.partition(" ") for cap in reached)]
    return (
        f"objects may be missing: {' and '.join(reached)} {'was' if len(reached) == 1 else 'were'} "
        f"reached; raise with --opts {' '.join(doubled)}"
    )
