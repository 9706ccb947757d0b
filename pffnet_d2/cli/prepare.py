"""``pffnet prepare``: a data set's files as training reads them."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2.cli.arguments import add_options, data_root

HELP = "turn a publisher's files, or your own, into what training reads"
DESCRIPTION = (
    "Writes ROOT/NAME/SPLIT/{images,semantic,instances.json}. What is there and whole is kept. "
    "Layouts, split schemes and options of each data set: datasets/README.md; your own images: docs/data.md."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="the data set, or own; an unknown one lists them")
    parser.add_argument("--source", type=Path, metavar="DIR", help="the publisher's files (phantoms need none)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="ROOT",
        default=data_root(),
        help="root of the prepared data sets (default: $DETECTRON2_DATASETS, else datasets; now %(default)s)",
    )
    parser.add_argument("--name", help="what the prepared data set is called (own needs one; default: DATASET)")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all that the files hold)")
    parser.add_argument("--scheme", help="which of the published divisions into splits (default: the first)")
    add_options(parser, "of the data set's reader; may be repeated")
    parser.add_argument("--folds", type=int, metavar="K", help="divide all labelled images into K parts instead")
    parser.add_argument("--fold", type=int, metavar="I", help="only the splits of part I, from 0 (default: all K)")
    parser.add_argument("--seed", type=int, default=0, help="of the folds (default: %(default)s)")
    parser.add_argument("--count", type=int, metavar="N", help="phantoms: images a split; else: only the first N")
    parser.add_argument("--force", action="store_true", help="make again what is there already")


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
