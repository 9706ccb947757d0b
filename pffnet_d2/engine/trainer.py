"""Training and evaluation as Detectron2's ``tools/train_net.py`` does them, for our data, models and scores."""

from __future__ import annotations

import argparse
import logging
import os
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, create_ddp_model
from detectron2.engine.hooks import EvalHook
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator, verify_results
from detectron2.utils import comm
from torch import nn

from pffnet_d2.data.mapper import PFFNetDatasetMapper
from pffnet_d2.engine.arguments import argument_parser
from pffnet_d2.engine.compat import TRAINER_KEEPS_OPTIMIZER
from pffnet_d2.engine.loader import TrainLoader, build_train_loader, chosen_seed
from pffnet_d2.engine.optimizer import WeightAverage
from pffnet_d2.engine.run_config import gpus_of, setup
from pffnet_d2.engine.train_step import PRECISIONS, TrainStep, pool_in_float32
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.coco_ap import DenseCOCOEvaluator
from pffnet_d2.evaluation.evaluator import LabelMapEvaluator
from pffnet_d2.evaluation.panoptic import PanopticEvaluator
from pffnet_d2.evaluation.voc import VOCEvaluator
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.model_zoo.checkpoint import Checkpointer
from pffnet_d2.modeling.build import build_network
from pffnet_d2.modeling.caps import counted_caps
from pffnet_d2.modeling.fast_form import lay_out
from pffnet_d2.modeling.tta import for_inference
from pffnet_d2.parallel.launch import Launched, join_launched, launch_on_gpus, launch_over_gloo

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """DefaultTrainer on prepared data sets, scored by label maps and by COCO AP without its cap on detections.

    Checkpoints hold the optimizer in the format of upstream's main. Images and random numbers follow from SEED and the
    iteration, so that ``--resume`` continues as if the run had never stopped.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # What DefaultTrainer's own __init__ does, which cannot be called: it wraps the model for a GPU per rank, which
        # fails on the CPU, and ties its hooks to a step and a checkpointer that are not ours.
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
        decay, share = cfg.SOLVER.PFFNET.EMA_DECAY, cfg.SOLVER.PFFNET.START_SHARE
        self.average = WeightAverage(model, decay, share) if decay or share else None
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
        # In bfloat16 a step with channels_last takes longer (docs/performance.md).
        if cfg.MODEL.DEVICE == "cpu" and not cfg.SOLVER.AMP.ENABLED:
            lay_out(model)
        logger.info(f"Model:\n{model}")
        return model

    @property
    def model_to_use(self) -> nn.Module:
        """The network that is evaluated and saved: ``model`` or, where weights are averaged, that of the average."""
        return self.model if self.average is None else self.average.model

    def build_hooks(self) -> list[HookBase]:
        hooks: list[HookBase] = super().build_hooks()
        if self.average is None:
            return hooks

        def test() -> dict[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model_to_use)
            return self._last_eval_results

        evaluation = EvalHook(self.cfg.TEST.EVAL_PERIOD, test)
        # The average comes first: the other hooks save it and evaluate it.
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
        network = for_inference(model, cfg)
        with counted_caps(network, cfg) as counted:
            results: dict[str, Any] = super().test(cfg, network, evaluators)
        # Prediction would raise them for large images; scores are those of the config.
        for cap, images in sorted(sum(comm.gather(counted), Counter()).items()):
            key, _, value = cap.partition(" ")
            logger.warning(
                f"{cap} was reached in {images} images, whose objects may be missing; try {key} {2 * int(value)}"
            )
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
    """The model with the weights of MODEL.WEIGHTS or, with ``resume``, those of the last checkpoint in OUTPUT_DIR.

    Raises:
        InputError: there are no weights.
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
    """The work of one process. Returns the scores after --eval-only.

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


def _train_launched(args: argparse.Namespace, restarted: bool) -> None:
    """The work of one of the processes that torchrun started. It starts all of them again if one fails: they go on from
    the last checkpoint. Only the machine of the process that failed need count that as a restart."""
    args.resume |= any(comm.all_gather(restarted))
    train_or_evaluate(args)


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
    """Train or evaluate in as many processes as the flags ask for, or as one of those that torchrun started.

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
    gpus = gpus_of(args)
    launched = Launched.from_environment(os.environ)
    if launched:
        if args.num_machines > 1:
            raise InputError("--num-machines is torchrun's --nnodes; leave it out where torchrun starts the processes")
        join_launched(_train_launched, launched, gpus=bool(gpus), args=(args, launched.restarts > 0))
        return 0
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
