"""Label images of any tool: how they are paired, read and refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pffnet_d2.cli import main as cli
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.prepared import PreparedSplit
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.folders import score_folders
from pffnet_d2.evaluation.scores import Row
from pffnet_d2.imaging.read import read_label_image

GT = np.array([[1, 1, 0, 9], [1, 1, 0, 9], [0, 0, 0, 0]])
PRED = np.array([[4, 4, 0, 0], [4, 0, 0, 7], [0, 0, 0, 0]])
Write = Callable[[Path, np.ndarray], None]


@pytest.fixture
def folders(tmp_path: Path, write_labels: Write) -> tuple[Path, Path]:
    """Two images; the prediction of b is perfect."""
    truth, prediction = tmp_path / "truth", tmp_path / "prediction"
    write_labels(truth / "a.png", GT.astype(np.uint8))
    write_labels(truth / "b.tif", (GT * 300).astype(np.uint16))
    write_labels(prediction / "a.tif", PRED.astype(np.int32))
    write_labels(prediction / "b.png", GT.astype(np.uint16))
    (prediction / "notes.txt").write_text("no image")
    (prediction / "._a.tif").write_text("of another system")
    return truth, prediction


def evaluate(truth: Path, prediction: Path, *more: str) -> int:
    return cli.main(["evaluate", "--truth", str(truth), "--prediction", str(prediction), *more])


def rows_of(truth: Path, prediction: Path, *more: str) -> list[Row]:
    return [each.row for each in score_folders(truth, prediction, *more)]


def test_pairs_are_scored_by_name(folders: tuple[Path, Path]) -> None:
    a, b = rows_of(*folders)
    assert (a["image"], a["truths"], a["predictions"]) == ("a", 2, 2)
    assert a["AJI"] == metrics.aji(GT, PRED) == (3 + 1) / (4 + 2)
    assert a["SBD"] == metrics.symmetric_best_dice(GT, PRED)
    assert a["object_Hausdorff"] == metrics.object_hausdorff(GT, PRED) == 1
    assert b["image"] == "b"
    assert b["AJI"] == 1


def test_the_command_prints_means_and_writes_all_files(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("image,group\na,seen\nb,unseen\n")
    assert evaluate(*folders, "--out", str(tmp_path / "out"), "--groups", str(groups)) == 0
    printed = capsys.readouterr().out
    assert "over 2 images" in printed
    assert f"{'AJI_plus':<18}{(4 / 6 + 1) / 2:>10.4f}{(1 - 4 / 6) / 2:>10.4f}" in printed
    rows = list(csv.DictReader((tmp_path / "out" / "label_map.csv").open(newline="")))
    assert [(row["image"], row["group"]) for row in rows] == [("a", "seen"), ("b", "unseen")]
    summary = json.loads((tmp_path / "out" / "label_map.json").read_text())
    assert summary["images"] == 2
    assert summary["mean"]["AJI"] == pytest.approx((4 / 6 + 1) / 2)
    assert summary["groups"]["unseen"]["mean"]["AJI"] == 1
    # The prediction of object 9 has an intersection over union of exactly a half.
    assert "3 of 4 objects found (IoU above 0.5), 0 merged, 0 split, 1 found in part, 0 missed; 0 false" in printed
    errors = list(csv.DictReader((tmp_path / "out" / "label_map_errors.csv").open(newline="")))
    assert [(row["area_below"], row["truths"], row["found"]) for row in errors] == [("50", "4", "3"), ("", "4", "3")]


def test_the_truth_of_a_prepared_split(tmp_path: Path, write_labels: Write) -> None:
    prepare("phantoms", None, tmp_path, Selection(splits=("val",), count=3))
    split = tmp_path / "phantoms" / "val"
    truths = {image.name: image.truth() for image in PreparedSplit(split).labelled_images()}
    assert len(truths) == 3
    for name, truth in truths.items():
        write_labels(tmp_path / "prediction" / f"{name}.tif", np.where(truth > 3, truth, 0))
    for row in rows_of(split, tmp_path / "prediction"):
        assert row["DiC"] == -3
        assert row["SQ"] == 1
    data = json.loads((split / "instances.json").read_text())
    data["images"][1]["report_group"] = "unseen"
    (split / "instances.json").write_text(json.dumps(data))
    assert [row["group"] for row in rows_of(split, tmp_path / "prediction")][1] == "unseen"
    (tmp_path / "prediction" / f"{name}.tif").unlink()
    with pytest.raises(InputError, match=rf"instances\.json: .* has no label image {name}"):
        rows_of(split, tmp_path / "prediction")


def test_neither_torch_nor_detectron2_is_needed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    program = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("torch", "detectron2"):
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from pffnet_d2.cli import main as cli
sys.exit(
    cli.main(["evaluate", "--truth", {str(folders[0])!r}, "--prediction", {str(folders[1])!r}])
    or cli.main(["report", {f"A={tmp_path}/a"!r}, "--out", {str(tmp_path / "report")!r}])
)
"""
    assert evaluate(*folders, "--out", str(tmp_path / "a")) == 0
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def refused(truth: Path, prediction: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert evaluate(truth, prediction) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pffnet: error: ")
    return line


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (GT[:2].astype(np.uint8), r"truth (3, 4) and prediction (2, 4) differ in shape"),
        (GT.astype(np.float32), "prediction is of float32"),
        (-GT.astype(np.int16), "prediction has the negative id -9"),
        (np.stack([np.pad(GT, 1)] * 5).astype(np.uint16), "contains a stack of 5 planes; save one plane"),
        (np.stack([GT, GT + 1, GT], axis=-1).astype(np.uint8), "is not a label image; use the label image"),
    ],
)
def test_files_that_are_not_label_maps_are_named_in_one_line(
    labels: np.ndarray,
    message: str,
    folders: tuple[Path, Path],
    write_labels: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_labels(folders[1] / "a.tif", labels)
    line = refused(*folders, capsys)
    assert message in line
    assert str(folders[1] / "a.tif") in line


def test_pages_are_planes(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with tifffile.TiffWriter(folders[1] / "a.tif") as tiff:
        tiff.write(GT.astype(np.uint8))
        tiff.write(GT[:2].astype(np.uint16))
    assert "a.tif: contains 2 images (3x4, 2x4); save the one you want by itself" in refused(*folders, capsys)


def test_labels_saved_as_colours(
    folders: tuple[Path, Path], write_labels: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grey saved as RGB is read; real colours are refused."""
    before = rows_of(*folders)
    for name in ("a.tif", "b.png"):
        labels = read_label_image(folders[1] / name).astype(np.uint8)
        write_labels(folders[1] / name, np.dstack([labels, labels, labels]))
    assert rows_of(*folders) == before
    write_labels(folders[1] / "b.png", np.dstack([labels, labels, labels + 1]))
    assert "b.png: shows labels in colours" in refused(*folders, capsys)


def test_damage(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for file in (folders[1] / "a.tif", folders[1] / "b.png"):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert f"{file}: cannot be read" in refused(*folders, capsys)
        file.write_bytes(whole)


def test_a_missing_partner(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    truth, prediction = folders
    (truth / "b.tif").rename(truth / "c.tif")
    line = refused(truth, prediction, capsys)
    assert f"{truth / 'c.tif'}: {prediction} has no label image c" in line
    (truth / "c.tif").unlink()
    assert f"{prediction / 'b.png'}: {truth} has no label image b" in refused(truth, prediction, capsys)


def test_folders_without_images(
    folders: tuple[Path, Path], tmp_path: Path, write_labels: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no-such: no such folder" in refused(tmp_path / "no-such", folders[1], capsys)
    (tmp_path / "empty").mkdir()
    assert "empty: contains no label images" in refused(folders[0], tmp_path / "empty", capsys)
    write_labels(folders[0] / "a.tif", GT.astype(np.uint8))
    assert "a.tif: a.png has the same name" in refused(*folders, capsys)


def test_a_file_of_groups_names_every_image(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("image,group\na,seen\n")
    assert evaluate(*folders, "--groups", str(groups)) == 2
    assert "groups.csv: has no group for image b" in capsys.readouterr().err
    groups.write_text("name\na\n")
    assert evaluate(*folders, "--groups", str(groups)) == 2
    assert "neither a csv with the columns image and group" in capsys.readouterr().err


def results(folder: Path, write_labels: Write, *names: str) -> Path:
    """The files of ``pffnet predict`` in all formats."""
    for name in names:
        write_labels(folder / f"{name}_labels.tif", PRED.astype(np.int32))
        write_labels(folder / f"{name}_overlay.png", np.zeros((3, 4, 3), np.uint8))
        for ending in (".csv", ".json", ".geojson", "_rois.zip"):
            (folder / f"{name}{ending}").write_text("a table")
    return folder


@pytest.mark.parametrize(
    ("truths", "names"),
    [
        (("a.png", "b.tif"), "ab"),
        (("a_mask.png", "b_mask.png"), "ab"),
        (
            ("a_labels.tif", "b_labels.tif"),
            ["a_labels", "b_labels"],
        ),  # if the names of the files are the same, they are kept
        (("a_cp_masks.png", "b.ome.tif"), "ab"),
        (("a.png", "a_mask.png", "b_mask.png"), ["a", "a_mask", "b"]),
    ],
)
def test_the_files_of_predict_are_scored(
    truths: tuple[str, ...], names: Sequence[str], tmp_path: Path, write_labels: Write
) -> None:
    for name in truths:
        write_labels(tmp_path / "truth" / name, GT.astype(np.uint8))
    images = ("a", "a_mask", "b") if len(truths) == 3 else ("a", "b")
    rows = rows_of(tmp_path / "truth", results(tmp_path / "results", write_labels, *images))
    assert [row["image"] for row in rows] == list(names)
    assert all(row["AJI"] == (3 + 1) / (4 + 2) for row in rows)


def test_a_prepared_split_and_the_files_of_predict(tmp_path: Path, write_labels: Write) -> None:
    prepare("phantoms", None, tmp_path, Selection(splits=("val",), count=2))
    split = tmp_path / "phantoms" / "val"
    for image in PreparedSplit(split).labelled_images():
        write_labels(tmp_path / "results" / f"{image.name}_labels.tif", image.truth())
        write_labels(tmp_path / "results" / f"{image.name}_overlay.png", np.zeros((256, 256, 3), np.uint8))
    assert [(row["image"], row["PQ"]) for row in rows_of(split, tmp_path / "results")] == [
        ("val_00000", 1.0),
        ("val_00001", 1.0),
    ]


def test_predict_then_evaluate(tiny_run: Path, leave_no_trace: None, tmp_path: Path) -> None:
    """One command directly after the other."""
    prepare("phantoms", None, tmp_path, Selection(splits=("val",), count=2))
    split = tmp_path / "phantoms" / "val"
    model = ["--config", str(tiny_run / "config.yaml"), "--weights", str(tiny_run / "model_final.pth")]
    formats = ["--format", "label-tiff,overlay,csv,geojson", "--out", str(tmp_path / "results")]
    assert cli.main(["predict", str(split / "images"), *model, *formats, "--device", "cpu"]) == 0
    assert evaluate(split, tmp_path / "results", "--objects", "ids") == 0


def test_masks_of_all_objects(folders: tuple[Path, Path], write_labels: Write) -> None:
    """Two squares of 255 are two objects or one, as the option says. Without the option they are an error."""
    truth, prediction = folders
    mask = (GT > 0).astype(np.uint8) * 255
    write_labels(truth / "a.png", mask)
    with pytest.raises(InputError, match=r"a\.png: one id, 255, in 2 separate parts; say --objects components"):
        rows_of(truth, prediction)
    for objects, count in (("ids", 1), ("components", 2)):
        first, second = rows_of(truth, prediction, objects)
        assert (first["truths"], first["predictions"]) == (count, 2)
        assert second["AJI"] == 1  # label maps with several ids are not changed
    with pytest.raises(InputError, match="--objects masks: give one of auto, ids, components"):
        rows_of(truth, prediction, "masks")


def test_a_prediction_of_one_object_in_two_parts(folders: tuple[Path, Path], write_labels: Write) -> None:
    """A model may predict one object in several parts. A folder without any second id contains masks."""
    truth, prediction = folders
    write_labels(prediction / "a.tif", (GT > 0).astype(np.int32))
    first, _ = rows_of(truth, prediction)
    assert first["predictions"] == 1
    write_labels(prediction / "b.png", (GT > 0).astype(np.uint8))
    with pytest.raises(InputError, match=r"a\.tif: one id, 1, in 2 separate parts"):
        rows_of(truth, prediction)
    write_labels(prediction / "a.tif", (GT > 0).astype(np.int32) * 255)
    write_labels(prediction / "b.png", GT.astype(np.uint8))
    with pytest.raises(InputError, match=r"a\.tif: one id, 255, in 2 separate parts"):
        rows_of(truth, prediction)
