"""Otsu and watershed: splits touching discs, finds the right side of the threshold, gives a row of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pffnet_d2.cli import main as cli
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.baseline import otsu_watershed, score_otsu
from pffnet_d2.evaluation.scores import read_scores, write_scores

Y, X = np.mgrid[:100, :140]


def disc(y: int, x: int, radius: int) -> np.ndarray:
    return (Y - y) ** 2 + (X - x) ** 2 <= radius**2


# The first two touch.
TRUTH = disc(30, 30, 13) * 1 + (disc(30, 54, 12) & ~disc(30, 30, 13)) * 2 + disc(70, 100, 15) * 3
LILAC, VIOLET = np.array([230, 210, 230], np.uint8), np.array([90, 60, 150], np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        np.where(TRUTH > 0, 200, 20).astype(np.uint8),
        np.where(TRUTH > 0, 20, 200).astype(np.uint8),
        np.repeat(np.where(TRUTH > 0, 200, 20).astype(np.uint8)[..., None], 3, axis=2),
        np.where(TRUTH[..., None] > 0, VIOLET, LILAC),
    ],
    ids=["bright", "dark", "rgb", "stained"],
)
def test_discs(image: np.ndarray) -> None:
    labels = otsu_watershed(image)
    assert labels.dtype == np.int32
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]
    assert metrics.panoptic_quality(TRUTH, labels).pq > 0.9


def test_nothing_and_specks() -> None:
    flat = np.full((40, 50), 90, np.uint8)
    assert not otsu_watershed(flat).any()
    flat[10:13, 10:13] = 200
    assert not otsu_watershed(flat).any()


def test_a_row_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare("phantoms", None, tmp_path, Selection(splits=("val",), count=2))
    split = tmp_path / "phantoms" / "val"
    rows = list(score_otsu(split))
    assert len(rows) == 2
    assert all(0 < row["Dice"] <= 1 for row in rows)
    out = tmp_path / "out"
    write_scores(tmp_path / "x", rows, {})
    assert cli.main(["report", f"x={tmp_path}/x", "--otsu", str(split), "--out", str(out)]) == 0
    assert "| Otsu + watershed |" in capsys.readouterr().out
    assert [row["image"] for row in read_scores(out / "otsu")] == [row["image"] for row in rows]


def test_a_folder_that_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instances\.json: is not there; give the folder of a split"):
        next(score_otsu(tmp_path))
