"""``pffnet train``, the same as ``train_net.py``."""

from __future__ import annotations

import argparse

from pffnet_d2 import env
from pffnet_d2.engine.arguments import add_training_arguments, example

HELP = "train a model from a config: flags of Detectron2's train_net.py"
DESCRIPTION = "Trains a model from a config file. On your own images: pffnet finetune FOLDER."
EPILOG = example("train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError, NonFiniteLoss: see :func:`pffnet_d2.engine.trainer.start`.
    """
    env.require("train")
    from pffnet_d2.engine import trainer

    return trainer.start(args)
