"""From the command line to a checked config: mistakes are reported before a model is built."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from pffnet_d2.config import read_config
from pffnet_d2.data.catalog import register_all
from pffnet_d2.data.grey_values import unlike_prediction
from pffnet_d2.data.prepared import PreparedSplit
from pffnet_d2.device import device_here
from pffnet_d2.engine.optimizer import check_optimizer
from pffnet_d2.engine.resume import tell_changes
from pffnet_d2.engine.train_step import PRECISIONS
from pffnet_d2.errors import InputError, hide_traceback
from pffnet_d2.imaging.normalisation import BY_DEPTH

logger = logging.getLogger(__name__)


def check_config(cfg: CfgNode, *, train: bool, processes: int = 1) -> None:
    """Find mistakes that would otherwise show only after the model is built, or after hours of training.

    Args:
        cfg: a merged config.
        train: False when only evaluating, which reads neither the training data nor the starting weights.
        processes: how many train together, over all machines.

    Raises:
        InputError: an unknown or unprepared data set, missing weights, a precision that the device does not have, a
            batch that does not divide among the processes.
    """
    _check_data_sets(cfg, train=train)
    _check_outputs(cfg)
    if train:
        _check_training(cfg, processes)


def _data_sets(cfg: CfgNode, train: bool) -> list[str]:
    """The data sets that are read, each once."""
    return list(dict.fromkeys([*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST]))


def _tell_other_grey_values(cfg: CfgNode, *, train: bool) -> None:
    """Warn of prepared data sets whose grey values the model would not see again in prediction."""
    for name in _data_sets(cfg, train):
        file = MetadataCatalog.get(name).get("json_file")
        difference = file and unlike_prediction(
            PreparedSplit(Path(file).parent), BY_DEPTH[cfg.MODEL.PFFNET.NORMALISATION]
        )
        if difference:
            logger.warning(f"{name}: {difference}")


def _check_data_sets(cfg: CfgNode, *, train: bool) -> None:
    if not cfg.DATASETS.TEST and not train:
        raise InputError("DATASETS.TEST is empty; name the data sets to evaluate on, such as \"('phantoms_val',)\"")
    if not cfg.DATASETS.TRAIN and train:
        raise InputError("DATASETS.TRAIN is empty; name the data sets to train on, such as \"('phantoms_train',)\"")
    known = DatasetCatalog.list()
    for name in _data_sets(cfg, train):
        if name not in known:
            # Detectron2 registers dozens of its own; where no name is close, list ours.
            ours = [n for n in known if MetadataCatalog.get(n).get("evaluator_type") == "pffnet"]
            near = difflib.get_close_matches(name, known, n=5) or ours
            raise InputError(f"{name}: no such data set; did you mean {', '.join(near)}?")
        DatasetCatalog.get(name)  # raises InputError where it is not prepared


def _check_outputs(cfg: CfgNode) -> None:
    """Raises InputError for outputs that the model does not have. PFFNet checks its own."""
    model = cfg.MODEL.META_ARCHITECTURE
    outputs = set(cfg.MODEL.PFFNET.OUTPUTS) - {"instances"}
    given = {"GeneralizedRCNN": set(), "PanopticFPN": {"semantic", "panoptic"}}.get(model, outputs)
    if cfg.MODEL.PFFNET.TTA and outputs:
        raise InputError("MODEL.PFFNET.TTA merges instances only; set MODEL.PFFNET.OUTPUTS \"['instances']\"")
    if outputs - given:
        raise InputError(
            f"MODEL.PFFNET.OUTPUTS: {model} has no output {', '.join(sorted(outputs - given))}; leave it out, or set "
            "MODEL.META_ARCHITECTURE PFFNet"
        )


def _check_training(cfg: CfgNode, processes: int) -> None:
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise InputError(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} would keep random "
            "weights for ever; set MODEL.BACKBONE.FREEZE_AT 0, or MODEL.WEIGHTS to a local weights file"
        )
    if cfg.SOLVER.AMP.DTYPE not in PRECISIONS:
        raise InputError(f"SOLVER.AMP.DTYPE {cfg.SOLVER.AMP.DTYPE!r} is not one of {', '.join(PRECISIONS)}")
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16" and device_here(cfg.MODEL.DEVICE) == "cpu":
        raise InputError(
            "SOLVER.AMP.DTYPE float16 needs a CUDA device; set SOLVER.AMP.DTYPE bfloat16, or set SOLVER.AMP.ENABLED "
            "False"
        )
    check_optimizer(cfg)
    if list(cfg.SOLVER.STEPS) != sorted(set(cfg.SOLVER.STEPS)):
        raise InputError(f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)}: each must be later than the one before it")
    # Detectron2 scales the batch by processes / REFERENCE_WORLD_SIZE where that is set, and asserts even shares.
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or processes
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide among {processes} processes; set it to "
            "a multiple, or SOLVER.REFERENCE_WORLD_SIZE to the number of processes it is meant for"
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, checked and frozen. Detectron2 sets up loggers, seed and OUTPUT_DIR.

    Raises:
        InputError: see :func:`read_config` and :func:`check_config`.
    """
    register_all()
    cfg = read_config(args.config_file, args.opts, args.method)
    gpus = gpus_of(args)
    cfg.MODEL.DEVICE = device_here(cfg.MODEL.DEVICE) if gpus else "cpu"
    check_config(cfg, train=not args.eval_only, processes=comm.get_world_size())
    cfg.freeze()

    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {error.strerror}; choose a folder you can write to") from error
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="pffnet_d2", abbrev_name="pffnet_d2")
    logging.getLogger("detectron2.engine.train_loop").addFilter(hide_traceback)
    if args.resume and not args.eval_only and comm.is_main_process():
        tell_changes(Path(cfg.OUTPUT_DIR), cfg)  # before its config.yaml is replaced
    default_setup(cfg, args)
    if comm.is_main_process():
        _tell_other_grey_values(cfg, train=not args.eval_only)
    if cfg.MODEL.DEVICE == "cpu" and not torch.cuda.is_available() and not args.cpu_ranks:
        logger.info("no CUDA device: running on the CPU")
    return cfg


def gpus_of(args: argparse.Namespace) -> int:
    """How many GPUs to use on this machine. The default --num-gpus 1 means the CPU where there is none.

    Raises:
        InputError: there are fewer GPUs, or the flags exclude each other.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.num_gpus < 0 or args.num_machines < 1 or args.cpu_ranks < 0:
        raise InputError(
            f"--num-gpus {args.num_gpus} --cpu-ranks {args.cpu_ranks} --num-machines {args.num_machines}: no such "
            "number of processes"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--machine-rank {args.machine_rank}: give 0 to {args.num_machines - 1}, another on each machine"
        )
    if args.num_machines > 1 and not args.num_gpus and not args.cpu_ranks:
        raise InputError("--num-machines without GPUs: say how many processes with --cpu-ranks N")
    if args.dist_url == "auto" and args.num_machines > 1:
        raise InputError("--dist-url auto serves one machine; give tcp://HOST:PORT of machine 0 to all of them")
    if args.cpu_ranks:
        if args.num_gpus > 1:
            raise InputError(f"--num-gpus {args.num_gpus} and --cpu-ranks {args.cpu_ranks}: give one of them")
        return 0
    if args.num_gpus > here and (args.num_gpus > 1 or args.num_machines > 1):
        raise InputError(
            f"--num-gpus {args.num_gpus}: this machine has {here} CUDA device{'' if here == 1 else 's'}; "
            f"use {f'--num-gpus {here}' if here else '--cpu-ranks N to run on the CPU'}"
        )
    return min(args.num_gpus, here)
