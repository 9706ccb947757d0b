"""The values that each key of a config accepts. They are checked before a network is built.

Detectron2 only checks that a value has the type of its default. A value out of range then ends in a traceback, or even
in a network that finds nothing without any message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pffnet_d2.errors import InputError

IMAGES = ("fluorescence", "nuclei", "")  # kinds of images that a model may be made for: MODEL.PFFNET.IMAGES


@dataclass(frozen=True)
class Rule:
    """The values that a key accepts.

    Attributes:
        accepts: returns whether a value is accepted; called with values of any type.
        wants: returns what to give instead, worded to follow "give".
    """

    accepts: Callable[[Any], bool]
    wants: Callable[[], str]


def real(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
    """A finite number from ``low`` to ``high``; ``above`` and ``below`` exclude the limits themselves."""

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return (low < value if above else low <= value) and (value < high if below else value <= high)

    start = f"above {low:g}" if above else f"from {low:g}" if high < math.inf else f"of {low:g} or more"
    end = "" if high == math.inf else f" {'and' if above else 'to'} {'below ' if below else ''}{high:g}"
    text = "a number" if low == -math.inf else f"a number {start}{end}"
    return Rule(accepts, lambda: text)


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from ``low`` to ``high``."""

    def accepts(value: Any) -> bool:
        return type(value) is int and low <= value and (high is None or value <= high)

    text = f"a whole number of {low} or more" if high is None else f"a whole number from {low} to {high}"
    return Rule(accepts, lambda: text)


def among(*known: Any) -> Rule:
    """One of some values."""
    words = ", ".join(f"'{value}'" if value == "" else str(value) for value in known)
    # A list or a table in a yaml equals none of them, and 1 is not True.
    return Rule(lambda value: any(type(value) is type(k) and value == k for k in known), lambda: f"one of {words}")


def each(rule: Rule, count: int | None = None) -> Rule:
    """A list whose members follow ``rule``: ``count`` of them, or at least one."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) != (count or max(len(value), 1)):
            return False
        return all(map(rule.accepts, value))

    return Rule(accepts, lambda: f"a list of {count or 'one or more'}, each {rule.wants()}")


def maybe(rule: Rule, value: Any) -> Rule:
    """``rule``, or one additional value."""
    return Rule(lambda given: given == value or rule.accepts(given), lambda: f"{rule.wants()}, or {value!r}")


def weight(low: float, high: float) -> Rule:
    """A text "NAME=FACTOR" whose factor is a number from ``low`` to ``high``."""

    def accepts(value: Any) -> bool:
        name, _, factor = value.rpartition("=") if isinstance(value, str) else ("", "", "")
        try:
            return bool(name) and low <= float(factor) <= high
        except ValueError:
            return False

    return Rule(accepts, lambda: f"NAME=FACTOR with a factor from {low:g} to {high:g}")


def registered(registry: str) -> Rule:
    """A name in a registry, given as "MODULE:NAME". It is read when the config is checked: others may add to it."""

    def names() -> list[str]:
        module, _, name = registry.partition(":")
        return sorted(name for name, _ in getattr(import_module(module), name))

    return Rule(lambda value: value in names(), lambda: f"one of {', '.join(names())}")


_D2 = "detectron2.modeling"
_FRACTION = real(0, 1)
_WEIGHT = real(0)
_COUNT = whole(1)
_NORM = among("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_POOLER = among("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
# Objects need a score above the threshold, and scores are at most 1, so that a threshold of 1 would find no objects.
_THRESHOLD = real(0, 1, below=True)

VALUES: dict[str, Rule] = {
    # The network
    "MODEL.META_ARCHITECTURE": registered(f"{_D2}:META_ARCH_REGISTRY"),
    "MODEL.PIXEL_MEAN": each(real(), 3),
    "MODEL.PIXEL_STD": each(real(0, above=True), 3),
    "MODEL.BACKBONE.NAME": registered(f"{_D2}:BACKBONE_REGISTRY"),
    "MODEL.BACKBONE.FREEZE_AT": whole(0, 5),
    "MODEL.RESNETS.DEPTH": among(18, 34, 50, 101, 152),
    "MODEL.RESNETS.NUM_GROUPS": _COUNT,
    "MODEL.RESNETS.NORM": _NORM,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _COUNT,
    "MODEL.RESNETS.RES5_DILATION": among(1, 2),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _COUNT,
    "MODEL.EFFICIENTNET_LITE.VERSION": among(0, 1, 2),
    "MODEL.FPN.OUT_CHANNELS": _COUNT,
    "MODEL.FPN.NORM": _NORM,
    "MODEL.FPN.FUSE_TYPE": among("sum", "avg"),
    "MODEL.PROPOSAL_GENERATOR.NAME": maybe(registered(f"{_D2}:PROPOSAL_GENERATOR_REGISTRY"), "PrecomputedProposals"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": real(0),
    "MODEL.ANCHOR_GENERATOR.NAME": registered(f"{_D2}:ANCHOR_GENERATOR_REGISTRY"),
    "MODEL.ANCHOR_GENERATOR.SIZES": each(each(real(0, above=True))),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": each(each(real(0, above=True))),
    "MODEL.ANCHOR_GENERATOR.OFFSET": _THRESHOLD,
    "MODEL.RPN.HEAD_NAME": registered(f"{_D2}.proposal_generator.rpn:RPN_HEAD_REGISTRY"),
    "MODEL.RPN.IOU_THRESHOLDS": each(_FRACTION, 2),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": _FRACTION,
    "MODEL.RPN.SMOOTH_L1_BETA": _WEIGHT,
    "MODEL.RPN.LOSS_WEIGHT": _WEIGHT,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _COUNT,
    "MODEL.RPN.NMS_THRESH": _FRACTION,
    "MODEL.ROI_HEADS.NAME": registered(f"{_D2}:ROI_HEADS_REGISTRY"),
    "MODEL.ROI_HEADS.NUM_CLASSES": _COUNT,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": each(_FRACTION),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _FRACTION,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _THRESHOLD,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _FRACTION,
    "MODEL.ROI_BOX_HEAD.NAME": maybe(registered(f"{_D2}:ROI_BOX_HEAD_REGISTRY"), ""),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _WEIGHT,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": _COUNT,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": whole(0),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.ROI_BOX_HEAD.NUM_FC": whole(0),
    "MODEL.ROI_BOX_HEAD.FC_DIM": _COUNT,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": whole(0),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _COUNT,
    "MODEL.ROI_BOX_HEAD.NORM": _NORM,
    "MODEL.ROI_MASK_HEAD.NAME": registered(f"{_D2}:ROI_MASK_HEAD_REGISTRY"),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": _COUNT,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": whole(0),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": whole(0),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _COUNT,
    "MODEL.ROI_MASK_HEAD.NORM": _NORM,
    "MODEL.ROI_MASK_HEAD.FC_PATH_DIM": _COUNT,
    "MODEL.ROI_MASK_QUALITY_HEAD.NAME": maybe(
        registered("pffnet_d2.modeling.mask_quality_head:ROI_MASK_QUALITY_HEAD_REGISTRY"), ""
    ),
    "MODEL.ROI_MASK_QUALITY_HEAD.NUM_CONV": whole(0),
    "MODEL.ROI_MASK_QUALITY_HEAD.CONV_DIM": _COUNT,
    "MODEL.ROI_MASK_QUALITY_HEAD.FC_DIM": _COUNT,
    "MODEL.ROI_MASK_QUALITY_HEAD.LOSS_WEIGHT": _WEIGHT,
    "MODEL.SEM_SEG_HEAD.NAME": maybe(registered(f"{_D2}:SEM_SEG_HEADS_REGISTRY"), ""),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _COUNT,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": whole(0, 255),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": _COUNT,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": _COUNT,
    "MODEL.SEM_SEG_HEAD.NORM": _NORM,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": _WEIGHT,
    # PFFNet and its family
    "MODEL.PFFNET.NORMALISATION": among("auto", "stretch"),
    "MODEL.PFFNET.SEMANTIC_POWER": real(0),
    "MODEL.PFFNET.BOX_REFINEMENTS": whole(0, 10),
    "MODEL.PFFNET.MASK_LOSS_WEIGHT": _WEIGHT,
    "MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT": _WEIGHT,
    "MODEL.PFFNET.LABEL_MAP.SCORE_THRESH": _THRESHOLD,
    "MODEL.PFFNET.LABEL_MAP.MASK_THRESH": _THRESHOLD,
    "MODEL.PFFNET.LABEL_MAP.MAX_COVERED": _FRACTION,
    "MODEL.PFFNET.LABEL_MAP.MIN_SIZE": whole(0),
    "MODEL.PFFNET.DIAMETER": real(0),
    "MODEL.PFFNET.PIXEL_SIZE": real(0),
    "MODEL.PFFNET.IMAGES": among(*IMAGES),
    "MODEL.PFFNET.FUSION.NAME": maybe(registered("pffnet_d2.modeling.fusion_head:FEATURE_FUSION_HEAD_REGISTRY"), ""),
    "MODEL.PFFNET.FUSION.LOSS_WEIGHT": _WEIGHT,
    "MODEL.FCN8S.WIDTHS": each(_COUNT, 5),
    "MODEL.FCN8S.FC_DIM": _COUNT,
    "MODEL.FCN8S.NORM": _NORM,
    "MODEL.FCN8S.EROSION_RADIUS": whole(0),
    "MODEL.OBJECT_GUIDED.SHALLOW_CHANNELS": _COUNT,
    "MODEL.OBJECT_GUIDED.NORM": _NORM,
    "MODEL.OBJECT_GUIDED.HEAD_DIM": _COUNT,
    "MODEL.OBJECT_GUIDED.MIN_OVERLAP": real(0, 1, above=True, below=True),
    "MODEL.OBJECT_GUIDED.LOSS_WEIGHTS": each(_WEIGHT, 5),
    "MODEL.OBJECT_GUIDED.MIN_SIDE": real(0),
    "MODEL.OBJECT_GUIDED.ROI_EXPAND": real(0, above=True),
    "MODEL.OBJECT_GUIDED.ROI_SIZE": _COUNT,
    "MODEL.OBJECT_GUIDED.MAX_TRAIN_ROIS": whole(0),
    "MODEL.OBJECT_GUIDED.SCORE_THRESH_TEST": _THRESHOLD,
    "MODEL.OBJECT_GUIDED.MASK_NMS": _FRACTION,
    "MODEL.OBJECT_GUIDED.MASK_SIZE": _COUNT,
    "MODEL.OBJECT_GUIDED.REFINE.D": _COUNT,
    "MODEL.OBJECT_GUIDED.REFINE.K": real(0, above=True),
    "MODEL.OBJECT_GUIDED.REFINE.BETA": real(0, above=True),
    # Images; 0 keeps their size
    "INPUT.FORMAT": among("BGR", "RGB"),
    "INPUT.MIN_SIZE_TEST": whole(0),
    "INPUT.MAX_SIZE_TEST": _COUNT,
    "INPUT.MIN_SIZE_TRAIN": each(whole(0)),
    "INPUT.MAX_SIZE_TRAIN": _COUNT,
    "INPUT.CROP.TYPE": among("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": each(real(0, above=True), 2),
    "INPUT.SQUARE.TRAIN": whole(0),
    "INPUT.SQUARE.SCALES": each(real(0, above=True)),
    "INPUT.SQUARE.TEST": whole(0),
    "INPUT.PFFNET.SCALE_RANGE": each(real(0.1, 10), 2),
    "INPUT.PFFNET.STAIN_SIGMA": _FRACTION,
    "INPUT.PFFNET.INVERT_CHANCE": _FRACTION,
    "INPUT.PFFNET.COPY_PASTE_CHANCE": _FRACTION,
    # Training
    "DATALOADER.NUM_WORKERS": whole(0),
    "DATALOADER.PFFNET.BALANCE": _FRACTION,
    "DATALOADER.PFFNET.MAX_REPEAT": real(1),
    "DATALOADER.PFFNET.WEIGHTS": maybe(each(weight(0.01, 100)), []),
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.IMS_PER_BATCH": _COUNT,
    "SOLVER.REFERENCE_WORLD_SIZE": whole(0),
    "SOLVER.BASE_LR": real(0),
    "SOLVER.BIAS_LR_FACTOR": real(0),
    "SOLVER.MOMENTUM": real(0, 1, below=True),
    "SOLVER.WEIGHT_DECAY": real(0),
    "SOLVER.WEIGHT_DECAY_NORM": real(0),
    "SOLVER.WEIGHT_DECAY_BIAS": maybe(real(0), None),
    "SOLVER.GAMMA": real(0),
    "SOLVER.WARMUP_FACTOR": _FRACTION,
    "SOLVER.WARMUP_ITERS": whole(0),
    "SOLVER.WARMUP_METHOD": among("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": real(0, above=True),
    "SOLVER.PFFNET.OPTIMIZER": among("SGD", "ADAM", "ADAMW"),
    "SOLVER.PFFNET.ADAM_EPSILON": real(0),
    "SOLVER.PFFNET.CLIP_NORM": real(0),
    "SOLVER.PFFNET.EMA_DECAY": real(0, 1, below=True),
    "SOLVER.PFFNET.START_SHARE": real(0, 1, below=True),
    "SOLVER.AMP.DTYPE": among("float16", "bfloat16"),
    "TEST.DETECTIONS_PER_IMAGE": _COUNT,
    "TEST.EVAL_PERIOD": whole(0),
    "SEED": whole(-1, 2**31),
}


def check_value(key: str, value: Any, name: str) -> None:
    """Raise InputError if ``key`` does not accept a value. The message calls the key ``name``."""
    value = value.item() if hasattr(value, "item") else value  # a NumPy number
    rule = VALUES.get(key)
    if rule is not None and not rule.accepts(value):
        given = repr(value) if isinstance(value, str) else str(value)
        raise InputError(f"{name} {given}: give {rule.wants()}")


def check_values(cfg: Any, file: str = "", opts: Sequence[Any] = ()) -> None:
    """Check every value of a config whose key is in ``VALUES``, and values that depend on each other.

    Args:
        cfg: a merged config.
        file: the file its values come from, for messages.
        opts: KEY VALUE pairs that override the file.

    Raises:
        InputError: a value is not accepted. The message names the file or the command line, the key, its value and the
            values it accepts.
    """
    typed = set(map(str, opts[::2]))
    for key in VALUES:
        found, present = _lookup(cfg, key)
        if present:
            source = "command line, " if key in typed else f"{file}: " if file else ""
            check_value(key, found, f"{source}{key}")
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH in (18, 34) and resnets.RES2_OUT_CHANNELS != 64 and "resnet" in cfg.MODEL.BACKBONE.NAME:
        raise InputError(
            f"{file + ': ' if file else ''}MODEL.RESNETS.RES2_OUT_CHANNELS {resnets.RES2_OUT_CHANNELS}: a ResNet of "
            f"DEPTH {resnets.DEPTH} has 64; set MODEL.RESNETS.RES2_OUT_CHANNELS 64"
        )


def _lookup(cfg: Any, key: str) -> tuple[Any, bool]:
    """Return the value of a key with dots, and whether the config has that key."""
    node = cfg
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None, False
        node = node[part]
    return node, True
