"""Fine-tuning: from a folder of a user's annotated images to a model folder."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from torch import nn

from pffnet_d2.atomic_write import write_text
from pffnet_d2.config import config_path, differences, read_config
from pffnet_d2.data.catalog import register_prepared
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.readers import own
from pffnet_d2.engine.arguments import argument_parser
from pffnet_d2.engine.console import Progress, draw_overlays, quiet, score_table
from pffnet_d2.engine.run_config import setup
from pffnet_d2.engine.trainer import Trainer
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import read_image
from pffnet_d2.inference.modality import unlike_fluorescence
from pffnet_d2.masks.coco import paint
from pffnet_d2.model_zoo.facts import ModelFacts
from pffnet_d2.model_zoo.find import CONFIG, DEFAULT, find_model

RECIPE, SCRATCH = "finetune.yaml", "scratch.yaml"
MIN_DIVIDED = 10  # from this number of images on, a fifth is kept for validation
NAME = "own"  # of the prepared data set


def finetune(
    start: str,
    source: Path,
    out: Path,
    *,
    config: str | None = None,
    options: Mapping[str, str] | None = None,
    resume: bool = False,
    opts: Sequence[str] = (),
    hooks: Sequence[HookBase] = (),
) -> int:
    """Prepare the images in ``out`` / data, train, and print the results.

    Args:
        start: "pretrained", "scratch", a model's name or folder, or a checkpoint file.
        source: the user's folder, in a layout that the reader ``own`` knows. Folders train/ and val/ are used as they
            are. Otherwise a fifth of the images, drawn at random, is kept for validation where there are MIN_DIVIDED
            or more, and none where there are fewer.
        out: the folder of the run.
        config: of a checkpoint file, or of a model to train from scratch.
        options: of the reader, as text.
        resume: continue from the last checkpoint in ``out``.
        opts: KEY VALUE pairs that override the recipe.
        hooks: run after Detectron2's own in each iteration, to follow the training (``trainer.storage`` holds the
            losses) or, by an exception, to end it.

    Returns:
        0.

    Raises:
        InputError: images, model, options or keys cannot be used.
    """
    began = time.perf_counter()
    say = partial(print, file=sys.stdout, flush=True)
    cfg = starting_config(start, config)
    say(f"1/3  {source} -> {out / 'data'}")
    given = {"normalisation": cfg.MODEL.PFFNET.NORMALISATION, **(options or {})}
    splits = prepare_own(source, out / "data", given)
    adapt(cfg, splits, measure_padding=start == "scratch" and config is None)
    recipe = out / "recipe.yaml"
    write_text(recipe, yaml.safe_dump(differences(cfg)))
    if not resume:
        # Detectron2 appends to this file.
        (out / "metrics.json").unlink(missing_ok=True)
    arguments = ["--config-file", str(recipe), *(["--resume"] if resume else []), "OUTPUT_DIR", str(out), *opts]
    with quiet():
        frozen = setup(argument_parser().parse_args(arguments))
        model, scores = _train(frozen, resume, hooks, say)
        pictured = draw_overlays(frozen, model, f"{NAME}_{splits[-1]}", out / "overlays")
    for title, results in scores.items():
        say(f"     {title}, on the images kept for validation:\n{score_table(results)}")
    if not scores:
        say(f"     fewer than {MIN_DIVIDED} images: all were trained on, none kept to score the model")
    say(f"     {pictured} pictures (image | truth | prediction) of {splits[-1]} in {out / 'overlays'}")
    say(f"3/3  pffnet predict IMAGE --model {out}  ({time.perf_counter() - began:.0f} s in all)")
    return 0


def _train(
    cfg: CfgNode, resume: bool, hooks: Sequence[HookBase], say: Callable[[str], object]
) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """The trained model, and its scores before and after training where images are kept for validation."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    device = "CPU" if cfg.MODEL.DEVICE == "cpu" else torch.cuda.get_device_name()
    say(
        f"2/3  from {cfg.MODEL.WEIGHTS or 'random weights'} on the {device}, {cfg.SOLVER.MAX_ITER} iterations of "
        f"{cfg.SOLVER.IMS_PER_BATCH} crops; all messages in {Path(cfg.OUTPUT_DIR) / 'log.txt'}"
    )
    scores = {}
    if cfg.MODEL.WEIGHTS and cfg.DATASETS.TEST and not resume:
        scores["before"] = Trainer.test(cfg, trainer.model)
    trainer.register_hooks([Progress(say), *hooks])
    scores["after"] = trainer.train()
    return trainer.model_to_use, {title: results for title, results in scores.items() if results}


def starting_config(start: str, config: str | None) -> CfgNode:
    """The config of the model, overridden by the recipe. MODEL.WEIGHTS names the weights that training starts from.

    Raises:
        InputError: the model or its files cannot be found or read.
    """
    if start == "scratch":
        return read_config(config or str(config_path(SCRATCH)))
    if start != "pretrained" and Path(start).is_file():
        weights = start
        beside = Path(start).with_name(CONFIG)
        if config is None and not beside.is_file():
            raise InputError(f"{start}: no {CONFIG} beside it; give the config of its training with --config-file")
        config = config or str(beside)
    else:
        if config is not None:
            raise InputError(f"--config-file {config}: the model {start} has its own; give --from a checkpoint file")
        model = find_model(DEFAULT if start == "pretrained" else start)
        config, weights = str(model.config), str(model.weights)
    cfg = read_config(config)
    cfg.merge_from_file(str(config_path(RECIPE)), allow_unsafe=False)
    cfg.MODEL.WEIGHTS = weights
    return cfg


def prepare_own(source: Path, root: Path, options: Mapping[str, str]) -> list[str]:
    """Prepare a user's images under ``root``, and register them as own_<split>.

    They are read again each time: corrected labels have the same names as the old ones.

    Returns:
        The splits to use: train, and val if there is one.
    """
    options = {"category": "nucleus", **options}
    count = own.count_undivided(source, **options)
    if count and not {"fractions", "lists"} & options.keys():
        options["fractions"] = "train=1" if count < MIN_DIVIDED else "train=0.8,val=0.2"
    splits = prepare(NAME, source, root, Selection(options=options), dataset=NAME, force=True)
    if "train" not in splits:
        raise InputError(f"{source}: its splits are {', '.join(splits)}; one must be called train")
    register_prepared(root)
    return [split for split in ("train", "val") if split in splits]


def adapt(cfg: CfgNode, splits: Sequence[str], *, measure_padding: bool) -> None:
    """Set the keys that depend on the images: data sets, diameter of the objects, size of a pixel (which is not known),
    whether all look like fluorescence, and the caps on proposals and detections.

    Args:
        measure_padding: also set MODEL.PIXEL_MEAN to the median of each channel, so that padding looks like most of
            the pixels. A trained model keeps its own.

    Raises:
        InputError: no image for training has an object.
    """
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((f"{NAME}_{s}",) if s in splits else () for s in ("train", "val"))
    prepared = {split: DatasetCatalog.get(f"{NAME}_{split}") for split in splits}
    records = prepared["train"]
    areas = np.concatenate([paint(r["annotations"], r["height"], r["width"])[1] for r in records])
    if not areas.size:
        raise InputError("no image for training has an object; give label images with ids from 1 on")
    cfg.MODEL.PFFNET.DIAMETER = round(float((2 * np.sqrt(areas / np.pi)).mean()), 2)
    cfg.MODEL.PFFNET.PIXEL_SIZE = 0.0
    _raise_caps(cfg, [record["height"] * record["width"] for split in splits for record in prepared[split]])

    fluorescence = True
    counts = np.zeros((3, 256), np.int64)
    for record in records:
        rgb: Any = read_image(record["file_name"])
        fluorescence &= not unlike_fluorescence(rgb)
        counts += [np.bincount(rgb[:, :, channel].ravel(), minlength=256) for channel in range(3)]
    cfg.MODEL.PFFNET.IMAGES = "fluorescence" if fluorescence else ""
    if measure_padding:
        below = counts.cumsum(axis=1) * 2 >= counts.sum(axis=1, keepdims=True)
        red, green, blue = below.argmax(axis=1).astype(float).tolist()
        cfg.MODEL.PIXEL_MEAN = [red, green, blue] if cfg.INPUT.FORMAT == "RGB" else [blue, green, red]


def _raise_caps(cfg: CfgNode, sizes: Sequence[int]) -> None:
    """Raise the caps of ``cfg`` as prediction does for images as large as the median of ``sizes``, in pixels.

    Evaluation uses the caps of the config; without this it would miss objects that prediction with the model finds.
    """
    size = round(float(np.median(sizes)))
    facts = ModelFacts.from_config(cfg, stride=1)  # the caps do not depend on it
    factor = facts.cap_factor(size, 1)
    if factor > 1:
        for key, cap in facts.caps.items():
            cfg.merge_from_list([key, math.ceil(cap * factor)])
        cfg.MODEL.PFFNET.CAPS_AREA = size
