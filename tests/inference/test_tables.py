"""One table of several images, and its summary."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

import pytest

from pffnet_d2.errors import InputError
from pffnet_d2.inference.tables import ImageTable, check_table, summary_path, well_of, write_tables


@pytest.fixture
def tables(tmp_path: Path) -> list[ImageTable]:
    """Three images of two folders; the second has no objects, the third another pixel size and one more channel."""
    content = {
        "p/x_A01_1.tif": "image,label,area_px2,mean_0\np/x_A01_1.tif,1,4,10\np/x_A01_1.tif,2,8,\n",
        "p/x_A01_2.tif": "image,label,area_px2,mean_0\n",
        "q/x_B02.tif": 'image,label,area_um2,mean_0,mean_1\n"q/x_B02.tif",1,2.5,3,7\n',
    }
    found = []
    for i, (image, text) in enumerate(content.items()):
        (tmp_path / f"{i}.csv").write_text(text)
        found.append(ImageTable(image, PurePosixPath(image), tmp_path / f"{i}.csv"))
    return found


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_all_columns_in_the_order_of_the_images(tmp_path: Path, tables: list[ImageTable]) -> None:
    write_tables(tmp_path / "all.csv", tables)
    assert rows(tmp_path / "all.csv") == [
        ["image", "label", "area_px2", "mean_0", "area_um2", "mean_1"],
        ["p/x_A01_1.tif", "1", "4", "10", "", ""],
        ["p/x_A01_1.tif", "2", "8", "", "", ""],
        ["q/x_B02.tif", "1", "", "3", "2.5", "7"],
    ]
    assert rows(tmp_path / "all_summary.csv") == [
        [
            *("folder", "well", "images", "objects", "objects_per_image"),
            *("median_area_px2", "median_mean_0", "median_area_um2", "median_mean_1"),
        ],
        ["p", "A01", "2", "2", "1", "6", "10", "", ""],
        ["q", "B02", "1", "1", "1", "", "3", "2.5", "7"],
    ]


def test_parquet_holds_the_same(tmp_path: Path, tables: list[ImageTable], monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("pffnet_d2.inference.tables._GROUP", 2)
    write_tables(tmp_path / "all.parquet", tables)
    found = parquet.read_table(tmp_path / "all.parquet").to_pydict()
    assert found == {
        "image": ["p/x_A01_1.tif", "p/x_A01_1.tif", "q/x_B02.tif"],
        "label": [1, 2, 1],
        "area_px2": [4.0, 8.0, None],
        "mean_0": [10.0, None, 3.0],
        "area_um2": [None, None, 2.5],
        "mean_1": [None, None, 7.0],
    }
    assert summary_path(tmp_path / "all.parquet").is_file()


def test_no_image(tmp_path: Path) -> None:
    for name in ("all.csv", "all.parquet"):
        pytest.importorskip("pyarrow")
        write_tables(tmp_path / name, [])
        assert (tmp_path / name).exists()
    assert len(rows(tmp_path / "all_summary.csv")) == 1


@pytest.mark.parametrize(
    ("name", "well"),
    [
        ("IXMtest_A01_s1_w1A2B3C4D5.tif", "A01"),
        ("plate-P24.tif", "P24"),
        ("r02c03f01p01-ch1.tiff", "B03"),
        ("A01_field_A01.tif", "A01"),
        ("C1-image.tif", ""),  # a channel, as ImageJ names it
        ("A01_to_B02.tif", ""),
        ("Q01.tif", ""),
        ("A25.tif", ""),
        ("A001.tif", ""),
        ("BA01.tif", ""),
        ("image.tif", ""),
    ],
)
def test_wells(name: str, well: str) -> None:
    assert well_of(PurePosixPath("B02") / name) == well


def test_wells_by_a_regular_expression() -> None:
    assert well_of(PurePosixPath("plate/C1/1.tif"), r"/([A-P]\d)/") == "C1"
    assert well_of(PurePosixPath("plate/C1/1.tif"), r"C\d") == "C1"
    assert well_of(PurePosixPath("plate/1.tif"), r"C(\d)") == ""
    assert well_of(PurePosixPath("C.tif"), r"C(\d)?") == ""


def test_bad_names(tmp_path: Path) -> None:
    for path, well, words in (
        (tmp_path / "all.txt", None, r"must end with \.csv or \.parquet"),
        (tmp_path / "none" / "all.csv", None, "there is no folder"),
        (tmp_path / "all.csv", "(", "no regular expression"),
        (tmp_path / "all.csv", "(a)(b)", "has 2 groups"),
    ):
        with pytest.raises(InputError, match=words):
            check_table(path, well, tmp_path / "out")
    check_table(tmp_path / "out" / "all.csv", None, tmp_path / "out")  # which prediction makes
