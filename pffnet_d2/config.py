"""The configuration keys this plugin adds to Detectron2's, and where its yaml files lie.

One comment a key: what it does, the papers' symbol, and where it stands in the papers ([P] PFFNet, IEEE TIP 30, 2021;
[V2] Cell R-CNN V2, IJCAI 2019) or in the code released with [P].
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pffnet_d2.errors import InputError


def config_path(name: str = "") -> Path:
    """Path of a yaml shipped with the package, such as ``PFFNet_R101_FPN.yaml`` or ``demo/PFFNet_R18_FPN.yaml``.

    Raises:
        InputError: no such file; the message lists what there is.
    """
    here = Path(__file__).resolve().parent
    installed = here / "configs"
    root = installed if installed.is_dir() else here.parent / "configs"
    path = root / name
    if not path.exists():
        known = ", ".join(sorted(str(p.relative_to(root)) for p in root.rglob("*.yaml")))
        raise InputError(f"{name}: no such config; pffnet_d2 ships {known}")
    return path


def read_config(config_file: str, opts: Sequence[str] = ()) -> Any:
    """Detectron2's defaults and this plugin's keys, overridden by a yaml file and then by KEY VALUE pairs.

    Raises:
        InputError: a file is missing or is not yaml of plain values, a key is unknown, or a value has the wrong type.
    """
    import yaml
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_pffnet_config(cfg)
    if not os.path.isfile(config_file):
        what = f"{config_file}: no such config file" if config_file else "no config file given"
        raise InputError(f"{what}; name one with --config-file, such as configs/PFFNet_R101_FPN.yaml")
    try:
        # Upstream's default runs python code that a yaml file asks for.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except FileNotFoundError as error:
        raise InputError(f"{config_file}: its _BASE_ {error.filename} does not exist") from error
    except RecursionError as error:
        raise InputError(f"{config_file}: its _BASE_ files name each other in a circle") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}" if mark else config_file
        raise InputError(f"{place}: no yaml of plain values: {getattr(error, 'problem', error)}") from error
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{config_file}: {_said_by(error)}") from error
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"command line, {' '.join(opts)}: {_said_by(error)}") from error
    return cfg


def _said_by(error: Exception) -> str:
    """First line of yacs' message; str() of a KeyError is quoted."""
    return str(error.args[0] if error.args else type(error).__name__).strip().partition("\n")[0]


def label_map_rule(cfg: Any) -> dict[str, Any]:
    """MODEL.PFFNET.LABEL_MAP as the arguments of ``inference.label_map.instances_to_label_map``."""
    rule = cfg.MODEL.PFFNET.LABEL_MAP
    return {
        "score_threshold": rule.SCORE_THRESH,
        "mask_threshold": rule.MASK_THRESH,
        "max_covered": rule.MAX_COVERED,
        "fill_holes": rule.FILL_HOLES,
        "largest_component": rule.LARGEST_COMPONENT,
        "min_size": rule.MIN_SIZE,
        "largest_first": rule.LARGEST_FIRST,
    }


def add_pffnet_config(cfg: Any) -> None:
    """Add the keys of PFFNet and its family to ``cfg`` (a detectron2 ``CfgNode``), in place."""
    import torch
    from detectron2.config import CfgNode as CN

    # Detectron2's default is "cuda" even where there is none.
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

    cfg.INPUT.PFFNET = CN()
    # On-line augmentations, in order: flip, rotate90, gaussian_blur, median_blur, gaussian_noise, emboss, sharpen,
    # channel_shuffle, jitter, brightness ([P] IV-A: flips and rotations for every data set, blurs and noise for all but
    # BBBC039).
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["flip", "rotate90"]

    cfg.MODEL.PFFNET = CN()
    # What inference returns beside the instances: "semantic" (S_sem) and "panoptic". Without them GCN does not run.
    cfg.MODEL.PFFNET.OUTPUTS = ["instances"]
    # Weight of the mask loss.
    cfg.MODEL.PFFNET.MASK_LOSS_WEIGHT = 1.0
    # alpha_2 of [P] Eq. 6, the weight of the semantic consistency loss; 0 leaves it out.
    cfg.MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT = 1.0

    # From scored instances to a label map.
    cfg.MODEL.PFFNET.LABEL_MAP = CN()
    # beta: instances need a class score above it. Release: 0.5 Kumar and TNBC, 0.35 BBBC039, 0.6 CVPPP.
    cfg.MODEL.PFFNET.LABEL_MAP.SCORE_THRESH = 0.5
    # Mask probability from which a pixel belongs to an instance.
    cfg.MODEL.PFFNET.LABEL_MAP.MASK_THRESH = 0.5
    # An instance is dropped when more than this fraction of it is covered by better ones (release; not in [P]).
    cfg.MODEL.PFFNET.LABEL_MAP.MAX_COVERED = 0.7
    # None of the next three is in [P] or its release.
    # Fill the holes of each mask.
    cfg.MODEL.PFFNET.LABEL_MAP.FILL_HOLES = False
    # Keep the largest connected part of each instance only.
    cfg.MODEL.PFFNET.LABEL_MAP.LARGEST_COMPONENT = False
    # Drop instances that keep fewer pixels.
    cfg.MODEL.PFFNET.LABEL_MAP.MIN_SIZE = 0
    # Contested pixels go to the largest instance, not to the best (DSB2018 coursework: configs/dsb2018/coursework).
    cfg.MODEL.PFFNET.LABEL_MAP.LARGEST_FIRST = False

    # Test-time augmentation: prediction and evaluation run on each of these views of an image and merge what they
    # find; names of inference/tta.py. Empty: the image as it is, once.
    cfg.MODEL.PFFNET.TTA = []

    # Residual attention feature fusion (RAFF), [P] Algorithm 1.
    cfg.MODEL.PFFNET.FUSION = CN()
    # A name of FEATURE_FUSION_HEAD_REGISTRY; "" builds no fusion (Cell R-CNN).
    cfg.MODEL.PFFNET.FUSION.NAME = "RAFFHead"
    # [P] Fig. 10: "residual_attention" (d), "attention" (c), "summation" (b), "replacement" (a, Cell R-CNN V2).
    cfg.MODEL.PFFNET.FUSION.MODE = "residual_attention"
    # True: no gradient from the fused map into the masks (release). [P] wants it to train the mask generator.
    cfg.MODEL.PFFNET.FUSION.DETACH = False
    # Where P_i is pasted: "proposal" (the mask's own frame) or "predicted" (the regressed box, as released).
    cfg.MODEL.PFFNET.FUSION.BOXES = "proposal"
    # K: "all" positive ROIs (Algorithm 1, release) or the "best" scored one of each object ([V2]'s wording).
    cfg.MODEL.PFFNET.FUSION.ROIS = "all"
    # P_i: "foreground" (one map for both channels of F_0, [P]) or "per_channel" (each its own, release).
    cfg.MODEL.PFFNET.FUSION.CHANNELS = "foreground"
    # ReLU, conv 3x3, ReLU, conv 1x1 on F_K (release; not in [P]'s text).
    cfg.MODEL.PFFNET.FUSION.POST_CONVS = True
    # alpha_1 of [P] Eq. 6 for the loss of S_ins; that of S_sem is MODEL.SEM_SEG_HEAD.LOSS_WEIGHT. Release: 1.
    cfg.MODEL.PFFNET.FUSION.LOSS_WEIGHT = 0.1

    cfg.MODEL.ROI_MASK_QUALITY_HEAD = CN()
    # A name of ROI_MASK_QUALITY_HEAD_REGISTRY; "" builds none, and scores are class scores.
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.NAME = "MaskQualityHead"
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.NUM_CONV = 4  # [P] Table I (its text says 3)
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.CONV_DIM = 256
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.FC_DIM = 1024
    # How the 28x28 mask becomes 14x14 channels: "space_to_depth" (4, aligned with the ROI feature), "view" (4, the
    # release's memory reshape) or "max_pool" (1, Mask Scoring R-CNN).
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.RESHAPE = "space_to_depth"
    # Sigmoid on the output ([P]: a value in (0, 1)); False: linear (release).
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.SIGMOID = True
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.LOSS_WEIGHT = 1.0

    # DualModalMaskHead; it takes NUM_CONV (shared convolutions), CONV_DIM and NORM from Detectron2's keys.
    # "paper": NUM_CONV shared, the spatial path's first convolution its own ([V2] Table 1, NUM_CONV 3);
    # "release": NUM_CONV shared (4) and the spatial path repeats the last of them with tied weights.
    cfg.MODEL.ROI_MASK_HEAD.TRUNK = "paper"
    # Channels entering the fully connected layer of the FC path (paper 128: 19.7 M parameters).
    cfg.MODEL.ROI_MASK_HEAD.FC_PATH_DIM = 128
    # ReLU on the FC path's map (release), which then can only raise the logits.
    cfg.MODEL.ROI_MASK_HEAD.FC_RELU = False

    # GCNHead; it takes CONVS_DIM (64), NORM and LOSS_WEIGHT (alpha_1) from Detectron2's keys.
    # ReLU in the boundary refinement blocks, as in the original GCN; neither [P]'s code nor its text has it.
    cfg.MODEL.SEM_SEG_HEAD.GCN_RELU = False

    # FCN8s (modeling/fcn.py), the coursework's baseline.
    cfg.MODEL.FCN8S = CN()
    # Channels of the five stages of VGG-16; these fit torchvision's weights.
    cfg.MODEL.FCN8S.WIDTHS = [64, 128, 256, 512, 512]
    # Channels of fc6 and fc7; 4096 fits torchvision's weights.
    cfg.MODEL.FCN8S.FC_DIM = 4096
    # Norm of VGG's convolutions; torchvision's weights have none. From random weights it trains far better with "BN".
    cfg.MODEL.FCN8S.NORM = ""
    # Radius in pixels of the erosion that parts touching nuclei; 0: connected parts. The coursework tells none: with
    # the true foreground of DSB2018's training images 4 gave the best AJI and DSB mAP of 0 to 8.
    cfg.MODEL.FCN8S.EROSION_RADIUS = 4

    # "SGD" (Detectron2's), or "ADAM": its weight decay is coupled (L2), momentum is not read.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Adam's epsilon (PyTorch's default; FCN8s: 1e-5, of the code the coursework modified).
    cfg.SOLVER.ADAM_EPSILON = 1e-8

    cfg.TEST.PFFNET = CN()
    # Also report VOC 2010 average precision of masks and of their boxes (docs/metrics.md).
    cfg.TEST.PFFNET.VOC_AP = False
