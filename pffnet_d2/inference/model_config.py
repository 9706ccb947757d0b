"""Builds the config of a model from the user's options."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from pffnet_d2.config import override, read_config
from pffnet_d2.config.values import check_values
from pffnet_d2.device import device_here
from pffnet_d2.errors import InputError
from pffnet_d2.inference.options import ModelOptions
from pffnet_d2.inference.thresholds import override_thresholds
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
        override_thresholds(cfg.MODEL.PFFNET.LABEL_MAP, options.thresholds)
    if weights is not None:
        cfg.MODEL.WEIGHTS = os.fspath(weights)
    if not cfg.MODEL.WEIGHTS:
        raise InputError("no weights; give the weights that were trained with this config (--weights FILE)")
    cfg.freeze()
    return cfg


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
