"""The scores of a data set: one row per image, the files they are written to, and their summary."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from pffnet_d2.atomic_write import write_text
from pffnet_d2.data.prepared import read_images, report_group
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.hausdorff import object_hausdorff
from pffnet_d2.evaluation.statistics import Summary, summarise

Row = dict[str, Any]


class Metric(NamedTuple):
    """A reported score.

    Attributes:
        of: the function, which takes the table of an image.
        better: whether "higher" or "lower" values are better, or "neither".
    """

    of: Callable[[ContingencyTable], float]
    better: str = "higher"


# By reported name. To add a metric, add an entry here and a line in docs/metrics.md.
TABLE_METRICS = {
    "AJI": Metric(metrics.aji),
    "AJI_plus": Metric(metrics.aji_plus),
    "AJI_reuse": Metric(metrics.aji_reuse),
    "AJI_pffnet": Metric(metrics.aji_pffnet),
    "Dice": Metric(metrics.dice),
    "F1": Metric(metrics.object_f1),
    "PQ": Metric(lambda table: metrics.panoptic_quality(table).pq),
    "DQ": Metric(lambda table: metrics.panoptic_quality(table).dq),
    "SQ": Metric(lambda table: metrics.panoptic_quality(table).sq),
    "SBD": Metric(metrics.symmetric_best_dice),
    "DiC": Metric(metrics.difference_in_count, "neither"),
    "abs_DiC": Metric(lambda table: abs(metrics.difference_in_count(table)), "lower"),
    "DSB_mAP": Metric(metrics.dsb_average_precision),
    "object_Dice": Metric(metrics.object_dice),
    "splits": Metric(lambda table: metrics.splits_and_merges(table).splits, "lower"),
    "merges": Metric(lambda table: metrics.splits_and_merges(table).merges, "lower"),
}
# The only metric that needs the label maps themselves.
HAUSDORFF = "object_Hausdorff"
METRICS = (*TABLE_METRICS, HAUSDORFF)
# The columns before the metrics: names are text, the others are counts.
COLUMNS = ("image", "group", "truths", "predictions")

CSV, JSON = "label_map.csv", "label_map.json"


def score(image: str, gt: ArrayLike, pred: ArrayLike, group: str = "", *, table: ContingencyTable | None = None) -> Row:
    """Return one row: ``COLUMNS``, then every name of ``METRICS`` as a float (object_Hausdorff may be NaN).

    Args:
        image: its name.
        gt, pred: label maps, (H, W).
        group: of the image in reports.
        table: of the two maps, if it is known.

    Raises:
        InputError: the arrays are not label maps of the same image.
    """
    table = table or ContingencyTable.from_labels(gt, pred)
    row: Row = {"image": image, "group": group, "truths": table.n_gt, "predictions": table.n_pred}
    row |= {name: float(metric.of(table)) for name, metric in TABLE_METRICS.items()}
    return row | {HAUSDORFF: object_hausdorff(gt, pred)}


def better(metric: str) -> str:
    """Return whether "higher" or "lower" values of a metric are better, or "neither"."""
    return "lower" if metric == HAUSDORFF else TABLE_METRICS[metric].better


def summaries(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = METRICS) -> dict[str, Summary]:
    """Return the mean, the population standard deviation and the number of NaNs left out of each metric."""
    return {name: summarise([row[name] for row in rows]) for name in names}


def by_group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each group in order of appearance, then of "all"; with a single group only "all"."""
    names = dict.fromkeys(row["group"] for row in rows if row["group"])
    if len({row["group"] for row in rows}) < 2:
        return {"all": list(rows)}
    return {**{name: [row for row in rows if row["group"] == name] for name in names}, "all": list(rows)}


def write_scores(folder: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write label_map.csv (the rows) and label_map.json (``about``, then mean, std and left_out, also by group).

    Each file is written whole or not at all. The folder is created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / CSV, [*COLUMNS, *METRICS], rows)
    groups = {name: _json_summary(part) for name, part in by_group(rows).items()}
    summary = {**about, **groups.pop("all"), **({"groups": groups} if groups else {})}
    write_text(folder / JSON, json.dumps(summary, indent=2) + "\n")


def write_table(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a csv, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def _json_summary(rows: Sequence[Row]) -> dict[str, Any]:
    found = summaries(rows)
    return {
        "images": len(rows),
        # JSON has no NaN.
        "mean": {name: None if math.isnan(s.mean) else s.mean for name, s in found.items()},
        "std": {name: None if math.isnan(s.std) else s.std for name, s in found.items()},
        "left_out": {name: s.left_out for name, s in found.items() if s.left_out},
    }


def read_scores(path: Path) -> list[Row]:
    """Read the rows of a label_map.csv, or of the one in a folder. All columns but names and counts become floats.

    Raises:
        InputError: the file does not exist, or was not written by :func:`write_scores`.
    """
    file = path / CSV if path.is_dir() else path
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows: list[Row] = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read; give the folder of an evaluation, which contains {CSV}") from error
    if not rows:
        raise InputError(f"{file}: contains no scores; evaluate again")
    for number, row in enumerate(rows, start=2):
        try:
            for name in row:
                row[name] = row[name] if name in COLUMNS[:2] else float(row[name])
            if not row.keys() >= {"image", "group"} or None in row.values() or math.inf in map(abs, _numbers(row)):
                raise KeyError("image, group")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}, line {number}: not a row of scores; evaluate again") from error
    names = [row["image"] for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file}: image {twice} is there twice; every image needs its own name")
    return rows


def _numbers(row: Row) -> list[float]:
    return [value for value in row.values() if isinstance(value, float)]


def read_groups(path: Path) -> dict[str, str]:
    """Read the group of each image by name, from a csv with the columns image and group or a prepared instances.json.

    Raises:
        InputError: the file is neither, or gives an image two groups.
    """
    try:
        if path.suffix == ".json":
            named = [(Path(image["file_name"]).stem, report_group(image)) for image in read_images(path)]
        else:
            with path.open(newline="", encoding="utf-8-sig") as lines:
                named = [(row["image"], row["group"] or "") for row in csv.DictReader(lines)]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a csv with the columns image and group") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise InputError(
            f"{path}: neither a csv with the columns image and group nor the JSON of a prepared data set"
        ) from error
    groups: dict[str, str] = {}
    for image, group in named:
        if groups.setdefault(image, group) != group:
            raise InputError(f"{path}: image {image} is of group {groups[image]!r} and of {group!r}; name it once")
    return groups


def table_of(rows: Sequence[Row]) -> str:
    """Format the mean, standard deviation and number of images left out of every metric as readable lines."""
    lines = [f"{'':<18}{'mean':>10}{'std':>10}   over {len(rows)} image{'' if len(rows) == 1 else 's'}"]
    for name, found in summaries(rows).items():
        left_out = f"   {found.left_out} left out" if found.left_out else ""
        lines.append(f"{name:<18}{found.mean:>10.4f}{found.std:>10.4f}{left_out}")
    return "\n".join(lines)
