"""What tables say if the user chooses, on objects whose values follow by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import Part, SourceImage
from pffnet_d2.inference.export.csv_table import Csv
from pffnet_d2.inference.export.measure import Measured, Measures, intensity_columns

# Two objects of 2 x 3 and 1 x 1 pixels.
LABELS = np.zeros((8, 10), np.int32)
LABELS[2:4, 2:5] = 1
LABELS[3, 7] = 2


def table(path: Path, measures: Measures, labels: np.ndarray = LABELS, **image: object) -> list[dict[str, str]]:
    """The rows that the exporter writes of channels A (10 outside objects, else 100 times the label) and B (x)."""
    channels = np.stack([np.where(labels > 0, 100 * labels, 10), np.tile(np.arange(10), (8, 1))], axis=2)
    measured = Measured(measures, "p/a.tif", lambda box: channels[box[0] : box[2], box[1] : box[3]], ("A", "B"))
    source = SourceImage("a.tif", (8, 10), None, None, whole=True, measured=measured, **image)  # type: ignore[arg-type]
    with Csv().begin(path, source) as add:
        add(Part(labels, {"score": np.linspace(0.9, 0.5, labels.max())}))
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_channel_and_the_position(tmp_path: Path) -> None:
    measures = Measures.parse("area,extent,mean,sum,min,corrected_mean,background")
    first, second = table(tmp_path / "a.csv", measures, pixel_size=(0.5, 0.5))
    assert list(first) == [
        *("image", "label", "score", "centroid_x", "centroid_y", "centroid_x_um", "centroid_y_um"),
        *("bbox_x", "bbox_y", "bbox_width", "bbox_height", "area_um2", "extent"),
        *("mean_A", "sum_A", "min_A", "corrected_mean_A", "background_A"),
        *("mean_B", "sum_B", "min_B", "corrected_mean_B", "background_B"),
    ]
    assert (first["image"], first["label"], first["score"]) == ("p/a.tif", "1", "0.9")
    assert (first["centroid_x"], first["centroid_x_um"], first["centroid_y_um"]) == ("3.5", "1.75", "1.5")
    assert (first["area_um2"], first["extent"]) == ("1.5", "1")
    assert [first[f"{term}_A"] for term in ("mean", "sum", "min", "corrected_mean", "background")] == (
        ["100", "600", "100", "90", "10"]
    )
    # The median x of the 73 pixels of no object is 5.
    assert (first["mean_B"], first["corrected_mean_B"], second["mean_B"]) == ("3", "-2", "7")


def test_without_a_pixel_size_and_without_objects(tmp_path: Path) -> None:
    columns = list(table(tmp_path / "a.csv", Measures.parse("perimeter,mean"))[0])
    assert "centroid_x_um" not in columns
    assert "perimeter_px" in columns
    assert table(tmp_path / "b.csv", Measures.parse("perimeter,mean"), np.zeros((8, 10), np.int32)) == []
    assert (tmp_path / "b.csv").read_text().strip().split(",") == columns


def test_ring(tmp_path: Path) -> None:
    """Channel B is x. The ring of width 1 around the single pixel at x = 7 has x 6 (shared with no other), 7, 7, 8."""
    first, second = table(tmp_path / "a.csv", Measures.parse("mean", ring=1))
    assert second["ring_mean_B"] == "7"
    assert second["ring_mean_A"] == "10"
    # Around 2 x 3 pixels: three above and below (x 2, 3, 4) and two on either side (x 1 and 5).
    assert first["ring_mean_B"] == "3"
    near = np.zeros((8, 10), np.int32)
    near[2, 2:4] = (1, 2)
    columns = dict(intensity_columns(near, np.tile(np.arange(10.0), (8, 1))[..., None], ("B",), Measures(ring=1)))
    assert columns["ring_mean_B"].tolist() == pytest.approx([(1 + 2 + 2) / 3, (4 + 3 + 3) / 3])


def test_no_pixels_of_a_ring_or_of_the_background(tmp_path: Path) -> None:
    full = np.repeat(np.int32([[1], [2]]), 4, axis=0).repeat(10, axis=1)
    (row, _) = table(tmp_path / "a.csv", Measures.parse("background", ring=2), full)
    assert (row["background_A"], row["ring_mean_A"]) == ("", "")


@pytest.mark.parametrize("text", ["solidity", "feret_diameter_max", "euler_number", "perimeter_crofton,area_convex"])
def test_shapes_are_those_of_regionprops(tmp_path: Path, text: str) -> None:
    from skimage.measure import regionprops

    labels = np.zeros((8, 10), np.int32)
    labels[1:7, 1:7] = 1
    labels[2, 2] = labels[5:7, 5:7] = 0
    (row,) = table(tmp_path / "a.csv", Measures.parse(text), labels)
    for term in text.split(","):
        (column,) = [name for name in row if name.startswith(term)]
        assert float(row[column]) == pytest.approx(float(getattr(regionprops(labels)[0], term)), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "words"), [("", "'' is unknown"), ("area,size", "'size' is unknown"), ("mean,mean", "mean is there twice")]
)
def test_unknown_terms(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Measures.parse(text)
