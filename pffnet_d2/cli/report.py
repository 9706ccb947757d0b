"""``pffnet report``: tables, tests and plots of several methods. Needs neither torch nor Detectron2."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2.cli.arguments import add_groups, set_groups
from pffnet_d2.errors import InputError

HELP = "compare several methods: tables, tests and box plots"
DESCRIPTION = (
    "Writes report.md, report.csv and boxes.png: mean (population standard deviation) per metric and "
    "group, and one-tailed paired tests with Holm's correction."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="NAME=DIR",
        help="the scores of a method: a folder with label_map.csv. Repeat a NAME to add a fold (other images) or a run "
        "(the same images)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("output/report"), help="default: %(default)s")
    parser.add_argument(
        "--proposed", metavar="NAME", help="the method that is tested against the others (default: the first)"
    )
    parser.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help="metrics in the table and the plot (default: AJI Dice F1 PQ)"
    )
    parser.add_argument(
        "--otsu",
        type=Path,
        metavar="DIR",
        help="a prepared split (ROOT/NAME/SPLIT): add a row of Otsu's threshold and a watershed on its images",
    )
    add_groups(parser)


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :class:`~pffnet_d2.evaluation.report.Report`.
    """
    from pffnet_d2.atomic_write import check_folder
    from pffnet_d2.evaluation.report import SHOWN, Report, merge_runs
    from pffnet_d2.evaluation.scores import Row, read_scores, write_scores

    check_folder(args.out)
    parts: dict[str, list[list[Row]]] = {}
    for given in args.runs:
        name, found, folder = given.partition("=")
        if not found or not name or not folder:
            raise InputError(f"{given}: give each method as NAME=DIR, such as PFFNet=output/inference/bbbc039_test")
        parts.setdefault(name, []).append(read_scores(Path(folder)))
    methods = {name: merge_runs(name, part) for name, part in parts.items()}
    proposed = args.proposed or next(iter(methods))
    if args.otsu:
        from pffnet_d2.evaluation.baseline import score_otsu

        rows = list(score_otsu(args.otsu))
        write_scores(args.out / "otsu", rows, {"dataset": str(args.otsu), "method": "Otsu + watershed"})
        methods["Otsu + watershed"] = rows
    for rows in methods.values():
        set_groups(rows, args.groups)
    report = Report(methods, proposed, parts)
    shown = args.metrics or SHOWN
    report.write(args.out, shown)
    print(report.markdown(shown), end="")
    return 0
