"""The flags of ``train_net.py``: those of Detectron2's script of that name, and our own."""

from __future__ import annotations

import argparse

# The arguments beside a config file in the example of each command's help.
EXAMPLES = {
    "train": "SOLVER.BASE_LR 0.01 OUTPUT_DIR output/mine",
    "kfold": "--dataset bbbc039 --folds 5 OUTPUT_DIR output/folds",
    "evaluate": "MODEL.WEIGHTS output/mine/model_final.pth",
    "thresholds": "--metric PQ MODEL.WEIGHTS output/mine/model_final.pth",
}


def example(command: str) -> str:
    """An example of a command of ``pffnet``, for its help."""
    return f"example: pffnet {command} --config-file configs/bbbc039/PFFNet_R18_FPN.yaml {EXAMPLES[command]}"


def argument_parser(command: str = "train") -> argparse.ArgumentParser:
    """A parser of these flags alone, for scripts.

    Args:
        command: the command of ``pffnet`` that usage and help name.
    """
    parser = argparse.ArgumentParser(prog=f"pffnet {command}", epilog=example(command))
    add_training_arguments(parser)
    return parser


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of Detectron2's ``default_argument_parser``, --cpu-ranks and --method to ``parser``.

    They are written out here so that help does not need Detectron2.
    """
    parser.add_argument("--config-file", default="", metavar="FILE", help="yaml of the model and its training")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, without training")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs of each machine (default: 1)")
    parser.add_argument("--num-machines", type=int, default=1, metavar="M", help="machines (default: 1)")
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="I", help="which machine this is, from 0 (default: 0)"
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where processes meet: tcp://HOST:PORT of machine 0, or auto on one machine (default: auto)",
    )
    parser.add_argument(
        "--cpu-ranks",
        type=int,
        default=0,
        metavar="N",
        help="run in N processes on the CPU of each machine, over gloo, instead of on GPUs",
    )
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="FILE",
        help="a part of a config, such as configs/ablations/Without_quality.yaml, that overrides the config file; may "
        "be repeated",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE ...",
        help="keys of the config and their values, at the end",
    )
