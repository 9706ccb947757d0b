"""``pffnet check``: verify prepared data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2.cli.arguments import data_root

HELP = "verify prepared data sets and draw contact sheets"
DESCRIPTION = (
    "Reads every image, json and semantic map under ROOT, names what is wrong (exit code 2), and "
    "writes DIR/NAME_SPLIT.png: images with their truth in colours."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, nargs="?", metavar="ROOT", default=data_root(), help="default: %(default)s")
    parser.add_argument(
        "--sheets", type=Path, metavar="DIR", default=Path("output/check"), help="contact sheets (default: %(default)s)"
    )
    parser.add_argument(
        "--detections",
        type=int,
        metavar="N",
        default=100,
        help="TEST.DETECTIONS_PER_IMAGE of your configuration (default: %(default)s, Detectron2's)",
    )


def run(args: argparse.Namespace) -> int:
    """2 where something is wrong."""
    from pffnet_d2.data.check import check_datasets

    return 2 if check_datasets(args.root, detections=args.detections, sheets=args.sheets) else 0
