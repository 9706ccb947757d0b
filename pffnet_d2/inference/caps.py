"""How many proposals and detections an image may have: caps that grow with it, and whether they cut objects off.

A config says how many of each an image of MODEL.PFFNET.CAPS_AREA pixels may have, which is enough for the images of
training. An image of nine times that area holds nine times as many objects, so prediction multiplies the caps by the
ratio of the areas. Measured on nine fields of BBBC039 side by side (1560 x 2088 pixels, the shipped model, one CPU
core): without that 500 objects; with it 1,624 of the 1,658 that the fields give one by one (F1 0.980, the rest are cut
by the fields' borders) in 12 s; in tiles of 1024 pixels 1,616 (F1 0.978) in 17 s, of 512 pixels 1,619 (F1 0.975) in
30 s. So larger caps are both faster and nearer than tiles made without being asked for.
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
    """Which caps cut off what looks like an object, as "KEY VALUE" of the config, filled while the model runs.

    A cap that only cuts off what the rest of the network would not take for an object hides nothing: proposals count
    from an objectness of one half, detections from the class score that the label map asks for.
    """

    def __init__(self, cfg: CfgNode, factor: float) -> None:
        self._cfg, self._factor = cfg, factor
        self._rpn: list[set[str]] = []  # of each image that the RPN saw, or of each of its views

    def watch(self, rpn: RPN, hooks: ExitStack) -> None:
        """Count the proposals of an RPN until ``hooks`` are closed."""
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
        """Of one of the images that the model was called with, and what it found there."""
        views = len(self._rpn) // images  # test-time augmentation shows several of each
        keys = set().union(*self._rpn[index * views : (index + 1) * views])
        cap = self._cfg.TEST.DETECTIONS_PER_IMAGE
        if 0 < math.ceil(cap * self._factor) <= len(instances):
            scores: Tensor = instances.class_scores if instances.has("class_scores") else instances.scores
            if bool((scores > self._cfg.MODEL.PFFNET.LABEL_MAP.SCORE_THRESH).all()):
                keys.add(f"TEST.DETECTIONS_PER_IMAGE {cap}")
        return tuple(sorted(keys))


def factor_for(cfg: CfgNode, height: int, width: int) -> float:
    """By what the caps of a config are multiplied for an image of so many pixels as the network sees it; at least 1."""
    area = cfg.MODEL.PFFNET.CAPS_AREA
    return max(height * width / area, 1.0) if area > 0 else 1.0


@contextmanager
def scaled_caps(model: nn.Module, cfg: CfgNode, factor: float) -> Iterator[CapsReached]:
    """A model whose caps are ``factor`` times those of its config while the block lasts; says which were reached."""
    before = [(place, key, place[key]) for module in model.modules() for place, key in _caps_of(module)]
    reached = CapsReached(cfg, factor)
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, RPN):
                reached.watch(module, hooks)
        try:
            for place, key, cap in before:
                if cap > 0:  # Detectron2's -1 stands for none
                    place[key] = math.ceil(cap * factor)
            yield reached
        finally:
            for place, key, cap in before:
                place[key] = cap


def _caps_of(module: nn.Module) -> list[tuple[MutableMapping[Any, Any], Any]]:
    """Where a module keeps its caps for prediction: a mapping and the key in it."""
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
    """What caps that were reached mean and what to do, in one line; "" where there are none."""
    if not reached:
        return ""
    doubled = [f"{key} {2 * int(value)}" for key, _, value in (cap.partition(" ") for cap in reached)]
    return (
        f"objects may be missing: {' and '.join(reached)} {'was' if len(reached) == 1 else 'were'} "
        f"reached; raise with --opts {' '.join(doubled)}"
    )
