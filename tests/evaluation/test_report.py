"""The report: folds and runs, groups, tests, files, and refused input."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pffnet_d2.cli import main as cli
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.report import Report, merge_runs
from pffnet_d2.evaluation.scores import CSV, METRICS, Row, read_groups, read_scores, write_scores
from pffnet_d2.evaluation.statistics import holm, paired_tests

Rows = Callable[..., list[Row]]

SEEN = {"a": 0.6, "b": 0.8}
UNSEEN = {"c": 0.4, "d": 0.5, "e": 0.9}


@pytest.fixture
def methods(rows: Rows) -> dict[str, list[Row]]:
    """Ours is better than the second method by varying amounts, and equal to the third."""

    def method(loss: float) -> list[Row]:
        seen = {image: value * (1 - loss) for image, value in SEEN.items()}
        unseen = {image: value * (1 - 2 * loss) for image, value in UNSEEN.items()}
        return rows(seen, "seen") + rows(unseen, "unseen")

    return {"Ours": method(0.0), "Second": method(0.1)[::-1], "Third": method(0.0)}


def test_means_by_group_and_tests(methods: dict[str, list[Row]]) -> None:
    report = Report(methods, "Ours")
    assert report.groups == ["seen", "unseen", "all"]
    assert report.metrics == list(METRICS)
    assert report.summaries["Ours", "seen", "AJI"] == (pytest.approx(0.7), pytest.approx(0.1), 2, 0)
    assert report.summaries["Ours", "unseen", "AJI"].mean == pytest.approx(0.6)
    assert report.summaries["Ours", "all", "AJI"].mean == pytest.approx(3.2 / 5)
    assert report.summaries["Ours", "all", "AJI"].std == pytest.approx(np.std([0.6, 0.8, 0.4, 0.5, 0.9]))

    # Paired by image, for any order of the rows.
    ours, second = [0.6, 0.8, 0.4, 0.5, 0.9], [0.54, 0.72, 0.32, 0.4, 0.72]
    tests = paired_tests(ours, second)
    comparison = report.comparisons["Second", "all", "AJI"]
    assert comparison.t == pytest.approx(tests.t)
    assert comparison.wilcoxon == tests.wilcoxon == 1 / 32
    assert (comparison.t_holm, comparison.wilcoxon_holm) == tuple(
        pytest.approx(holm([p, 1.0])[0]) for p in (tests.t, tests.wilcoxon)
    )
    assert report.comparisons["Third", "all", "AJI"] == (1, 1, 1, 1)
    # Higher is worse.
    assert report.comparisons["Second", "all", "merges"].wilcoxon == 1
    assert ("Second", "all", "DiC") not in report.comparisons
    assert not any(name == "Ours" for name, _, _ in report.comparisons)


def test_a_single_group_is_not_shown_separately(rows: Rows) -> None:
    assert Report({"A": rows({"a": 1.0, "b": 0.5}, "A1")}, "A").groups == ["all"]
    assert Report({"A": rows({"a": 1.0}, "A1") + rows({"b": 0.5})}, "A").groups == ["A1", "all"]


def test_groups_of_a_prepared_json(tmp_path: Path) -> None:
    """Not the groups that splits keep together, which an earlier version called group."""
    images = [{"file_name": f"{name}.png", "split_group": name, "report_group": "seen"} for name in "ab"]
    images.append({"file_name": "old.png", "group": "patient 1"})
    (tmp_path / "instances.json").write_text(json.dumps({"images": images}))
    assert read_groups(tmp_path / "instances.json") == {"a": "seen", "b": "seen", "old": ""}


def test_markdown(methods: dict[str, list[Row]]) -> None:
    methods["Second"][0]["AJI"] = float("nan")
    text = Report(methods, "Ours").markdown(("AJI", "PQ"))
    lines = text.splitlines()
    assert lines[0] == "Mean (population standard deviation) over images: seen 2, unseen 3, all 5."
    assert "| method | AJI seen | AJI unseen | AJI all | PQ seen | PQ unseen | PQ all |" in lines
    assert "| Ours | 0.7000 (0.1000) | 0.6000 (0.2160) | 0.6400 (0.1855) |" in text
    assert "Left out because the score is not a number: Second: AJI of 1 images." in lines
    assert "| Ours against | AJI | PQ |" in lines
    assert "| Third | 1.000 (1.000) | 1.000 (1.000) |" in lines
    alone = Report({"Ours": methods["Ours"]}, "Ours").markdown(("AJI",))
    assert "p-values" not in alone


def test_folds_are_joined_and_runs_averaged(rows: Rows) -> None:
    folds = merge_runs("x", [rows({"a": 0.2}), rows({"b": 0.4, "c": 0.6})])
    assert {row["image"]: row["AJI"] for row in folds} == {"a": 0.2, "b": 0.4, "c": 0.6}
    nan = float("nan")
    runs = merge_runs("x", [rows({"a": 0.2, "b": nan}), rows({"b": 0.5, "a": 0.4})])
    assert {row["image"]: row["AJI"] for row in runs} == {"a": pytest.approx(0.3), "b": 0.5}
    both = merge_runs("x", [rows({"a": 0.2}), rows({"b": 0.4}), rows({"a": 0.6})])
    assert {row["image"]: row["AJI"] for row in both} == {"a": pytest.approx(0.4), "b": 0.4}
    with pytest.raises(InputError, match="x: image b is in two folds"):
        merge_runs("x", [rows({"a": 0.2, "b": 0.3}), rows({"b": 0.4, "c": 0.6})])


def test_methods_must_have_the_same_images(rows: Rows) -> None:
    with pytest.raises(InputError, match="B: has no scores of image a"):
        Report({"A": rows({"a": 1.0, "b": 1.0}), "B": rows({"b": 1.0})}, "A")
    with pytest.raises(InputError, match="A: has no scores of image c"):
        Report({"A": rows({"a": 1.0}), "B": rows({"a": 1.0, "c": 1.0})}, "A")
    with pytest.raises(InputError, match="B: image a is of group 'x', but of '' in A; give --groups"):
        Report({"A": rows({"a": 1.0}), "B": rows({"a": 1.0}, "x")}, "A")


def test_scores_are_read_as_they_were_written(tmp_path: Path, rows: Rows) -> None:
    written = rows({"a": 1 / 3, "b": float("nan")}, "g")
    write_scores(tmp_path, written, {})
    for path in (tmp_path, tmp_path / CSV):
        first, second = read_scores(path)
        assert first == written[0]
        assert second["group"] == "g"
        assert math.isnan(second["AJI"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("image,group,AJI\n", "contains no scores"),
        ("image,group,AJI\na,,x\n", "line 2: not a row of scores"),
        ("image,group,AJI\na,,0.1\nb,,\n", "line 3: not a row of scores"),
        ("image,AJI\na,0.1\n", "line 2: not a row of scores"),
        ("image,group,AJI\na,,0.1\na,,0.1\n", "image a is there twice"),
    ],
)
def test_files_without_scores(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / CSV).write_text(text)
    assert cli.main(["report", f"A={tmp_path}", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / CSV}" in line
    assert message in line
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, methods: dict[str, list[Row]], capsys: pytest.CaptureFixture[str]) -> None:
    for name, method in methods.items():
        write_scores(tmp_path / name, method, {})
    write_scores(tmp_path / "fold_1", methods["Second"][:2], {})
    write_scores(tmp_path / "fold_2", methods["Second"][2:], {})
    groups = tmp_path / "groups.csv"
    groups.write_text(
        "image,group\n" + "".join(f"{image},{'one' if image < 'e' else ''}\n" for image in (*SEEN, *UNSEEN))
    )
    out = tmp_path / "out"
    runs = [f"Second={tmp_path}/fold_1", f"Second={tmp_path}/fold_2", f"Ours={tmp_path}/Ours"]
    assert cli.main(["report", *runs, "--proposed", "Ours", "--out", str(out), "--groups", str(groups)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["boxes.png", "report.csv", "report.md"]
    assert capsys.readouterr().out == (out / "report.md").read_text(encoding="utf-8")
    lines = list(csv.DictReader((out / "report.csv").open(newline="", encoding="utf-8")))
    assert len(lines) == 2 * 2 * len(METRICS)
    line = next(x for x in lines if (x["method"], x["group"], x["metric"]) == ("Second", "all", "Dice"))
    assert float(line["mean"]) == pytest.approx(0.54)
    assert float(line["p_wilcoxon"]) == float(line["p_wilcoxon_holm"]) == 1 / 32
    ours = next(x for x in lines if x["method"] == "Ours")
    assert (ours["group"], ours["p_t"]) == ("one", "")
    with Image.open(out / "boxes.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10  # something is drawn

    for arguments, message in (
        ([f"{tmp_path}/Ours"], "NAME=DIR"),
        ([*runs, "--proposed", "Theirs"], "--proposed Theirs: no such method; choose from Second, Ours"),
        ([*runs, "--metrics", "AJI", "IoU"], "--metrics IoU: not every method has it"),
    ):
        assert cli.main(["report", *arguments, "--out", str(out)]) == 2
        (line_,) = capsys.readouterr().err.splitlines()
        assert message in line_


def test_runs_show_the_variation_of_training(rows: Rows) -> None:
    runs = [rows({"a": 0.2, "b": 0.4}), rows({"b": 0.5, "a": 0.3}), rows({"a": 0.4, "b": float("nan")})]
    folds = [rows({"a": 0.1}), rows({"b": 0.2})]
    parts = {"Runs": runs, "Folds": folds, "Once": runs[:1]}
    report = Report({name: merge_runs(name, part) for name, part in parts.items()}, "Runs", parts)
    assert {name for name, _ in report.runs} == {"Runs"}
    assert report.runs["Runs", "AJI"] == pytest.approx([0.3, 0.4, 0.4])
    # Standard deviation of three runs (n - 1): sqrt((0.0667^2 + 2 * 0.0333^2) / 2).
    assert "| Runs | 0.3667 ± 0.0577: 0.3000, 0.4000, 0.4000 |" in report.markdown(("AJI",))
    assert "over runs" not in Report({"Once": runs[0]}, "Once", {"Once": runs[:1]}).markdown()
