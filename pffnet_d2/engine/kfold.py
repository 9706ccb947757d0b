"""K-fold cross-validation. The same call continues an interrupted one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from pffnet_d2.atomic_write import write_text
from pffnet_d2.config import read_config
from pffnet_d2.data.catalog import register_all
from pffnet_d2.data.folds import check_folds
from pffnet_d2.data.prepare import OWN, Selection, prepare
from pffnet_d2.data.prepared import root
from pffnet_d2.data.readers import READERS
from pffnet_d2.engine.resume import changes
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.report import SHOWN, Report, merge_runs, shown_of
from pffnet_d2.evaluation.scores import CSV, Row, read_scores
from pffnet_d2.evaluation.statistics import Summary, summarise
from pffnet_d2.parallel.dask_tasks import ClusterOptions
from pffnet_d2.parallel.launch import run_commands


class Fold(NamedTuple):
    """One fold: the data sets it trains and is evaluated on, its OUTPUT_DIR, and its KEY VALUE pairs."""

    train: str
    val: str
    folder: Path
    opts: list[str]


def cross_validate(args: argparse.Namespace) -> int:
    """Prepare, train, evaluate, report.

    Args:
        args: the flags of ``pffnet kfold``.

    Returns:
        The exit code: that of the first fold that failed, else 0.

    Raises:
        InputError: the folds are not prepared and cannot be, or a fold was begun with another config.
    """
    if args.num_machines > 1 or args.eval_only:
        raise InputError("kfold: trains and evaluates on one machine; leave out --num-machines and --eval-only")
    check_folds(args.folds, args.seed)
    out = Path(read_config(args.config_file, args.opts, args.method).OUTPUT_DIR)
    names = prepared_folds(args.dataset, args.folds, args.source, args.seed)
    folds = [_fold(train, val, out / f"fold{i}", args.opts) for i, (train, val) in enumerate(names)]
    for fold in folds:
        check_unchanged(fold.folder, args.config_file, fold.opts, args.method)
    for fold in folds:
        if (fold.folder / CSV).is_file():
            print(f"{fold.folder}: done")
    failed = 0
    for fold, code in _trained([fold for fold in folds if not (fold.folder / CSV).is_file()], args):
        if code:
            print(f"{fold.folder}: ended with exit code {code}; the same command goes on from there", file=sys.stderr)
            failed = failed or (code if code > 0 else 1)
    if failed:
        return failed
    _write_report(folds, out, "_".join(Path(file).stem for file in (args.config_file, *args.method)))
    return 0


def _fold(train: str, val: str, folder: Path, opts: Sequence[str]) -> Fold:
    data_sets = ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)"]
    return Fold(train, val, folder, [*opts, *data_sets, "OUTPUT_DIR", str(folder)])


def _trained(folds: Sequence[Fold], args: argparse.Namespace) -> Iterator[tuple[Fold, int]]:
    """Train and evaluate folds. Yields each with its exit code."""
    commands = [_command(args, fold) for fold in folds]
    cluster = ClusterOptions.given(args.workers, args.scheduler)
    for number, code in run_commands(commands, cluster, {"DETECTRON2_DATASETS": str(root().absolute())}):
        fold = folds[number]
        if not code:
            # Evaluations during training write a file of this name in inference/; here it means that the fold is done.
            scores = fold.folder / "inference" / fold.val / CSV
            write_text(fold.folder / CSV, scores.read_text(encoding="utf-8"))
        yield fold, code


def _command(args: argparse.Namespace, fold: Fold) -> list[str]:
    """The arguments of ``pffnet`` that train and evaluate a fold."""
    flags = ["--config-file", args.config_file, "--resume", "--dist-url", args.dist_url]
    flags += [word for method in args.method for word in ("--method", method)]
    flags += ["--num-gpus", str(args.num_gpus), "--cpu-ranks", str(args.cpu_ranks)]
    return ["train", *flags, *fold.opts]


def _write_report(folds: Sequence[Fold], out: Path, name: str) -> None:
    """Write and print the table of the folds, and write the report of the method called ``name``."""
    parts = {fold.folder.name: read_scores(fold.folder) for fold in folds}
    report = Report({name: merge_runs(name, list(parts.values()))}, name)
    shown = shown_of(*MetadataCatalog.get(folds[0].val).thing_classes)
    report.write(out, shown)
    table = fold_table(parts, shown)
    write_text(out / "folds.md", table)
    print(table, end="")


def prepared_folds(dataset: str, folds: int, source: Path | None, seed: int | None) -> list[tuple[str, str]]:
    """Names of the data sets to train and to evaluate on, fold by fold. They are prepared unless they are already.

    Raises:
        InputError: they are not prepared and cannot be, or they belong to different divisions.
    """
    names = [tuple(f"{dataset}_fold{i}of{folds}_{split}" for split in ("train", "val")) for i in range(folds)]
    every = [name for pair in names for name in pair]
    register_all()
    if not set(every) <= set(DatasetCatalog.list()):
        if dataset == OWN or dataset not in READERS:
            raise InputError(
                f"{dataset}: its {folds} folds are not prepared in {root()}; run `pffnet prepare` with --folds {folds}"
            )
        prepare(dataset, source, root(), Selection(folds=folds, seed=seed or 0))
        register_all()
    seeds = {MetadataCatalog.get(name).files.info().get("seed") for name in every}
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
    """Markdown: one row per fold, then means and population standard deviations over folds and over all images."""
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
