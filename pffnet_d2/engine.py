"""Training and evaluation as Detectron2's ``tools/train_net.py`` does them, for this plugin's data, models and scores.

``run(argv)`` is the command line (``train_net.py`` and ``pffnet train``); ``read_config``, ``check`` and ``Trainer``
serve scripts.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, default_argument_parser, default_setup, launch
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator, verify_results
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from pffnet_d2.checkpoint import Checkpointer
from pffnet_d2.compat import TRAINER_KEEPS_OPTIMIZER
from pffnet_d2.config import label_map_rule, read_config
from pffnet_d2.data.mapper import PFFNetDatasetMapper
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.evaluator import DenseCOCOEvaluator, LabelMapEvaluator
from pffnet_d2.evaluation.panoptic import PanopticEvaluator
from pffnet_d2.inference.tta import augmented

logger = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's: --config-file, --resume, --eval-only, --num-gpus, --num-machines ... and KEY VALUE pairs."""
    parser: argparse.ArgumentParser = default_argument_parser()
    return parser


def check(cfg: CfgNode, *, train: bool, gpus: int = 0) -> None:
    """Find the mistakes that would otherwise show after the model is built, or after hours of training.

    Args:
        cfg: a merged config.
        train: False when only evaluating, which reads neither the training data nor the starting weights.
        gpus: number of processes on CUDA devices, over all machines; 0 on the CPU.

    Raises:
        InputError: an unknown or unprepared data set, missing weights, a batch that does not divide among GPUs.
    """
    if not cfg.DATASETS.TEST and not train:
        raise InputError("DATASETS.TEST is empty; name the data sets to evaluate on, such as \"('phantoms_val',)\"")
    if not cfg.DATASETS.TRAIN and train:
        raise InputError("DATASETS.TRAIN is empty; name the data sets to train on, such as \"('phantoms_train',)\"")
    known = DatasetCatalog.list()
    for name in [*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST]:
        if name not in known:
            # Detectron2 registers dozens of its own; where none is close, ours are worth naming.
            ours = [n for n in known if MetadataCatalog.get(n).get("evaluator_type") == "pffnet"]
            near = difflib.get_close_matches(name, known, n=5) or ours
            raise InputError(f"{name}: no such data set; did you mean {', '.join(near)}?")
        DatasetCatalog.get(name)  # raises InputError where it is not prepared
    if not train:
        return

    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise InputError(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} would keep random "
            "weights for ever; set MODEL.BACKBONE.FREEZE_AT 0, or MODEL.WEIGHTS to a local weights file"
        )
    if cfg.SOLVER.AMP.ENABLED and not gpus:
        raise InputError("SOLVER.AMP.ENABLED True needs a CUDA device; set SOLVER.AMP.ENABLED False")
    # Detectron2 scales the batch by gpus / REFERENCE_WORLD_SIZE where that is set, and asserts even shares.
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or max(gpus, 1)
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide among {processes} processes; set it to "
            "a multiple, or SOLVER.REFERENCE_WORLD_SIZE to the number of GPUs it is meant for"
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """Config of the command line, checked and frozen; loggers, seed and OUTPUT_DIR set up by Detectron2.

    Raises:
        InputError: see :func:`read_config` and :func:`check`.
    """
    cfg = read_config(args.config_file, args.opts)
    gpus = _gpus(args)
    if not gpus:
        cfg.MODEL.DEVICE = "cpu"
    check(cfg, train=not args.eval_only, gpus=gpus * args.num_machines)
    cfg.freeze()

    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {error.strerror}; choose a folder you can write to") from error
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="pffnet_d2", abbrev_name="pffnet_d2")
    logging.getLogger("detectron2.engine.train_loop").addFilter(_no_traceback_of_mistakes)
    default_setup(cfg, args)
    if cfg.MODEL.DEVICE == "cpu":
        # Activations near zero otherwise become denormal numbers, on which CPUs are many times slower.
        torch.set_flush_denormal(True)
        if not torch.cuda.is_available():
            logger.info("no CUDA device: running on the CPU")
    return cfg


def _gpus(args: argparse.Namespace) -> int:
    """GPUs used on this machine; the default --num-gpus 1 means the CPU where there is none.

    Raises:
        InputError: more are asked for than there are.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    distributed = args.num_gpus > 1 or args.num_machines > 1
    if args.num_gpus < 0 or args.num_machines < 1:
        raise InputError(f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}: no such number of processes")
    if args.num_gpus > here and distributed:
        raise InputError(
            f"--num-gpus {args.num_gpus}: this machine has {here} CUDA device{'' if here == 1 else 's'}; "
            f"use --num-gpus {here}{'' if here else ' to run on the CPU'}"
        )
    return min(args.num_gpus, here)


def _no_traceback_of_mistakes(record: logging.LogRecord) -> bool:
    """Filter for the training loop, which logs a traceback of whatever ends it."""
    return not (record.exc_info and record.exc_info[0] and issubclass(record.exc_info[0], InputError))


@contextmanager
def roi_masks(model: nn.Module) -> Iterator[None]:
    """Within, our models return masks in their boxes' frames: no stack of N image-sized masks is ever made."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if not hasattr(inner, "paste_masks"):
        yield
        return
    before, inner.paste_masks = inner.paste_masks, False
    try:
        yield
    finally:
        inner.paste_masks = before


class Trainer(DefaultTrainer):
    """DefaultTrainer on prepared data sets, scored by label maps and by COCO AP without its cap on detections.

    Checkpoints hold the optimizer in upstream main's format, so that ``--resume`` continues as if never stopped.
    """

    checkpointer: Checkpointer

    def build_hooks(self) -> list[HookBase]:
        # Called at the end of DefaultTrainer.__init__: the hooks made here are the first to use the checkpointer.
        self.checkpointer = Checkpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        hooks: list[HookBase] = super().build_hooks()
        return hooks

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """By SOLVER.OPTIMIZER. Raises InputError for an unknown one."""
        optimizer: torch.optim.Optimizer
        if cfg.SOLVER.OPTIMIZER == "SGD":
            optimizer = super().build_optimizer(cfg, model)
            return optimizer
        if cfg.SOLVER.OPTIMIZER != "ADAM":
            raise InputError(f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r} is unknown; use SGD or ADAM")
        # As upstream's SGD takes the keys.
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        adam = maybe_add_gradient_clipping(cfg, torch.optim.Adam)
        optimizer = adam(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=PFFNetDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=PFFNetDatasetMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        evaluators = [
            LabelMapEvaluator(dataset_name, output_dir=folder, **label_map_rule(cfg)),
            DenseCOCOEvaluator(dataset_name, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE, output_dir=folder),
        ]
        if "semantic" in cfg.MODEL.PFFNET.OUTPUTS:
            evaluators.append(SemSegEvaluator(dataset_name, output_dir=folder))
        if "panoptic" in cfg.MODEL.PFFNET.OUTPUTS:
            evaluators.append(PanopticEvaluator(dataset_name, output_dir=folder))
        return DatasetEvaluators(evaluators)

    def train(self) -> dict[str, Any]:
        """Train from ``start_iter`` to ``max_iter``; returns the scores of the evaluation at the end."""
        super().train()
        results: dict[str, Any] = getattr(self, "_last_eval_results", {})
        return results

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Scores of ``model`` on DATASETS.TEST: {task: {metric: value}}, by data set where there are several."""
        with roi_masks(model):
            results: dict[str, Any] = super().test(cfg, augmented(model, cfg), evaluators)
        return results

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        if not TRAINER_KEEPS_OPTIMIZER:
            state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "_trainer" not in state_dict:
            logger.warning("the checkpoint holds no optimizer state (Detectron2 0.6 leaves it out): momentum restarts")
            state_dict = {**state_dict, "_trainer": self._trainer.state_dict()}
        super().load_state_dict(state_dict)
        if not TRAINER_KEEPS_OPTIMIZER:
            self._trainer.load_state_dict(state_dict["_trainer"])


def trained_model(cfg: CfgNode, *, resume: bool) -> nn.Module:
    """The model with the weights of MODEL.WEIGHTS, or with ``resume`` of the last checkpoint in OUTPUT_DIR.

    Raises:
        InputError: there are none.
    """
    model: nn.Module = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR)
    resumed = resume and checkpointer.has_checkpoint()
    weights = checkpointer.get_checkpoint_file() if resumed else cfg.MODEL.WEIGHTS
    if not weights:
        raise InputError("--eval-only has no weights; give MODEL.WEIGHTS FILE, or --resume and the run's OUTPUT_DIR")
    checkpointer.load(weights)
    return model


def train_or_evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """What one process does; returns the scores after --eval-only.

    Raises:
        InputError: a mistake in the command line, config, data or weights.
    """
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        return None

    results = Trainer.test(cfg, trained_model(cfg, resume=args.resume))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def run(argv: Sequence[str]) -> int:
    """``python train_net.py --config-file FILE [--num-gpus N] [--resume] [--eval-only] [KEY VALUE ...]``.

    Returns:
        The exit code: 0, or 2 after a user's mistake, which is told in one line on stderr.
    """
    args = argument_parser().parse_args(argv)
    try:
        gpus = _gpus(args)
        if gpus * args.num_machines > 1:
            launch(
                train_or_evaluate,
                gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        else:
            train_or_evaluate(args)
    except (InputError, ProcessRaisedException) as error:
        message = _mistake(error)
        if message is None:
            raise
        print(message, file=sys.stderr)
        return 2
    return 0


def _mistake(error: Exception) -> str | None:
    """The one line of an InputError; other processes (data loading, other GPUs) hand it over inside a traceback."""
    lines = str(error).strip().splitlines()
    if isinstance(error, InputError) and len(lines) == 1:
        return lines[0]
    prefix = f"{InputError.__module__}.{InputError.__qualname__}: "
    found = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    return found[-1] if found else None
