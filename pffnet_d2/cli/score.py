"""``pffnet score``: score label images of any tool. Needs neither torch nor Detectron2."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2.cli.arguments import add_groups, set_groups

HELP = "score label images of any tool: --truth DIR --prediction DIR"
DESCRIPTION = (
    "Scores label images, written by `pffnet predict` or by any other tool. Files of one image have the same "
    "name in both folders, with or without _labels or _mask at the end. They hold integers, 0 for background (png or "
    "tif; 8, 16 or 32 bits)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truth", type=Path, required=True, metavar="DIR", help="label images, or a prepared split (ROOT/NAME/SPLIT)"
    )
    parser.add_argument("--prediction", type=Path, required=True, metavar="DIR", help="label images")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for label_map.csv (per image), label_map.json and label_map_errors.csv (kinds of errors by size)",
    )
    parser.add_argument(
        "--objects",
        default="auto",
        metavar="RULE",
        help="what a label image with a single id in separate parts shows: ids: one object; components: all objects as "
        "one mask; auto (default): an error",
    )
    add_groups(parser)


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`~pffnet_d2.evaluation.folders.score_folders`.
    """
    from pffnet_d2.atomic_write import check_folder
    from pffnet_d2.evaluation.error_kinds import in_words, write_errors
    from pffnet_d2.evaluation.folders import score_folders
    from pffnet_d2.evaluation.scores import table_of, write_scores

    if args.out:
        check_folder(args.out)
    scored = list(score_folders(args.truth, args.prediction, args.objects))
    rows, fates = [each.row for each in scored], [each.fates for each in scored]
    set_groups(rows, args.groups)
    if args.out:
        write_scores(args.out, rows, {"truth": str(args.truth), "prediction": str(args.prediction)})
        write_errors(args.out, fates)
    print(table_of(rows))
    print(in_words(fates))
    return 0
