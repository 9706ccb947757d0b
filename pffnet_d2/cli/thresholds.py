"""``pffnet thresholds``: choose the score and mask thresholds that give the best scores on validation images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pffnet_d2 import env
from pffnet_d2.engine.arguments import add_training_arguments, example
from pffnet_d2.errors import InputError

HELP = "choose the score and mask thresholds on validation images: flags of train_net.py, --metric NAME"
DESCRIPTION = (
    "Predicts the data set of DATASETS.TEST, tries thresholds on the predictions, and writes the best pair to "
    "OUTPUT_DIR/thresholds.yaml."
)
EPILOG = example("thresholds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    parser.add_argument("--metric", default="AJI", help="the metric to maximise, as a mean over images (default: AJI)")
    parser.add_argument("--stored", action="store_true", help="use the predictions that the last call stored")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: a mistake in the config, the data or the weights, or an unknown metric.
    """
    env.require("thresholds")
    from pffnet_d2.engine.run_config import setup
    from pffnet_d2.evaluation import thresholds
    from pffnet_d2.masks.compose import LabelMapRule

    args.eval_only = True
    if args.num_gpus > 1 or args.num_machines > 1 or args.cpu_ranks > 1:
        raise InputError("thresholds: runs in one process; leave out --num-gpus, --cpu-ranks and --num-machines")
    cfg = setup(args)
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(
            f"DATASETS.TEST {cfg.DATASETS.TEST}: name the one data set to choose thresholds on, the validation images"
        )
    (name,) = cfg.DATASETS.TEST
    out = Path(cfg.OUTPUT_DIR)
    folder = out / "inference" / name / "predictions"
    if not args.stored:
        _store_predictions(cfg, name, folder, resume=args.resume)
    choice = thresholds.choose(name, folder, args.metric, LabelMapRule.from_config(cfg))
    file = out / "thresholds.yaml"
    thresholds.write_choice(file, choice, metric=args.metric, dataset_name=name, base=out / "config.yaml")
    print(
        f"{name}: mean {args.metric} {choice.value:.4f} with MODEL.PFFNET.LABEL_MAP.SCORE_THRESH "
        f"{choice.score_threshold} MODEL.PFFNET.LABEL_MAP.MASK_THRESH {choice.mask_threshold} "
        f"({choice.default:.4f} with 0.5 and 0.5); give these, or --config-file {file}"
    )
    return 0


def _store_predictions(cfg: Any, name: str, folder: Path, *, resume: bool) -> None:
    from detectron2.evaluation import inference_on_dataset

    from pffnet_d2.engine import trainer as engine
    from pffnet_d2.evaluation import thresholds
    from pffnet_d2.modeling.tta import for_inference

    model = for_inference(engine.trained_model(cfg, resume=resume), cfg)
    inference_on_dataset(model, engine.Trainer.build_test_loader(cfg, name), thresholds.PredictionStore(folder))
