"""Caps on the proposals and detections of a network: multiplies them for one call, and records which were reached.

``pffnet_d2.inference.caps`` says why. The class score that detections need is raised for one call in the same way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from .fcn8s import FCN8s
from .object_guided.meta_arch import ObjectGuided
from .tta import TestTimeAugmentation


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

    def forget(self) -> None:
        """Forgets the calls of the model so far."""
        self._rpn.clear()


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


@contextmanager
def counted_caps(model: nn.Module, cfg: CfgNode) -> Iterator[Counter[str]]:
    """Counts, while a model runs with the caps of its config, the images in which each of them was reached."""
    counted: Counter[str] = Counter()
    with scaled_caps(model, cfg, 1.0) as reached:

        def count(_: nn.Module, __: Any, outputs: Sequence[dict[str, Any]]) -> None:
            for index, output in enumerate(outputs):
                counted.update(reached.of_image(index, len(outputs), output["instances"]))
            reached.forget()

        handle = model.register_forward_hook(count)
        try:
            yield counted
        finally:
            handle.remove()


@contextmanager
def only_above(model: nn.Module, score: float) -> Iterator[None]:
    """Let a model leave out detections with a class score of at most ``score`` inside the block, before it predicts
    their masks.

    The other detections do not change: suppression and cap go by descending class score, and rescoring by the semantic
    branch only lowers it. Test-time augmentation averages the class scores of all views, so it gets all detections.
    """
    heads = [module for module in model.modules() if isinstance(module, FastRCNNOutputLayers)]
    if any(isinstance(module, TestTimeAugmentation) for module in model.modules()):
        heads = []
    before = [head.test_score_thresh for head in heads]
    try:
        for head in heads:
            head.test_score_thresh = max(head.test_score_thresh, score)
        yield
    finally:
        for head, threshold in zip(heads, before, strict=True):
            head.test_score_thresh = threshold


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
