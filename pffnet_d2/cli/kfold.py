"""``pffnet kfold``: K-fold cross-validation."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2 import env
from pffnet_d2.cli.arguments import add_cluster
from pffnet_d2.engine.arguments import add_training_arguments, example

HELP = "train and evaluate K folds, and combine their scores: flags of train_net.py, --dataset, --folds"
DESCRIPTION = (
    "Prepares the K folds of a data set unless they are prepared, trains and evaluates each in OUTPUT_DIR/fold<i>, and "
    "writes OUTPUT_DIR/{folds.md,report.md,report.csv,boxes.png}. The same command continues an interrupted run."
)
EPILOG = example("kfold")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="data set, as in `pffnet prepare`")
    parser.add_argument("--folds", type=int, required=True, metavar="K", help="number of folds, at least 2")
    parser.add_argument("--source", type=Path, metavar="DIR", help="the publisher's files, to prepare the folds from")
    add_cluster(parser)
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the folds (default: as prepared, else 0)")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`pffnet_d2.engine.kfold.cross_validate`.
    """
    env.require("kfold")
    from pffnet_d2.engine.kfold import cross_validate

    return cross_validate(args)
