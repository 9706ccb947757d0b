"""Training and evaluation as Detectron2's ``tools/train_net.py`` does them, for this plugin's data, models and scores.

``run(argv)`` is the command line (``train_net.py`` and ``pffnet train``); ``read_config``, ``check`` and ``Trainer``
serve scripts.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, create_ddp_model, default_setup
from detectron2.engine.hooks import EvalHook
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from pffnet_d2.config import read_config
from pffnet_d2.data.mapper import PFFNetDatasetMapper
from pffnet_d2.engine.arguments import argument_parser
from pffnet_d2.engine.compat import TRAINER_KEEPS_OPTIMIZER
from pffnet_d2.engine.loader import TrainLoader, build_train_loader, chosen_seed
from pffnet_d2.engine.optimizer import WeightAverage, check_optimizer
from pffnet_d2.engine.resume import tell_changes
from pffnet_d2.engine.train_step import PRECISIONS, TrainStep, pool_in_float32
from pffnet_d2.errors import InputError, hide_traceback
from pffnet_d2.evaluation.coco_ap import DenseCOCOEvaluator
from pffnet_d2.evaluation.evaluator import LabelMapEvaluator
from pffnet_d2.evaluation.panoptic import PanopticEvaluator
from pffnet_d2.evaluation.voc import VOCEvaluator
from pffnet_d2.launch import launch_on_gpus, launch_over_gloo
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.model_zoo.checkpoint import Checkpointer
from pffnet_d2.modeling.build import build_network
from pffnet_d2.modeling.tta import for_inference

logger = logging.getLogger(__name__)


def check(cfg: CfgNode, *, train: bool, processes: int = 1) -> None:
    """Find the mistakes that would otherwise show after the model is built, or after hours of training.

    Args:
        cfg: a merged config.
        train: False when only evaluating, which reads neither the training data nor the starting weights.
        processes: how many train together, over all machines.

    Raises:
        InputError: an unknown or unprepared data set, missing weights, a precision that the device does not have, a
            batch that does not divide among the processes.
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
    _check_outputs(cfg)
    if not train:
        return

    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise InputError(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} would keep random "
            "weights for ever; set MODEL.BACKBONE.FREEZE_AT 0, or MODEL.WEIGHTS to a local weights file"
        )
    if cfg.SOLVER.AMP.DTYPE not in PRECISIONS:
        raise InputError(f"SOLVER.AMP.DTYPE {cfg.SOLVER.AMP.DTYPE!r} is not one of {', '.join(PRECISIONS)}")
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
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


def _check_outputs(cfg: CfgNode) -> None:
    """Raises InputError where evaluation would wait for outputs that do not come. PFFNet looks at its own."""
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


def setup(args: argparse.Namespace) -> CfgNode:
    """Config of the command line, checked and frozen; loggers, seed and OUTPUT_DIR set up by Detectron2.

    Raises:
        InputError: see :func:`read_config` and :func:`check`.
    """
    cfg = read_config(args.config_file, args.opts, args.method)
    gpus = _gpus(args)
    if not gpus:
        cfg.MODEL.DEVICE = "cpu"
    check(cfg, train=not args.eval_only, processes=(gpus or args.cpu_ranks or 1) * args.num_machines)
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
    if cfg.MODEL.DEVICE == "cpu":
        # Activations near zero otherwise become denormal numbers, on which CPUs are many times slower.
        torch.set_flush_denormal(True)
        if not torch.cuda.is_available() and not args.cpu_ranks:
            logger.info("no CUDA device: running on the CPU")
    return cfg


def _gpus(args: argparse.Namespace) -> int:
    """GPUs used on this machine; the default --num-gpus 1 means the CPU where there is none.

    Raises:
        InputError: more are asked for than there are, or flags that do not go together.
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


class Trainer(DefaultTrainer):
    """DefaultTrainer on prepared data sets, scored by label maps and by COCO AP without its cap on detections.

    Checkpoints hold the optimizer in upstream main's format, and images and chance follow from SEED and the iteration,
    so that ``--resume`` continues as if never stopped.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Instead of DefaultTrainer's own, which knows neither our step nor ranks on the CPU.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        amp = cfg.SOLVER.AMP
        if amp.ENABLED:
            pool_in_float32(model)
        devices = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        precision = PRECISIONS[amp.DTYPE] if amp.ENABLED else None
        self._trainer = TrainStep(model, loader, optimizer, seed=chosen_seed(cfg), precision=precision)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        decay = cfg.SOLVER.PFFNET.EMA_DECAY
        self.average = WeightAverage(model, decay) if decay else None
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, average=self.average, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """
        Raises:
            InputError: the keys below MODEL describe no network.
        """
        model = build_network(cfg)
        logger.info(f"Model:\n{model}")
        return model

    def build_hooks(self) -> list[HookBase]:
        hooks: list[HookBase] = super().build_hooks()
        if self.average is None:
            return hooks
        averaged = self.average.model

        def test() -> dict[str, Any]:
            self._last_eval_results = self.test(self.cfg, averaged)
            return self._last_eval_results

        evaluation = EvalHook(self.cfg.TEST.EVAL_PERIOD, test)
        # The average first: the others save it and evaluate it.
        return [self.average, *(evaluation if isinstance(hook, EvalHook) else hook for hook in hooks)]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, PFFNetDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=PFFNetDatasetMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        evaluators = [
            LabelMapEvaluator(dataset_name, output_dir=folder, rule=LabelMapRule.from_config(cfg)),
            DenseCOCOEvaluator(dataset_name, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE, output_dir=folder),
        ]
        if {"semantic", "semantic_fused"} & set(cfg.MODEL.PFFNET.OUTPUTS):
            evaluators.append(SemSegEvaluator(dataset_name, output_dir=folder))
        if "panoptic" in cfg.MODEL.PFFNET.OUTPUTS:
            evaluators.append(PanopticEvaluator(dataset_name, output_dir=folder))
        if cfg.TEST.PFFNET.VOC_AP:
            evaluators.append(VOCEvaluator(dataset_name, output_dir=folder))
        return DatasetEvaluators(evaluators)

    def train(self) -> dict[str, Any]:
        """Train from ``start_iter`` to ``max_iter``; returns the scores of the evaluation at the end.

        Raises:
            NonFiniteLoss: on all ranks, where a loss of any is not finite.
        """
        self.data_loader.start = self.start_iter
        super().train()
        results: dict[str, Any] = getattr(self, "_last_eval_results", {})
        return results

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Scores of ``model`` on DATASETS.TEST: {task: {metric: value}}, by data set where there are several."""
        results: dict[str, Any] = super().test(cfg, for_inference(model, cfg), evaluators)
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
    if resume and checkpointer.has_checkpoint():
        checkpointer.load_last()
        return model
    if not cfg.MODEL.WEIGHTS:
        raise InputError("no weights to evaluate; give MODEL.WEIGHTS FILE, or --resume and the run's OUTPUT_DIR")
    checkpointer.load(cfg.MODEL.WEIGHTS)
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


def run(argv: Sequence[str], command: str = "train") -> int:
    """``pffnet train --config-file FILE [--num-gpus N] [--resume] [--eval-only] [KEY VALUE ...]``, for scripts.

    Args:
        command: "train", or "evaluate", which evaluates without --eval-only too.

    Returns:
        0.

    Raises:
        InputError, NonFiniteLoss: see :func:`start`.
    """
    return start(argument_parser(command).parse_args(argv), command)


def start(args: argparse.Namespace, command: str = "train") -> int:
    """Train or evaluate in as many processes as the flags ask for.

    Args:
        args: the flags of :mod:`pffnet_d2.engine.arguments`.
        command: "train", or "evaluate", which evaluates without --eval-only too.

    Returns:
        0.

    Raises:
        InputError, NonFiniteLoss: of this process or another.
    """
    args.eval_only |= command == "evaluate"
    if not args.config_file:
        other = (
            "score label images: pffnet score --truth DIR --prediction DIR"
            if command == "evaluate"
            else "fine-tune on your own images: pffnet finetune FOLDER"
        )
        raise InputError(
            f"no config file given; name one with --config-file, such as configs/PFFNet_R101_FPN.yaml, or {other}"
        )
    gpus = _gpus(args)
    machines = {
        "num_machines": args.num_machines,
        "machine_rank": args.machine_rank,
        "dist_url": args.dist_url,
        "args": (args,),
    }
    if gpus * args.num_machines > 1:
        launch_on_gpus(train_or_evaluate, gpus, **machines)
    elif args.cpu_ranks * args.num_machines > 1:
        launch_over_gloo(train_or_evaluate, args.cpu_ranks, **machines)
    else:
        train_or_evaluate(args)
    return 0
