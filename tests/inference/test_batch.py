"""Files in, files out: which, how named, what fails and what is left behind, alone and among two processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2.cli.main import main
from pffnet_d2.errors import InputError
from pffnet_d2.inference.batch import predict_files
from pffnet_d2.inference.job import Job
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.sources import Source, find_sources

ALL = "label-tiff,overlay,geojson,roi,csv,coco"


def picture(seed: int = 0, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 400, size).astype(np.uint16)
    for y, x in rng.integers(0, (size[0] - 20, size[1] - 20), (6, 2)):
        image[y : y + 18, x : x + 18] += rng.integers(600, 2000, dtype=np.uint16)
    return image


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folder of a.tif (0.5 micrometres a pixel), b.png (8 bit RGB), c.tif."""
    folder = tmp_path / "images"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", picture(0), resolution=(20000, 20000), resolutionunit=3)
    Image.fromarray(np.repeat((picture(1) // 16).astype(np.uint8)[..., None], 3, axis=2)).save(folder / "b.png")
    tifffile.imwrite(folder / "c.tif", picture(2))
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(tiny_run: Path, *arguments: object, out: Path) -> int:
    model = ["--config", tiny_run / "config.yaml", "--weights", tiny_run / "model_final.pth", "--device", "cpu"]
    return main([str(a) for a in ["predict", *model, "--out", out, *arguments]])


# --- Results --------------------------------------------------------------------------------------------------------


def test_all_formats(tiny_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("roifile")
    out = tmp_path / "new" / "out"
    assert predict(tiny_run, images, "--format", ALL, out=out) == 0
    said = capsys.readouterr()
    assert tree(out) == [
        name + ending
        for name in "abc"
        for ending in (".csv", ".geojson", ".json", "_labels.tif", "_overlay.png", "_rois.zip")
    ]
    lines = said.out.splitlines()
    assert lines[0] == (
        "normalisation: uint16: percentiles 0.1 to 99.9, at least 512 grey values apart, to 0..255 (2 images)"
    )
    assert lines[1] == "normalisation: uint8: 8-bit values as they are (1 images)"
    assert lines[2].startswith("3 of 3 images predicted, ")
    assert "Mpx/s" in lines[2]
    (warning,) = [line for line in said.err.splitlines() if "b.png" in line]
    assert "b.png: objects may be missing: " in warning
    assert "TEST.DETECTIONS_PER_IMAGE 20 " in warning

    label_map = tifffile.imread(out / "a_labels.tif")
    n = int(label_map.max())
    assert n > 3
    assert np.asarray(Image.open(out / "a_overlay.png")).shape == (64, 96, 3)
    assert len(json.loads((out / "a.geojson").read_text())["features"]) == n
    coco = json.loads((out / "a.json").read_text())
    assert (len(coco["annotations"]), coco["images"][0]["file_name"]) == (n, "a.tif")
    with open(out / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    areas = np.bincount(label_map.ravel())[1:]
    assert [float(row["area_um2"]) for row in rows] == pytest.approx(areas * 0.25)
    assert [int(row["intensity_max"]) for row in rows] == [picture(0)[label_map == i + 1].max() for i in range(n)]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    with tifffile.TiffFile(out / "a_labels.tif") as tiff:
        assert tiff.pages[0].tags["XResolution"].value[0] / tiff.pages[0].tags["XResolution"].value[1] == 20000
    with open(out / "c.csv") as file:
        assert "area_px2" in file.readline()


def test_options(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = np.stack([picture(0), picture(1)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "plane.tif", stack[1])
    options = [
        "--pixel-size",
        "0.25",
        "--format",
        "label-tiff,csv",
        "--batch",
        "2",
        "--normalisation",
        "percentile:1,99",
    ]
    assert predict(tiny_run, tmp_path / "stack.tif", "--plane", "1", *options, out=tmp_path / "x") == 0
    assert "percentiles 1 to 99, to 0..255" in capsys.readouterr().out
    assert predict(tiny_run, tmp_path / "plane.tif", *options, out=tmp_path / "y") == 0
    one, other = (tifffile.imread(tmp_path / p) for p in ("x/stack_labels.tif", "y/plane_labels.tif"))
    assert (one == other).all()
    assert "area_um2" in (tmp_path / "x" / "stack.csv").read_text()
    assert predict(tiny_run, tmp_path / "plane.tif", "--threshold", "0.99", out=tmp_path / "z") == 0
    assert not tifffile.imread(tmp_path / "z" / "plane_labels.tif").any()
    best = tmp_path / "best.yaml"
    best.write_text("SCORE_THRESH: 0.99")
    assert predict(tiny_run, tmp_path / "plane.tif", "--thresholds", best, out=tmp_path / "z") == 0
    assert "1 of 1 images predicted, 0 objects" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        ["--ring", "3"],
        ["--tile", "64", "--overlap", "32"],
        pytest.param(["--ring", "3", "--processes", "2"], marks=pytest.mark.slow),
    ],
)
def test_tables_of_a_run(tiny_run: Path, tmp_path: Path, more: list[str]) -> None:
    """One row per object, in the order of the images: whole, in tiles, among two processes."""
    folder = tmp_path / "plate"
    folder.mkdir()
    stack = np.stack([picture(0), picture(1)])
    names = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    for well in ("B02", "A01", "A02"):
        tifffile.imwrite(folder / f"{well}.ome.tif", stack, metadata=names, photometric="minisblack")
    (folder / "C01.tif").write_bytes(b"II*\0 no more")
    chosen = ["--channels", "DAPI", "--measure", "area,mean", "--format", "label-tiff", folder]
    out = tmp_path / "out"
    assert predict(tiny_run, *chosen, *more, "--table", tmp_path / "all.csv", out=out) == 1
    table = rows(tmp_path / "all.csv")
    assert table == [row for well in ("A01", "A02", "B02") for row in rows(out / f"{well}.csv")]
    label_map = tifffile.imread(out / "A01_labels.tif")
    assert label_map.max() > 3
    for row, label in zip(table, range(1, label_map.max() + 1), strict=False):
        assert (row["image"], row["label"]) == ("A01.ome.tif", str(label))
        assert float(row["area_um2"]) == np.count_nonzero(label_map == label) / 4
        for channel, pixels in zip(("DAPI", "GFP"), stack, strict=True):
            assert float(row[f"mean_{channel}"]) == pytest.approx(pixels[label_map == label].mean(), rel=1e-5)
    assert ("ring_mean_GFP" in table[0]) == ("--ring" in more)
    summary = [(row["well"], row["images"]) for row in rows(tmp_path / "all_summary.csv")]
    assert summary == [("A01", "1"), ("A02", "1"), ("B02", "1")]


def test_every_plane_is_an_image(tiny_run: Path, tmp_path: Path) -> None:
    stack = np.stack([picture(0), picture(1)])
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    out = tmp_path / "out"
    for more in ([], ["--tile", "64", "--overlap", "32"]):
        arguments = ["--plane", "all", "--format", "label-tiff,geojson", "--class-name", "Nucleus", *more]
        assert predict(tiny_run, tmp_path / "a.tif", *arguments, out=out) == 0
        assert tree(out) == ["a_Z0.geojson", "a_Z0_labels.tif", "a_Z1.geojson", "a_Z1_labels.tif"]
        feature = json.loads((out / "a_Z1.geojson").read_text())["features"][0]
        assert feature["properties"]["classification"]["name"] == "Nucleus"
    assert predict(tiny_run, tmp_path / "a.tif", "--plane", "1", "--tile", "64", "--overlap", "32", out=out) == 0
    one, other = (tifffile.imread(out / name) for name in ("a_labels.tif", "a_Z1_labels.tif"))
    np.testing.assert_array_equal(one, other)


def test_two_processes_give_what_one_gives(tiny_run: Path, images: Path, tmp_path: Path, one_thread: None) -> None:
    (images / "d.tif").write_bytes(b"II*\0 no more")
    sources = find_sources([str(images)], tmp_path, [])
    summaries = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        options = PredictOptions(
            model=tiny_run,
            device="cpu",
            formats=["label-tiff", "geojson", "csv", "coco"],
        )
        summaries.append(predict_files(Job(sources, out, options, processes=processes)))
    one, two = summaries
    assert one.outcomes == two.outcomes
    assert [bool(outcome.error) for outcome in two.outcomes] == [False, False, False, True]
    assert (one.exit_code, two.exit_code) == (1, 1)
    assert tree(tmp_path / "1") == tree(tmp_path / "2")
    assert len(tree(tmp_path / "1")) == 12
    for name in tree(tmp_path / "1"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_mistake_in_two_processes_is_one_line(tiny_run: Path, images: Path, tmp_path: Path) -> None:
    options = PredictOptions(
        config=tiny_run / "config.yaml", weights=tmp_path / "no.pth", device="cpu", formats=["csv"]
    )
    job = Job([Source(images / "a.tif", "a")], tmp_path / "out", options, processes=2)
    with pytest.raises(InputError, match=r"^\S+no\.pth: no such weights file[^\n]*$"):
        predict_files(job)
    assert tree(tmp_path / "out") == []


# --- What goes wrong ------------------------------------------------------------------------------------------------


def broken(folder: Path) -> None:
    """Files of which none can be predicted, each named by its fault."""
    folder.mkdir()
    tifffile.imwrite(folder / "truncated.tif", picture(), compression="zlib")
    data = (folder / "truncated.tif").read_bytes()
    (folder / "truncated.tif").write_bytes(data[: len(data) // 2])
    (folder / "empty.tif").touch()
    (folder / "text.png").write_text("no image")
    nan = picture().astype(np.float32)
    nan[3, 3] = np.nan
    tifffile.imwrite(folder / "nan.tif", nan)
    five = np.zeros((2, 3, 2, 8, 9), np.uint16)
    tifffile.imwrite(folder / "five.tif", five, metadata={"axes": "TZCYX"}, photometric="minisblack", imagej=True)
    tifffile.imwrite(folder / "channels.tif", picture()[None].repeat(4, 0), metadata={"axes": "CYX"}, ome=True)
    tifffile.imwrite(folder / "complex.tif", picture().astype(np.complex64))
    (folder / "link.tif").symlink_to(folder / "gone")


FAULTS = {
    "truncated.tif": "truncated",
    "empty.tif": "the file is empty",
    "text.png": "cannot be read as an image",
    "nan.tif": "1 values are NaN or infinite",
    "five.tif": "a stack of 6 planes (T 2, Z 3); choose one, as in --plane T=0,Z=0",
    "channels.tif": "4 channels; choose one (--channels 0)",
    "complex.tif": "complex64 values are not supported",
    "link.tif": "cannot be read (No such file or directory)",
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_bad_file_is_one_line(
    tiny_run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(tmp_path / "broken")
    assert predict(tiny_run, tmp_path / "broken" / name, "--format", "csv,label-tiff", out=tmp_path / "out") == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"pffnet: skipped: {tmp_path / 'broken' / name}: ")
    assert FAULTS[name] in line
    assert said.out.splitlines()[-1].startswith("0 of 1 images predicted")
    assert tree(tmp_path / "out") == []


def test_bad_files_are_skipped_or_stop(
    tiny_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(images / "broken")
    assert predict(tiny_run, images / "**" / "*.tif", "--format", "csv", out=tmp_path / "out") == 1
    said = capsys.readouterr()
    assert sum(line.startswith("pffnet: skipped: ") for line in said.err.splitlines()) == len(FAULTS) - 1  # no png
    assert "2 of 9 images predicted" in said.out
    assert "; 7 failed" in said.out
    assert tree(tmp_path / "out") == ["a.csv", "c.csv"]

    bad = images / "broken" / "nan.tif"
    assert predict(tiny_run, images / "a.tif", bad, images / "c.tif", "--stop-on-error", out=tmp_path / "stop") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"pffnet: error: {bad}: 1 values are NaN")
    assert "(stopped; 1 of 3 images predicted)" in line
    assert tree(tmp_path / "stop") == ["a_labels.tif", "a_overlay.png"]


MISTAKES: list[tuple[list[str], str]] = [
    (["--format", "csv,jpeg"], "format 'jpeg' is unknown; choose from label-tiff,"),
    (["--weights", "other.pth"], "other.pth: no such weights file"),
    (["--config", "none.yaml"], "none.yaml: no such config file"),
    (["--device", "cuda:99"], "device cuda:99: cannot be used here"),
    (["--opts", "MODEL.FPN.OUT_CHANNELS", "64"], "does not fit the model"),
    (["--opts", "MODEL.NO_KEY", "1"], "MODEL.NO_KEY"),
    (["--normalisation", "gamma"], "normalisation gamma: use auto"),
    (["--plane", "Z"], "--plane Z: give a number"),
    (["--channels", "0,,1"], "--channels 0,,1: give numbers"),
    (["--channels", "0,1"], "give one (grey) or three"),
    (["--pixel-size", "-1"], "--pixel-size -1.0: give micrometres"),
    (["--threshold", "-1"], "--threshold -1.0: give a number from 0 to below 1"),
    (["--threshold", "0.5", "--thresholds", "x.yaml"], "give one of them"),
    (["--batch", "0"], "must be at least 1"),
    (["--out", "images/notes.txt/out"], "cannot be written to"),
    (["nowhere.tif"], "nowhere.tif: no such file"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_mistakes_are_one_line_and_write_nothing(
    tiny_run: Path,
    images: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert predict(tiny_run, images / "a.tif", *arguments, out=tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pffnet: error: ")
    assert words in line
    assert tree(tmp_path) == before


def test_a_disk_that_fills_up(
    tiny_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pffnet_d2.inference.export.csv_table import Csv

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Csv, "begin", full)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_labels.tif").write_text("before")
    assert predict(tiny_run, images / "a.tif", "--format", "label-tiff,csv", out=tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "a.tif: results cannot be written" in said
    assert "No space left on device" in said
    assert tree(tmp_path / "out") == ["a_labels.tif"]
    assert (tmp_path / "out" / "a_labels.tif").read_text() == "before"


def test_pixels_that_are_not_square_are_told_of_the_image(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), resolution=(20000, 10000), resolutionunit=3)
    assert predict(tiny_run, tmp_path / "a.tif", "--format", "csv", out=tmp_path / "out") == 2
    line = next(line for line in capsys.readouterr().err.splitlines() if "skipped" in line)
    assert line.startswith(f"pffnet: skipped: {tmp_path / 'a.tif'}: pixels of 1 x 0.5 micrometres are not square")
    assert predict(tiny_run, tmp_path / "a.tif", "--format", "csv", "--pixel-size", "0", out=tmp_path / "out") == 0


# --- What the model was made for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [[], ["--tile", "64"]])
def test_dark_objects_on_a_bright_ground(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tile: list[str]
) -> None:
    """Without --invert one warning for all; with it the objects of the inverse, measured in the file's values."""
    ends = []
    for name, turn in (("dark", 0), ("bright", 65535)):
        (tmp_path / name).mkdir()
        for seed in range(3):
            tifffile.imwrite(tmp_path / name / f"{seed}.tif", np.uint16(abs(turn - picture(seed).astype(np.int64))))
        arguments = ["predict", str(tmp_path / name), "--model", str(tiny_run), "--format", "label-tiff,csv", *tile]
        assert main([*arguments, "--out", str(tmp_path / f"{name}_out"), *(["--invert"] if turn else [])]) == 0
        said = capsys.readouterr()
        assert "background" not in said.err
        ends.append(said.out)
    assert ("(inverted)" in ends[0], "(inverted)" in ends[1]) == (False, True)
    for seed in range(3):
        labels = [tifffile.imread(tmp_path / f"{name}_out" / f"{seed}_labels.tif") for name in ("dark", "bright")]
        assert labels[0].max() > 3
        assert (labels[0] == labels[1]).all()
        with open(tmp_path / "bright_out" / f"{seed}.csv", newline="") as file:
            for row in csv.DictReader(file):
                inside = labels[1] == int(row["label"])
                assert float(row["intensity_mean"]) == pytest.approx((65535 - picture(seed))[inside].mean(), abs=0.1)

    assert main([*arguments, "--out", str(tmp_path / "again")]) == 0
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if "background" in line)
    assert warning.startswith(f"pffnet: warning: 3 of 3 images, the first {tmp_path / 'bright' / '0.tif'}: bright")
    assert "add --invert" in warning


@pytest.mark.parametrize("tile", [[], ["--tile", "64"]])
def test_a_normalisation_that_leaves_nothing_to_see(
    tiny_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tile: list[str]
) -> None:
    arguments = ["predict", str(images / "*.tif"), "--model", str(tiny_run), "--format", "label-tiff", *tile]
    assert main([*arguments, "--normalisation", "percentile:0,100,1e12", "--out", str(tmp_path / "out")]) == 0
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if "grey value" in line)
    assert warning.startswith(
        f"pffnet: warning: 2 of 2 images, the first {images / 'a.tif'}: the normalisation's range"
    )


def test_images_of_another_kind_and_size_are_named(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning a file, and the results nevertheless; a file without room for an object is skipped."""
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    dark = (picture(1) // 16).astype(np.uint8)
    for name, pixels in (("dark", dark), ("inverted", 255 - dark), ("small", dark[:20, :20])):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    arguments = ["predict", str(folder), "--model", str(tiny_run), "--diameter", "25", "--format", "label-tiff"]
    assert main([*arguments, "--out", str(out)]) == 1
    # Random weights also find as many nothings as they may.
    skipped, warning = (line for line in sorted(capsys.readouterr().err.splitlines()) if "may be missing" not in line)
    assert f"skipped: {folder / 'small.png'}: no object of diameter 25 fits into 20 x 20 pixels" in skipped
    assert f"warning: {folder / 'inverted.png'}: bright background" in warning
    assert "add --invert" in warning
    assert tree(out) == ["dark_labels.tif", "inverted_labels.tif"]
    assert tifffile.imread(out / "dark_labels.tif").shape == (64, 96)
