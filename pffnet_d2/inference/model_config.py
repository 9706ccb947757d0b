"""Builds the config of a model from the user's options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from pffnet_d2.config import override, read_config
from pffnet_d2.config.values import check_value, check_values
from pffnet_d2.device import device_here
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import BY_DEPTH, Normalisation
from pffnet_d2.inference.options import ModelOptions
from pffnet_d2.model_zoo.find import DEFAULT, find_model


def config_of(options: ModelOptions) -> CfgNode:
    """A new frozen config with the weights, the device and the thresholds of the options.

    Raises:
        InputError: a file cannot be read; a key is unknown or its value is out of range; the device does not exist; no
            weights are given; the files of a model are missing or damaged.
    """
    config, weights = options.config, options.weights
    if config is None:
        found = find_model(DEFAULT if options.model is None else options.model)
        config, weights = found.config, found.weights
    cfg = _read(config, options.opts)
    if options.device is not None:
        cfg.MODEL.DEVICE = str(options.device)
    elif options.config is None and "MODEL.DEVICE" not in options.opts:
        # The model may have been trained on another device.
        cfg.MODEL.DEVICE = device_here()
    else:
        cfg.MODEL.DEVICE = device_here(cfg.MODEL.DEVICE)
    check_device(cfg.MODEL.DEVICE)
    if options.thresholds is not None:
        _override_thresholds(cfg.MODEL.PFFNET.LABEL_MAP, options.thresholds)
    if weights is not None:
        cfg.MODEL.WEIGHTS = os.fspath(weights)
    if not cfg.MODEL.WEIGHTS:
        raise InputError("no weights; give the weights that were trained with this config (--weights FILE)")
    cfg.freeze()
    return cfg


def normalisation_for(cfg: CfgNode, options: ModelOptions) -> Normalisation:
    """The normalisation of the options; if they give none, that of training."""
    rule = options.normalisation_rule or BY_DEPTH[cfg.MODEL.PFFNET.NORMALISATION]
    return replace(rule, invert=True) if options.invert else rule


def scale_for(cfg: CfgNode, diameter: float | str | None) -> float:
    """The factor by which to enlarge images so that objects have the diameter that the model was trained on; 1 for
    "auto", which each image decides.

    Raises:
        InputError: the config does not state that diameter, or already resizes images.
    """
    if diameter is None:
        return 1.0
    given = diameter if isinstance(diameter, str) else f"{diameter:g}"
    if cfg.MODEL.PFFNET.DIAMETER <= 0:
        raise InputError(
            f"diameter {given}: the config does not state the diameter of the objects in training; add it, as in "
            "--opts MODEL.PFFNET.DIAMETER 24.0"
        )
    for key, side in {"MIN_SIZE_TEST": cfg.INPUT.MIN_SIZE_TEST, "SQUARE.TEST": cfg.INPUT.SQUARE.TEST}.items():
        if side:
            raise InputError(f"diameter {given}: INPUT.{key} resizes images already; set it to 0")
    return 1.0 if isinstance(diameter, str) else float(cfg.MODEL.PFFNET.DIAMETER) / diameter


def check_device(device: str) -> None:
    """Raises InputError if torch cannot use the device."""
    try:
        torch.zeros(1, device=device).cpu()  # fails for a device without data, such as meta
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise InputError(f"device {device or repr(device)}: cannot be used here; there is {here}") from error


def _read(config: CfgNode | str | os.PathLike[str], opts: Sequence[str]) -> CfgNode:
    """A new config, checked."""
    if not isinstance(config, CfgNode):
        return read_config(os.fspath(config), opts)
    if "PFFNET" not in config.MODEL:
        raise InputError("the config has no MODEL.PFFNET; call pffnet_d2.add_pffnet_config(cfg) before merging files")
    cfg = config.clone()
    cfg.defrost()
    override(cfg, opts)
    check_values(cfg, opts=opts)
    return cfg


def _override_thresholds(node: CfgNode, thresholds: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Sets keys of MODEL.PFFNET.LABEL_MAP. Each keeps its type."""
    name = "thresholds"
    if not isinstance(thresholds, Mapping):
        name = os.fspath(thresholds)
        thresholds = _read_thresholds(name)
    for key, value in thresholds.items():
        if key not in node:
            raise InputError(f"{name}: unknown key {key}; use {', '.join(sorted(node))}")
        if isinstance(node[key], bool):
            if not isinstance(value, bool):
                raise InputError(f"{name}: {key} {value!r}: give true or false")
            node[key] = value
            continue
        if isinstance(node[key], int) and isinstance(value, float) and value.is_integer():
            value = int(value)
        check_value(f"MODEL.PFFNET.LABEL_MAP.{key}", value, f"{name}: {key}")
        node[key] = type(node[key])(value)


def _read_thresholds(file: str) -> dict[str, Any]:
    """Reads a YAML file of keys, or a config that contains them under MODEL.PFFNET.LABEL_MAP."""
    try:
        thresholds = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file}: is not a YAML file; give lines such as SCORE_THRESH: 0.4") from error
    if not isinstance(thresholds, dict):
        raise InputError(f"{file}: contains no keys; give lines such as SCORE_THRESH: 0.4")
    if "MODEL" not in thresholds:
        return thresholds
    try:  # the form that `pffnet thresholds` writes
        return dict(thresholds["MODEL"]["PFFNET"]["LABEL_MAP"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: has no MODEL.PFFNET.LABEL_MAP; give the file of `pffnet thresholds`") from None
