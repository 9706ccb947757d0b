"""``pffnet plot``: diagrams of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2 import env
from pffnet_d2.cli.arguments import add_config, add_device, add_weights

HELP = "draw diagrams of a run: learning curves, calibration of scores, scores per image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    curves = kinds.add_parser("curves", help="losses and scores over the iterations of a training run")
    curves.add_argument("metrics", type=Path, metavar="METRICS.JSON", help="file in OUTPUT_DIR of the run")
    quality = kinds.add_parser("quality", help="mask quality and score against the true IoU of each object")
    add_config(quality, required=True)
    add_weights(quality)
    quality.add_argument("--dataset", required=True, metavar="NAME", help="a prepared data set, such as bbbc039_val")
    add_device(quality)
    quality.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    scatter = kinds.add_parser("scatter", help="one point per image: objects found against true objects, and scores")
    scatter.add_argument("table", type=Path, metavar="LABEL_MAP.CSV", help="file that evaluation wrote")
    for kind in (curves, quality, scatter):
        kind.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture to write")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: a file that cannot be read, or a mistake in the model or the data set.
    """
    if args.kind == "quality":
        _plot_quality(args)
    else:
        from pffnet_d2.visualization import plots

        if args.kind == "curves":
            plots.learning_curve(args.metrics, args.out)
        else:
            plots.image_scatter(args.table, args.out)
    print(args.out)
    return 0


def _plot_quality(args: argparse.Namespace) -> None:
    env.require("plot quality")
    from pffnet_d2.data.catalog import register_all
    from pffnet_d2.evaluation.calibration import measure
    from pffnet_d2.inference.predictor import Predictor
    from pffnet_d2.visualization import plots

    register_all()
    table = measure(Predictor(args.config, args.weights, device=args.device), args.dataset, limit=args.limit)
    for line in plots.calibration(table, args.out):
        print(line)
