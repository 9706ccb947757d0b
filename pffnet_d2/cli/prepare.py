"""``pffnet prepare``: convert the files of a data set to those that training reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2.cli.arguments import add_options, data_root

HELP = "convert a publisher's files, or your own, to those that training reads"
DESCRIPTION = (
    "Writes ROOT/NAME/SPLIT/{images,semantic,instances.json}. Splits that are complete already are kept. "
    "Layouts, split schemes and options of each data set: datasets/README.md; your own images: docs/data.md."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", metavar="DATASET", help="name of a data set, or own for your images; an unknown name lists them all"
    )
    parser.add_argument(
        "--source", type=Path, metavar="DIR", help="folder of the publisher's files (phantoms need none)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="ROOT",
        default=data_root(),
        help="root of the prepared data sets (default: $DETECTRON2_DATASETS, else datasets; here %(default)s)",
    )
    parser.add_argument("--name", help="name of the prepared data set (required with own; default: DATASET)")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="only these splits (default: all that the files hold)"
    )
    parser.add_argument("--scheme", help="one of the published divisions into splits (default: the first)")
    add_options(parser, "option of the reader of the data set; may be repeated")
    parser.add_argument("--folds", type=int, metavar="K", help="divide all labelled images into K folds instead")
    parser.add_argument("--fold", type=int, metavar="I", help="only fold I, counted from 0 (default: all K)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the folds (default: %(default)s)")
    parser.add_argument(
        "--count", type=int, metavar="N", help="phantoms: images per split; others: only the first N images"
    )
    parser.add_argument("--force", action="store_true", help="prepare again what is prepared already")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`~pffnet_d2.data.prepare.prepare`.
    """
    from pffnet_d2.data.prepare import Selection, prepare, read_options

    selection = Selection(
        splits=args.splits,
        scheme=args.scheme,
        options=read_options(args.option),
        folds=args.folds,
        fold=args.fold,
        seed=args.seed,
        count=args.count,
    )
    prepare(args.dataset, args.source, args.out, selection, dataset=args.name, force=args.force)
    return 0
