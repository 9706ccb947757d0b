"""Tables as in the papers: methods side by side, by group, with paired tests and box plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pffnet_d2.atomic_write import whole_file, write_text
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.scores import COLUMNS, Row, better, by_group
from pffnet_d2.evaluation.statistics import Summary, holm, paired_tests, summarise

# The metrics in the tables of the PFFNet paper.
SHOWN = ("AJI", "Dice", "F1", "PQ")


def shown_of(category: str) -> tuple[str, ...]:
    """Return the metrics that the papers' tables show for objects of a category. Leaves (CVPPP) also have SBD."""
    return (*SHOWN, "SBD") if category == "leaf" else SHOWN


class Comparison(NamedTuple):
    """One-tailed p-values for "the proposed method is better", uncorrected and with Holm's correction.

    NaN without a test.
    """

    t: float
    t_holm: float
    wilcoxon: float
    wilcoxon_holm: float


NO_TEST = Comparison(*[float("nan")] * 4)
# (method, group, metric)
Key = tuple[str, str, str]


def merge_runs(name: str, parts: Sequence[Sequence[Row]]) -> list[Row]:
    """Merge several evaluations of a method into one row per image.

    Folds have different images: their rows are joined. Runs (seeds) have the same images: the scores of each image are
    averaged, ignoring NaN.

    Raises:
        InputError: two parts share only some of their images.
    """
    runs: dict[frozenset[str], list[dict[str, Row]]] = {}
    for part in parts:
        rows = {row["image"]: row for row in part}
        runs.setdefault(frozenset(rows), []).append(rows)
    merged: dict[str, Row] = {}
    for images, same in runs.items():
        shared = images & merged.keys()
        if shared:
            raise InputError(
                f"{name}: image {min(shared)} is in two folds whose other images differ; give folds, which share "
                "no image, or runs, which share all images"
            )
        for image, first in same[0].items():
            merged[image] = {
                column: first[column] if column in COLUMNS[:2] else summarise([run[image][column] for run in same]).mean
                for column in first
            }
    return list(merged.values())


def run_means(parts: Sequence[Sequence[Row]], metric: str) -> list[float]:
    """Return the mean of each run (seed), ignoring NaN. The list is empty for folds and for a single run.

    Args:
        parts: as in :func:`merge_runs`.
    """
    same = len({frozenset(row["image"] for row in part) for part in parts}) == 1
    return [summarise([row[metric] for row in part]).mean for part in parts] if same and len(parts) > 1 else []


def _in_one_order(methods: Mapping[str, Sequence[Row]], proposed: str) -> dict[str, list[Row]]:
    """Return the rows of every method in the order of the proposed method.

    Raises:
        InputError: not all methods have the same images, or the groups differ.
    """
    reference = {row["image"]: row["group"] for row in methods[proposed]}
    ordered: dict[str, list[Row]] = {}
    for name, rows in methods.items():
        found = {row["image"]: row for row in rows}
        for here, there, lacking in ((reference, found, name), (found, reference, proposed)):
            missing = next((image for image in here if image not in there), None)
            if missing is not None:
                raise InputError(f"{lacking}: has no scores of image {missing}; all methods need the same images")
        for image, group in reference.items():
            if found[image]["group"] != group:
                raise InputError(
                    f"{name}: image {image} is of group {found[image]['group']!r}, but of {group!r} in {proposed}; "
                    "give --groups"
                )
        ordered[name] = [found[image] for image in reference]
    return ordered


def _compare(values: Mapping[str, Sequence[float]], proposed: str, metric: str) -> dict[str, Comparison]:
    """Test the proposed method's scores of a metric against those of each other method, corrected for their number.

    There are no tests if neither higher nor lower values are better.
    """
    if better(metric) == "neither":
        return {}
    others = [name for name in values if name != proposed]
    tests = [paired_tests(values[proposed], values[name], lower_is_better=better(metric) == "lower") for name in others]
    corrected = zip(holm([test.t for test in tests]), holm([test.wilcoxon for test in tests]), strict=True)
    return {
        name: Comparison(test.t, t, test.wilcoxon, wilcoxon)
        for name, test, (t, wilcoxon) in zip(others, tests, corrected, strict=True)
    }


class Report:
    """Methods on the same images, summarised and compared.

    Attributes:
        groups: names of the groups, "all" last.
        metrics: names of the metrics that every method has.
        summaries: summaries by method, group and metric.
        comparisons: comparisons of the proposed method with every other method, by the same keys.
        runs: the means of each run by method and metric, for methods with several runs.
    """

    def __init__(
        self,
        methods: Mapping[str, Sequence[Row]],
        proposed: str,
        parts: Mapping[str, Sequence[Sequence[Row]]] | None = None,
    ) -> None:
        """
        Args:
            methods: the rows of each method, see :func:`merge_runs`.
            proposed: the method that is tested against the others.
            parts: the separate evaluations of each method whose runs are to be shown.

        Raises:
            InputError: a method is unknown, not all methods have the same images, or the groups differ.
        """
        if proposed not in methods:
            raise InputError(f"--proposed {proposed}: no such method; choose from {', '.join(methods)}")
        self.proposed = proposed
        self.methods = _in_one_order(methods, proposed)
        self.metrics = [
            column
            for column in methods[proposed][0]
            if column not in COLUMNS and all(column in row for rows in methods.values() for row in rows)
        ]
        self.runs = {
            (name, metric): means
            for name, evaluations in (parts or {}).items()
            for metric in self.metrics
            if (means := run_means(evaluations, metric))
        }
        grouped = {name: by_group(rows) for name, rows in self.methods.items()}
        self.groups = list(grouped[proposed])
        self.summaries: dict[Key, Summary] = {
            (name, group, metric): summarise([row[metric] for row in grouped[name][group]])
            for name in methods
            for group in self.groups
            for metric in self.metrics
        }
        self.comparisons: dict[Key, Comparison] = {}
        for group in self.groups:
            for metric in self.metrics:
                values = {name: [row[metric] for row in grouped[name][group]] for name in methods}
                compared = _compare(values, proposed, metric)
                self.comparisons |= {(name, group, metric): found for name, found in compared.items()}

    def write(self, folder: Path, shown: Sequence[str] = SHOWN) -> None:
        """Write report.md and boxes.png (metrics in ``shown``) and report.csv (all metrics).

        Each file is written whole or not at all.

        Raises:
            InputError: not every method has a metric in ``shown``.
        """
        for metric in shown:
            if metric not in self.metrics:
                raise InputError(f"--metrics {metric}: not every method has it; choose from {', '.join(self.metrics)}")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "report.csv", self.csv())
        write_text(folder / "report.md", self.markdown(shown))
        self.draw(folder / "boxes.png", shown)

    def csv(self) -> str:
        """Return a table with a line for every method, group and metric."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["method", "group", "metric", *Summary._fields, *(f"p_{name}" for name in Comparison._fields)])
        for key, summary in self.summaries.items():
            p_values = self.comparisons.get(key, NO_TEST)
            writer.writerow([*key, *summary, *("" if math.isnan(p) else p for p in p_values)])
        return text.getvalue()

    def markdown(self, shown: Sequence[str] = SHOWN) -> str:
        """Return the table of means, the tables of p-values, and the number of scores left out."""
        columns = [(metric, group) for metric in shown for group in self.groups]
        sizes = {group: len(by_group(self.methods[self.proposed])[group]) for group in self.groups}
        images = ", ".join(f"{group} {size}" for group, size in sizes.items())
        lines = [f"Mean (population standard deviation) over images: {images}.", ""]
        alone = self.groups == ["all"]
        lines += _table(
            ["method", *(metric if alone else f"{metric} {group}" for metric, group in columns)],
            [
                [name, *(_mean_std(self.summaries[name, group, metric]) for metric, group in columns)]
                for name in self.methods
            ],
        )
        left_out = [
            f"{name}: {metric} of {self.summaries[name, 'all', metric].left_out} images"
            for name in self.methods
            for metric in shown
            if self.summaries[name, "all", metric].left_out
        ]
        if left_out:
            lines += ["", f"Left out because the score is not a number: {'; '.join(left_out)}."]
        repeated = [name for name in self.methods if (name, shown[0]) in self.runs]
        if repeated:
            lines += ["", "Variation between training runs: mean, standard deviation (n - 1), and each run.", ""]
            lines += _table(
                ["method", *shown],
                [[name, *(_of_runs(self.runs[name, metric]) for metric in shown)] for name in repeated],
            )
        others = [name for name in self.methods if name != self.proposed]
        for title, plain, corrected in (
            ("paired t-test", "t", "t_holm"),
            ("Wilcoxon signed-rank test", "wilcoxon", "wilcoxon_holm"),
        ):
            if not others:
                break
            lines += [
                "",
                f"p-values of the one-tailed {title}: {self.proposed} is better than each method over all images. "
                f"With Holm's correction for {len(others)} method{'' if len(others) == 1 else 's'} "
                "(without it in brackets).",
                "",
            ]
            rows = []
            for name in others:
                tests = [self.comparisons.get((name, "all", metric), NO_TEST) for metric in shown]
                rows.append([name, *(f"{_p(getattr(t, corrected))} ({_p(getattr(t, plain))})" for t in tests)])
            lines += _table([f"{self.proposed} against", *shown], rows)
        return "\n".join(lines) + "\n"

    def draw(self, path: Path, shown: Sequence[str] = SHOWN) -> None:
        """Draw one panel per metric with one box per method.

        A box shows quartiles, median, whiskers of 1.5 interquartile ranges, and every image.
        """
        columns = min(len(shown), 4)
        panels = -(-len(shown) // columns)
        width = max(2.2, 0.55 * len(self.methods) + 1.2)
        figure = Figure(figsize=(width * columns, 3.6 * panels), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(panels, columns, squeeze=False).ravel()
        jitter = np.random.default_rng(0)
        for axis, metric in zip(axes, shown, strict=False):
            data = [np.array([row[metric] for row in rows]) for rows in self.methods.values()]
            data = [values[~np.isnan(values)] for values in data]
            axis.boxplot(data, widths=0.6, showfliers=False, medianprops={"color": "black", "linewidth": 1.5})
            for place, values in enumerate(data, start=1):
                x = place + jitter.uniform(-0.15, 0.15, len(values))
                axis.plot(x, values, ".", color=f"C{place - 1}", alpha=0.6, markersize=4)
            axis.set_xticks(range(1, len(data) + 1), list(self.methods), rotation=45, ha="right", fontsize="small")
            axis.set_title(metric)
            axis.grid(axis="y", alpha=0.3)
        for axis in axes[len(shown) :]:
            axis.remove()
        with whole_file(path, "wb") as file:
            figure.savefig(file, format="png", dpi=150)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def _mean_std(summary: Summary) -> str:
    return "–" if math.isnan(summary.mean) else f"{summary.mean:.4f} ({summary.std:.4f})"


def _of_runs(means: Sequence[float]) -> str:
    each = ", ".join(f"{mean:.4f}" for mean in means)
    return f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}: {each}"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2e}" if value < 0.001 else f"{value:.3f}"
