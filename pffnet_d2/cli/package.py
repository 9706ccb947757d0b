"""``pffnet package``: make a small model folder of a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2 import env
from pffnet_d2.cli.arguments import add_config, add_opts, add_weights

HELP = "make a small model folder, for predict --model, of a trained model"
DESCRIPTION = (
    "Writes config.yaml, model_final.pth (half precision, without the parts that only training uses) and "
    "card.json (SHA-256 of both, thresholds, the content of --about)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "config of the training", required=True)
    add_weights(parser, "checkpoint of the training", required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the packaged model")
    parser.add_argument("--about", type=Path, metavar="FILE", help="yaml to add to the card: licence, sources, scores")
    add_opts(parser, "override keys of the config, such as MODEL.PFFNET.DIAMETER 24.0")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`~pffnet_d2.model_zoo.package.package_model`.
    """
    env.require(args.command)
    from pffnet_d2.model_zoo.package import package_model, read_about

    about = read_about(args.about) if args.about else {}
    card = package_model(args.config, args.weights, args.out, about=about, opts=args.opts)
    print(
        f"{args.out}: {card['parameters']:,} parameters, {card['bytes'] / 1e6:.1f} MB; use it with --model {args.out}"
    )
    return 0
