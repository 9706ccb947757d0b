"""``pffnet evaluate``: score a trained model on prepared data sets."""

from __future__ import annotations

import argparse

from pffnet_d2 import env
from pffnet_d2.engine.arguments import add_training_arguments, example

HELP = "score a trained model on prepared data sets: flags of train_net.py"
DESCRIPTION = "Scores a trained model on DATASETS.TEST. For label images of any tool: pffnet score."
EPILOG = example("evaluate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`pffnet_d2.engine.trainer.start`.
    """
    env.require("evaluate")
    from pffnet_d2.engine import trainer

    return trainer.start(args, command="evaluate")
