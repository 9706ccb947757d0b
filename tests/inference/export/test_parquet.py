"""The table as Parquet: the rows of the csv."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from pyarrow import parquet as arrow

from pffnet_d2.inference.export import parquet
from pffnet_d2.inference.export.base import Part, SourceImage
from pffnet_d2.inference.export.csv_table import write_csv
from pffnet_d2.inference.export.measure import Measured, Measures
from pffnet_d2.inference.export.parquet import Parquet


def source(pixels: np.ndarray, *, whole: bool) -> SourceImage:
    def window(box: tuple[int, int, int, int]) -> np.ndarray:
        return pixels[box[0] : box[2], box[1] : box[3]]

    return SourceImage("a.tif", pixels.shape, window, window, whole=whole, pixel_size=(0.5, 0.5))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_rows_of_the_csv(tmp_path: Path, count: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (60, 90)).astype(np.uint16)
    labels = np.zeros((60, 90), np.int32)
    for i in range(count):
        labels[5 : 15 + i, 12 * i + 1 : 12 * i + 9] = i + 1
    scores = {"score": np.linspace(0.5, 0.9, count)}
    write_csv(tmp_path / "a.csv", labels, scores, pixels=pixels, pixel_size=(0.5, 0.5))
    with Parquet().begin(tmp_path / "a.parquet", source(pixels, whole=True)) as add:
        add(Part(labels, scores))
    table = arrow.read_table(tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(table) == len(rows) == count
    assert table.column_names == csv.DictReader(open(tmp_path / "a.csv", newline="")).fieldnames  # noqa: SIM115
    for found, row in zip(table.to_pylist(), rows, strict=True):
        assert found == pytest.approx({key: float(value) for key, value in row.items()}, rel=1e-5)


def test_parts_hold_whole_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 3 and 4 objects, in parts of at least 5 rows."""
    monkeypatch.setattr(parquet, "PART", 5)
    pixels = np.zeros((40, 40), np.uint8)
    place = tmp_path / "a.parquet"
    with Parquet().begin(place, source(pixels, whole=False)) as add:
        first = 1
        for group in (3, 4, 4, 3):
            labels = np.zeros((40, 40), np.int32)
            labels[2:4, : 2 * group] = np.repeat(np.arange(1, group + 1), 2)
            add(Part(labels, {"score": np.ones(group)}, first))
            first += group
    assert [len(arrow.read_table(part)) for part in sorted(place.iterdir())] == [7, 7]
    assert arrow.read_table(place)["label"].to_pylist() == list(range(1, 15))
    assert Parquet().replaces(place)
    (place / "mine.txt").touch()
    assert not Parquet().replaces(place)


def test_tiles_without_objects_give_a_table_without_rows(tmp_path: Path) -> None:
    with Parquet().begin(tmp_path / "a.parquet", source(np.zeros((9, 9), np.uint8), whole=False)):
        pass
    table = arrow.read_table(tmp_path / "a.parquet")
    assert len(table) == 0
    assert "area_um2" in table.column_names


def test_chosen_measures(tmp_path: Path) -> None:
    """The columns of --measure, text among them."""
    pixels = np.arange(81, dtype=np.uint8).reshape(9, 9)
    labels = np.zeros((9, 9), np.int32)
    labels[1:3, 1:5] = 1

    def channels(box: tuple[int, int, int, int]) -> np.ndarray:
        return pixels[box[0] : box[2], box[1] : box[3], None]

    measured = Measured(Measures.parse("area,mean", 0), "plate/a.tif", channels, ("DAPI",))
    image = replace(source(pixels, whole=True), measured=measured)
    with Parquet().begin(tmp_path / "a.parquet", image) as add:
        add(Part(labels, {"score": np.ones(1)}))
    (row,) = arrow.read_table(tmp_path / "a.parquet").to_pylist()
    assert (row["image"], row["label"], row["area_um2"]) == ("plate/a.tif", 1, 2.0)
    assert row["mean_DAPI"] == pixels[1:3, 1:5].mean()
