"""``pffnet kfold``: K-fold cross-validation in one command that may be interrupted and called again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from pffnet_d2.atomic_write import write_text
from pffnet_d2.config import read_config
from pffnet_d2.data.catalog import register_all, root
from pffnet_d2.data.prepare import OWN, check_folds, prepare, read_info
from pffnet_d2.data.readers import READERS
from pffnet_d2.engine.resume import changes
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.report import SHOWN, Report, merge_runs, shown_of
from pffnet_d2.evaluation.scores import CSV, Row, read_scores
from pffnet_d2.evaluation.statistics import Summary, summarise
from pffnet_d2.launch import run_command


def cross_validate(args: argparse.Namespace) -> int:
    """Prepare, train, evaluate, report.

    Args:
        args: the flags of ``pffnet kfold``.

    Returns:
        The exit code: that of the first fold that did not end well, else 0.

    Raises:
        InputError: folds that are not there and cannot be made, or a fold begun with another config.
    """
    if args.num_machines > 1 or args.eval_only:
        raise InputError("kfold: trains and evaluates on one machine; leave out --num-machines and --eval-only")
    check_folds(args.folds, args.seed)
    out = Path(read_config(args.config_file, args.opts, args.method).OUTPUT_DIR)
    splits = prepared_folds(args.dataset, args.folds, args.source, args.seed)
    folders = [out / f"fold{i}" for i in range(args.folds)]
    runs = [
        [*args.opts, *options(train, val), "OUTPUT_DIR", str(folder)]
        for (train, val), folder in zip(splits, folders, strict=True)
    ]
    for folder, opts in zip(folders, runs, strict=True):
        check_unchanged(folder, args.config_file, opts, args.method)
    for (_, val), folder, opts in zip(splits, folders, runs, strict=True):
        if (folder / CSV).is_file():
            print(f"{folder}: done")
            continue
        flags = ["--config-file", args.config_file, "--resume", "--dist-url", args.dist_url]
        flags += [word for method in args.method for word in ("--method", method)]
        code = run_command(
            ["train", *flags, "--num-gpus", str(args.num_gpus), "--cpu-ranks", str(args.cpu_ranks), *opts]
        )
        if code:
            print(f"{folder}: ended with exit code {code}; the same command goes on from there", file=sys.stderr)
            return code if code > 0 else 1
        # Evaluations during training have left a file of this name in inference/ before; here it says that all is done.
        write_text(folder / CSV, (folder / "inference" / val / CSV).read_text(encoding="utf-8"))

    name = "_".join(Path(file).stem for file in (args.config_file, *args.method))
    parts = {folder.name: read_scores(folder) for folder in folders}
    report = Report({name: merge_runs(name, list(parts.values()))}, name)
    shown = shown_of(*MetadataCatalog.get(splits[0][1]).thing_classes)
    report.write(out, shown)
    table = fold_table(parts, shown)
    write_text(out / "folds.md", table)
    print(table, end="")
    return 0


def options(train: str, val: str) -> list[str]:
    """KEY VALUE pairs of a fold."""
    return ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)"]


def prepared_folds(dataset: str, folds: int, source: Path | None, seed: int | None) -> list[tuple[str, str]]:
    """Names of the data sets to train and to evaluate on, fold by fold; prepared now if they are not.

    Raises:
        InputError: they are not prepared and cannot be, or are of different divisions.
    """
    names = [tuple(f"{dataset}_fold{i}of{folds}_{split}" for split in ("train", "val")) for i in range(folds)]
    every = [name for pair in names for name in pair]
    register_all()
    if not set(every) <= set(DatasetCatalog.list()):
        if dataset == OWN or dataset not in READERS:
            raise InputError(
                f"{dataset}: its {folds} folds are not prepared in {root()}; run `pffnet prepare` with --folds {folds}"
            )
        prepare(dataset, source, root(), folds=folds, seed=seed or 0)
        register_all()
    seeds = {read_info(Path(MetadataCatalog.get(name).json_file)).get("seed") for name in every}
    if len(seeds) > 1 or (seed is not None and seeds != {seed}):
        found = ", ".join(str(each) for each in sorted(seeds, key=str))
        wanted = "" if seed is None else f", not {seed}"
        raise InputError(
            f"{dataset}: its {folds} folds in {root()} were divided by seed {found}{wanted}; prepare them again with "
            "one --seed"
        )
    return [(train, val) for train, val in names]


def check_unchanged(folder: Path, config_file: str, opts: Sequence[str], methods: Sequence[str] = ()) -> None:
    """
    Raises:
        InputError: the run in ``folder`` was begun with another config.
    """
    begun = folder / "config.yaml"
    if not begun.is_file():
        return
    now = read_config(config_file, opts, methods)
    for key, before, value in changes(yaml.safe_load(read_config(str(begun)).dump()), now):
        raise InputError(
            f"{folder}: was begun with {key} {before}, not {value}; delete it or choose another OUTPUT_DIR"
        )


def fold_table(parts: Mapping[str, Sequence[Row]], metrics: Sequence[str] = SHOWN) -> str:
    """Markdown: a row a fold, then means and population standard deviations over folds and over all images."""
    means = {name: [summarise([row[m] for row in rows]).mean for m in metrics] for name, rows in parts.items()}
    images = [row for rows in parts.values() for row in rows]
    over_folds = [summarise(list(of_folds)) for of_folds in zip(*means.values(), strict=True)]
    over_images = [summarise([row[m] for row in images]) for m in metrics]
    lines = [
        *([name, len(parts[name]), *(f"{mean:.4f}" for mean in of_fold)] for name, of_fold in means.items()),
        ["mean (std) over folds", len(parts), *map(_mean_std, over_folds)],
        ["mean (std) over images", len(images), *map(_mean_std, over_images)],
    ]
    return f"{tabulate(lines, headers=['', 'n', *metrics], tablefmt='github', disable_numparse=True)}\n"


def _mean_std(summary: Summary) -> str:
    return f"{summary.mean:.4f} ({summary.std:.4f})"
