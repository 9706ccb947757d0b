"""``pffnet score``: the scores of label images, whatever made them. Needs neither torch nor Detectron2."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2.cli.arguments import add_groups, set_groups

HELP = "score label images of any tool: --truth DIR --prediction DIR"
DESCRIPTION = (
    "Scores label images: those that `pffnet predict` wrote, or of any tool. Files of one image have "
    "its name in both folders, with or without _labels or _mask after it; each holds integers, 0 background (png, "
    "tif; 8, 16 or 32 bit)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--truth", type=Path, required=True, metavar="DIR", help="or a prepared split, ROOT/NAME/SPLIT")
    parser.add_argument("--prediction", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets label_map.csv (per image) and label_map.json")
    parser.add_argument(
        "--objects",
        default="auto",
        metavar="RULE",
        help="what a label image of a single id is, in separate parts: ids: one object; components: the mask of all "
        "objects; auto: refused (default)",
    )
    add_groups(parser)


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`~pffnet_d2.evaluation.folders.score_folders`.
    """
    from pffnet_d2.atomic_write import check_folder
    from pffnet_d2.evaluation.folders import score_folders
    from pffnet_d2.evaluation.scores import table_of, write_scores

    if args.out:
        check_folder(args.out)
    rows = list(score_folders(args.truth, args.prediction, args.objects))
    set_groups(rows, args.groups)
    if args.out:
        write_scores(args.out, rows, {"truth": str(args.truth), "prediction": str(args.prediction)})
    print(table_of(rows))
    return 0
