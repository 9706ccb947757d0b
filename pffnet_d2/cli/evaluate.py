"""The sub-commands of ``pffnet`` about scores: evaluate (of folders), thresholds, report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pffnet_d2.atomic_write import check_folder
from pffnet_d2.errors import InputError


def is_of_folders(arguments: Sequence[str]) -> bool:
    """Whether ``pffnet evaluate`` was given label images rather than a model."""
    return any(argument.split("=")[0] in ("--truth", "--prediction") for argument in arguments)


def evaluate_folders(arguments: Sequence[str]) -> int:
    """``pffnet evaluate --truth DIR --prediction DIR [--out DIR] [--groups FILE]``; needs neither torch nor Detectron2.

    Raises:
        InputError: see :func:`~pffnet_d2.evaluation.folders.score_folders`.
    """
    parser = argparse.ArgumentParser(
        prog="pffnet evaluate",
        description="Scores label images: those that `pffnet predict` wrote, or of any tool. Files of one image have "
        "its name in both folders, with or without _labels or _mask after it; each holds integers, 0 background (png, "
        "tif; 8, 16 or 32 bit).",
    )
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
    _add_groups(parser)
    args = parser.parse_args(arguments)

    from pffnet_d2.evaluation.folders import score_folders
    from pffnet_d2.evaluation.scores import table_of, write_scores

    if args.out:
        check_folder(args.out)
    rows = list(score_folders(args.truth, args.prediction, args.objects))
    _group(rows, args.groups)
    if args.out:
        write_scores(args.out, rows, {"truth": str(args.truth), "prediction": str(args.prediction)})
    print(table_of(rows))
    return 0


def choose_thresholds(arguments: Sequence[str]) -> int:
    """``pffnet thresholds``: the flags of train_net.py, --metric and --stored.

    Raises:
        InputError: a mistake in the config, the data or the weights, or an unknown metric.
    """
    from detectron2.evaluation import inference_on_dataset

    from pffnet_d2.engine import trainer as engine
    from pffnet_d2.evaluation import thresholds
    from pffnet_d2.masks.compose import LabelMapRule
    from pffnet_d2.modeling.tta import for_inference

    parser = engine.argument_parser("thresholds")
    parser.add_argument("--metric", default="AJI", help="what is to be best, on average over images (default: AJI)")
    parser.add_argument("--stored", action="store_true", help="take the predictions that the last call stored")
    args = parser.parse_args(arguments)
    args.eval_only = True
    if args.num_gpus > 1 or args.num_machines > 1 or args.cpu_ranks > 1:
        raise InputError("thresholds: runs in one process; leave out --num-gpus, --cpu-ranks and --num-machines")
    cfg = engine.setup(args)
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(
            f"DATASETS.TEST {cfg.DATASETS.TEST}: name the one data set to choose thresholds on, the validation images"
        )
    (name,) = cfg.DATASETS.TEST
    out = Path(cfg.OUTPUT_DIR)
    folder = out / "inference" / name / "predictions"
    if not args.stored:
        model = engine.trained_model(cfg, resume=args.resume)
        loader = engine.Trainer.build_test_loader(cfg, name)
        inference_on_dataset(for_inference(model, cfg), loader, thresholds.PredictionStore(folder))
    choice = thresholds.choose(name, folder, args.metric, LabelMapRule.from_config(cfg))
    file = out / "thresholds.yaml"
    thresholds.write_choice(file, choice, metric=args.metric, dataset_name=name, base=out / "config.yaml")
    print(
        f"{name}: mean {args.metric} {choice.value:.4f} with MODEL.PFFNET.LABEL_MAP.SCORE_THRESH "
        f"{choice.score_threshold} MODEL.PFFNET.LABEL_MAP.MASK_THRESH {choice.mask_threshold} "
        f"({choice.default:.4f} with 0.5 and 0.5); give these, or --config-file {file}"
    )
    return 0


def add_report(commands: Any) -> None:
    """Add ``report`` to the sub-parsers of ``pffnet``."""
    report = commands.add_parser(
        "report",
        help="tables, tests and box plots of several methods",
        description="Writes report.md, report.csv and boxes.png: mean (population standard deviation) per metric and "
        "group, and one-tailed paired tests with Holm's correction.",
    )
    report.add_argument(
        "runs",
        nargs="+",
        metavar="NAME=DIR",
        help="the scores of a method: a folder with label_map.csv. The same NAME again adds a fold (other images) or a "
        "run (the same images)",
    )
    report.add_argument("--out", type=Path, metavar="DIR", default=Path("output/report"), help="default: %(default)s")
    report.add_argument("--proposed", metavar="NAME", help="the method tested against the others (default: the first)")
    report.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help="shown in table and plot (default: AJI Dice F1 PQ)"
    )
    report.add_argument(
        "--otsu",
        type=Path,
        metavar="DIR",
        help="a prepared split (ROOT/NAME/SPLIT): add a row of Otsu's threshold and a watershed on its images",
    )
    _add_groups(report)


def make_report(args: argparse.Namespace) -> int:
    """Needs neither torch nor Detectron2.

    Raises:
        InputError: see :class:`~pffnet_d2.evaluation.report.Report`.
    """
    from pffnet_d2.evaluation.report import SHOWN, Report, merge_runs
    from pffnet_d2.evaluation.scores import Row, read_scores, write_scores

    check_folder(args.out)
    parts: dict[str, list[list[Row]]] = {}
    for run in args.runs:
        name, found, folder = run.partition("=")
        if not found or not name or not folder:
            raise InputError(f"{run}: give each method as NAME=DIR, such as PFFNet=output/inference/bbbc039_test")
        parts.setdefault(name, []).append(read_scores(Path(folder)))
    methods = {name: merge_runs(name, part) for name, part in parts.items()}
    proposed = args.proposed or next(iter(methods))
    if args.otsu:
        from pffnet_d2.evaluation.baseline import score_otsu

        rows = list(score_otsu(args.otsu))
        write_scores(args.out / "otsu", rows, {"dataset": str(args.otsu), "method": "Otsu + watershed"})
        methods["Otsu + watershed"] = rows
    for rows in methods.values():
        _group(rows, args.groups)
    report = Report(methods, proposed, parts)
    shown = args.metrics or SHOWN
    report.write(args.out, shown)
    print(report.markdown(shown), end="")
    return 0


def _add_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--groups", type=Path, metavar="FILE", help="the group of each image: a csv with the columns image and group"
    )


def _group(rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Set the group of each row from a file, if one is given."""
    if file is None:
        return
    from pffnet_d2.evaluation.scores import read_groups

    groups = read_groups(file)
    for row in rows:
        if row["image"] not in groups:
            raise InputError(f"{file}: has no group for image {row['image']}; name every image")
        row["group"] = groups[row["image"]]
