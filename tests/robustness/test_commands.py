"""report, plot, package, env, check, demo, evaluate of label images, help, and bad input."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pffnet_d2.cli import main as cli
from pffnet_d2.cli.main import main
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.evaluation.scores import score, write_scores
from tests.robustness.case import Case, by_name

HEADER = "image,group,truths,predictions,AJI,Dice,F1,PQ\n"
DEEP = "[" * 100_000


def text(name: str, content: str = "") -> Callable[[Path], None]:
    """Writes a text file; folders are made."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    return write


def data(name: str, content: bytes) -> Callable[[Path], None]:
    """Writes a file of bytes; folders are made."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def all_of(*writers: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for each in writers:
            each(folder)

    return write


def empty_folder(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).mkdir(parents=True)


def scores(*names: str, images: tuple[str, ...] = ("i1", "i2"), group: str = "") -> Callable[[Path], None]:
    """Writes what evaluation writes, into folders of these names."""

    def write(folder: Path) -> None:
        labels = np.zeros((8, 8), np.int32)
        labels[1:4, 1:4] = 1
        for name in names:
            write_scores(folder / name, [score(image, labels, labels, group) for image in images], {})

    return write


def label_images(
    truth: Any = None, prediction: Any = None, names: tuple[str, str] = ("a", "a")
) -> Callable[[Path], None]:
    """Writes truth/a.png and prediction/a.png."""

    def write(folder: Path) -> None:
        for part, name, labels in zip(("truth", "prediction"), names, (truth, prediction), strict=True):
            (folder / part).mkdir()
            pixels = np.eye(8, dtype=np.uint8) if labels is None else labels
            Image.fromarray(pixels).save(folder / part / f"{name}.png")

    return write


def prepared(change: Callable[[Path], None] = lambda _: None) -> Callable[[Path], None]:
    """Writes the prepared data set root/phantoms and then changes its split train."""

    def write(folder: Path) -> None:
        prepare("phantoms", None, folder / "root", Selection(splits=["train"], count=1))
        change(folder / "root" / "phantoms" / "train")

    return write


def changed_json(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = json.loads((folder / "instances.json").read_text())
        change(content)
        (folder / "instances.json").write_text(json.dumps(content))

    return write


def huge_png(name: str) -> Callable[[Path], None]:
    """A PNG whose header promises 60000 x 60000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return data(name, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


AB = "report A=a B=b"
REPORT = [
    Case("report without folder", "report A", ("A: give each method as NAME=DIR",)),
    Case("report without name", "report =a", ("=a: give each method as NAME=DIR",)),
    Case("report of nothing", "report A=nowhere", ("nowhere", "label_map.csv")),
    Case("report of an empty folder", "report A=a", ("a/label_map.csv: cannot be read",), empty_folder("a")),
    Case("report of an empty table", "report A=a", ("label_map.csv: contains no scores",), text("a/label_map.csv")),
    Case("report of a header", "report A=a", ("label_map.csv: contains no scores",), text("a/label_map.csv", HEADER)),
    Case(
        "report of words",
        "report A=a",
        ("label_map.csv, line 2: not a row of scores",),
        text("a/label_map.csv", HEADER + "i1,,1,1,good,1,1,1\n"),
    ),
    Case(
        "report of half a row",
        "report A=a",
        ("label_map.csv, line 3: not a row of scores",),
        text("a/label_map.csv", HEADER + "i1,,1,1,1,1,1,1\ni2,,1\n"),
    ),
    Case(
        "report of a picture",
        "report A=a",
        ("a/label_map.csv: cannot be read",),
        data("a/label_map.csv", b"\x89PNG\xff\xfe\x00"),
    ),
    Case(
        "report with an image twice",
        "report A=a",
        ("label_map.csv: image i1 is there twice",),
        text("a/label_map.csv", HEADER + "i1,,1,1,1,1,1,1\n" * 2),
    ),
    Case(
        "report of other images",
        AB,
        ("B: has no scores of image i1",),
        all_of(scores("a"), scores("b", images=("i3",))),
        leaves=("output/*",),
    ),
    Case("report of other groups", AB, ("B: image i1 is of group 'x'",), all_of(scores("a"), scores("b", group="x"))),
    Case("report on unknown method", f"{AB} --proposed C", ("--proposed C", "A, B"), scores("a", "b")),
    Case("report on unknown metric", f"{AB} --metrics AJI mAP", ("--metrics mAP", "Dice"), scores("a", "b")),
    Case(
        "folds that share an image",
        "report A=a A=b",
        ("A: image i2 is in two folds",),
        all_of(scores("a"), scores("b", images=("i2", "i3"))),
    ),
    Case("groups of no file", f"{AB} --groups none.csv", ("none.csv: No such file",), scores("a", "b")),
    Case(
        "groups without columns",
        f"{AB} --groups groups.csv",
        ("groups.csv: neither a csv",),
        all_of(scores("a", "b"), text("groups.csv", "name;kind\n1;2\n")),
    ),
    Case(
        "groups without an image",
        f"{AB} --groups groups.csv",
        ("groups.csv: has no group for image i2",),
        all_of(scores("a", "b"), text("groups.csv", "image,group\ni1,x\n")),
    ),
    Case(
        "groups nested too deep",
        f"{AB} --groups groups.json",
        ("groups.json: neither a csv",),
        all_of(scores("a", "b"), text("groups.json", DEEP)),
    ),
    Case(
        "groups of a folder",
        f"{AB} --groups groups",
        ("groups: Is a directory",),
        all_of(scores("a", "b"), empty_folder("groups")),
    ),
    Case(
        "report into a file",
        f"{AB} --out taken",
        ("taken: a file is where a folder",),
        all_of(scores("a", "b"), text("taken")),
    ),
    Case(
        "report below a file",
        f"{AB} --out taken/x/y",
        ("taken: a file is where a folder",),
        all_of(scores("a", "b"), text("taken")),
    ),
    Case(
        "report over a folder",
        f"{AB} --out out",
        ("out/report.md", "it is a folder"),
        all_of(scores("a", "b"), empty_folder("out/report.md")),
        leaves=("out/report.csv",),
    ),
    Case("Otsu on nothing", f"{AB} --otsu nowhere", ("nowhere/instances.json: is not there",), scores("a", "b")),
    Case(
        "Otsu on json nested too deep",
        f"{AB} --otsu split",
        ("split/instances.json: is not the JSON of a prepared",),
        all_of(scores("a", "b"), text("split/instances.json", DEEP)),
    ),
]

SCORE = "evaluate --truth truth --prediction prediction"
EVALUATE_FOLDERS = [
    Case("score without prediction", "evaluate --truth truth", ("--prediction",)),
    Case("score no folder", SCORE, ("truth: no such folder",)),
    Case("score an empty folder", SCORE, ("truth: contains no label images",), empty_folder("truth")),
    Case(
        "score other names", SCORE, ("truth/a.png", "prediction has no label image a"), label_images(names=("a", "b"))
    ),
    Case(
        "score other sizes",
        SCORE,
        ("truth/a.png and prediction/a.png", "(9, 8)"),
        label_images(prediction=np.zeros((9, 8), np.uint8)),
    ),
    Case(
        "score colours",
        SCORE,
        ("prediction/a.png", "in colours", "is not a label image"),
        label_images(prediction=np.dstack([np.eye(8), np.zeros((8, 8, 2))]).astype(np.uint8)),
    ),
    Case(
        "score floats",
        SCORE,
        ("prediction/a.tif", "float"),
        all_of(
            label_images(),
            lambda f: (
                (f / "prediction/a.png").unlink(),
                Image.fromarray(np.zeros((8, 8), np.float32)).save(f / "prediction/a.tif"),
            ),
        ),
    ),
    Case(
        "score half a file",
        SCORE,
        ("prediction/a.png", "truncated"),
        all_of(label_images(), data("prediction/a.png", b"\x89PNG\r\n\x1a\n\0\0")),
    ),
    Case("score an empty file", SCORE, ("prediction/a.png",), all_of(label_images(), data("prediction/a.png", b""))),
    Case("score a picture bomb", SCORE, ("prediction/a.png",), all_of(label_images(), huge_png("prediction/a.png"))),
    Case(
        "score two of a name",
        SCORE,
        ("a.tif: a.png has the same name",),
        all_of(label_images(), data("truth/a.tif", b"II*\0")),
    ),
    Case(
        "score a folder as image",
        SCORE,
        ("prediction: contains no label images",),
        all_of(label_images(), lambda f: ((f / "prediction/a.png").unlink(), (f / "prediction/a.png").mkdir())),
    ),
    Case(
        "score into a file",
        f"{SCORE} --out taken",
        ("taken: a file is where a folder",),
        all_of(label_images(), text("taken")),
    ),
    Case(
        "score over a folder",
        f"{SCORE} --out out",
        ("out/label_map.csv", "it is a folder"),
        all_of(label_images(), empty_folder("out/label_map.csv")),
    ),
    Case("score without groups", f"{SCORE} --groups groups.csv", ("groups.csv: No such file",), label_images()),
    Case(
        "score damaged truth",
        SCORE,
        ("truth/instances.json: is not the JSON of a prepared",),
        all_of(label_images(), text("truth/instances.json", "{")),
    ),
    Case(
        "score truth nested too deep",
        SCORE,
        ("truth/instances.json: is not the JSON of a prepared",),
        all_of(label_images(), text("truth/instances.json", DEEP)),
    ),
]

LINE = '{"iteration": 1, "total_loss": 2.0}\n'
QUALITY = "plot quality --config {run}/config.yaml --weights {run}/model_final.pth"
PLOT = [
    Case("plot of what", "plot", ("KIND",)),
    Case("curve of nothing", "plot curves none.json --out c.png", ("none.json: No such file",)),
    Case("curve of a folder", "plot curves run --out c.png", ("run: Is a directory",), empty_folder("run")),
    Case(
        "curve of an empty file", "plot curves m.json --out c.png", ("m.json: contains no iterations",), text("m.json")
    ),
    Case(
        "curve of words",
        "plot curves m.json --out c.png",
        ("m.json: contains no iterations",),
        text("m.json", "words\n" * 9),
    ),
    Case("curve of bytes", "plot curves m.json --out c.png", ("m.json: ",), data("m.json", b"\xff\xfe\x00")),
    Case(
        "curve nested too deep",
        "plot curves m.json --out c.png",
        ("m.json: contains no iterations",),
        text("m.json", DEEP),
    ),
    Case(
        "curve of texts",
        "plot curves m.json --out c.png",
        ("m.json: ",),
        text("m.json", '{"iteration": 1, "total_loss": "low"}\n'),
    ),
    Case(
        "curve into a file",
        "plot curves m.json --out m.json/c.png",
        ("m.json/c.png", "File exists"),
        text("m.json", LINE),
    ),
    Case(
        "curve over a folder",
        "plot curves m.json --out out",
        ("out: cannot be written (it is a folder)",),
        all_of(text("m.json", LINE), empty_folder("out")),
    ),
    Case("scatter of nothing", "plot scatter none.csv --out s.png", ("none.csv: No such file",)),
    Case(
        "scatter of other columns",
        "plot scatter t.csv --out s.png",
        ("t.csv: is not the label_map.csv",),
        text("t.csv", "a,b\n1,2\n"),
    ),
    Case(
        "scatter of bytes",
        "plot scatter t.csv --out s.png",
        ("t.csv: is not the label_map.csv",),
        data("t.csv", b"\xff\xfe\0"),
    ),
    Case(
        "scatter of a header", "plot scatter t.csv --out s.png", ("t.csv: contains no images",), text("t.csv", HEADER)
    ),
    Case(
        "scatter over a folder",
        "plot scatter t.csv --out .",
        (".", "cannot be written"),
        text("t.csv", HEADER + "i,,1,1,1,1,1,1\n"),
    ),
    Case("quality without data set", "plot quality --config {run}/config.yaml --out q.png", ("--dataset",)),
    Case(
        "quality of an unknown data set",
        f"{QUALITY} --dataset no_such --device cpu --out q.png",
        ("no_such: no such data set",),
    ),
    Case(
        "quality of one that is not prepared",
        f"{QUALITY} --dataset bbbc039_val --device cpu --out q.png",
        ("bbbc039_val is not prepared", "pffnet prepare bbbc039"),
    ),
    Case(
        "quality without config",
        "plot quality --config no.yaml --dataset d --out q.png",
        ("no.yaml: no such config file",),
    ),
]

PACKAGE = "package --config {run}/config.yaml --weights {run}/model_final.pth --out mine"
PACKAGES = [
    Case(
        "package without weights",
        "package --config {run}/config.yaml --weights no.pth --out mine",
        ("no.pth: no such weights file",),
    ),
    Case(
        "package words",
        "package --config {run}/config.yaml --weights w.pth --out mine",
        ("w.pth: not read: truncated, or not a weights file",),
        text("w.pth", "words"),
    ),
    Case(
        "package an empty file",
        "package --config {run}/config.yaml --weights w.pth --out mine",
        ("w.pth: truncated, damaged or not a weights file",),
        text("w.pth"),
    ),
    Case(
        "package a folder",
        "package --config {run}/config.yaml --weights w --out mine",
        ("w: a folder, not a weights file",),
        empty_folder("w"),
    ),
    Case(
        "package other weights",
        "package --config {run}/config.yaml --weights w.pth --out mine",
        ("w.pth: does not fit the model",),
        lambda f: torch.save({"x": torch.zeros(2)}, f / "w.pth"),
    ),
    Case(
        "package without config",
        "package --config no.yaml --weights w.pth --out mine",
        ("no.yaml: no such config file",),
    ),
    Case("package about nothing", f"{PACKAGE} --about no.yaml", ("no.yaml: cannot be read",)),
    Case("package about a list", f"{PACKAGE} --about a.yaml", ("a.yaml: contains no keys",), text("a.yaml", "- 1\n")),
    Case(
        "package about a date",
        f"{PACKAGE} --about a.yaml",
        ("a.yaml: is not YAML of plain values",),
        text("a.yaml", "day: 2024-01-01\n"),
    ),
    Case("package about half a yaml", f"{PACKAGE} --about a.yaml", ("a.yaml: is not YAML",), text("a.yaml", "a: [1\n")),
    Case(
        "package about a yaml nested too deep",
        f"{PACKAGE} --about a.yaml",
        ("a.yaml: is not YAML",),
        text("a.yaml", DEEP),
    ),
    Case("package with unknown key", f"{PACKAGE} --opts MODEL.NONE 1", ("MODEL.NONE",)),
    Case("package with key alone", f"{PACKAGE} --opts SEED", ("SEED",)),
    Case(
        "package into a file",
        "package --config {run}/config.yaml --weights {run}/model_final.pth --out taken",
        ("taken", "File exists"),
        text("taken"),
    ),
    Case(
        "package below a file",
        "package --config {run}/config.yaml --weights {run}/model_final.pth --out taken/x",
        ("taken", "Not a directory"),
        text("taken"),
    ),
]

JSON = "root/phantoms/train/instances.json"
CHECK = [
    Case("check nothing", "check nowhere", ("nowhere: holds no prepared data set", "pffnet prepare")),
    Case("check an empty folder", "check root", ("root: holds no prepared data set",), empty_folder("root")),
    Case("check a file", "check root", ("root: holds no prepared data set",), text("root")),
    Case(
        "check with sheets in a file",
        "check root --sheets taken",
        ("taken: a file is where a folder",),
        all_of(prepared(), text("taken")),
    ),
    Case("check no number", "check root --detections many", ("--detections", "many")),
    Case(
        "check with sheets below a file",
        "check root --sheets taken/x/y",
        ("taken: a file is where a folder",),
        all_of(prepared(), text("taken")),
    ),
]

OTHERS = [
    Case("demo into a file", "demo --out taken", ("taken",), text("taken")),
    Case("unknown command", "predct", ("invalid choice", "predct")),
    Case("env with a flag", "env --no-such-flag", ("--no-such-flag",)),
]


@by_name([*REPORT, *EVALUATE_FOLDERS, *PLOT, *PACKAGES, *CHECK, *OTHERS])
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "half a json": (lambda f: (f / "instances.json").write_text("{"), "instances.json"),
    "json nested too deep": (lambda f: (f / "instances.json").write_text(DEEP), "instances.json"),
    "json that is a list": (lambda f: (f / "instances.json").write_text("[]"), "instances.json"),
    "missing image": (lambda f: next((f / "images").iterdir()).unlink(), "images"),
    "half an image": (lambda f: next((f / "images").iterdir()).write_bytes(b"\x89PNG\r\n"), "images"),
    "missing semantic map": (lambda f: shutil.rmtree(f / "semantic"), "semantic"),
    "strange file": (lambda f: (f / "images" / "x.txt").write_text("x"), "x.txt: is not in instances.json"),
    "two images of a name": (changed_json(lambda c: c["images"].append(dict(c["images"][0]))), "is there twice"),
    "mask outside": (
        changed_json(lambda c: c["annotations"][0].update(segmentation={"size": [1, 1], "counts": "0"})),
        "instances.json",
    ),
    "wrong area": (changed_json(lambda c: c["annotations"][0].update(area=0)), "has area 0"),
    "height of text": (changed_json(lambda c: c["images"][0].update(height="96")), "instances.json"),
    "no images": (changed_json(lambda c: c.update(images=[], annotations=[])), "has no images"),
    "annotation of no image": (changed_json(lambda c: c["annotations"][0].update(image_id=77)), "image 77"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_what_is_wrong(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faults of the data are its report, on stdout."""
    change, said = FAULTS[fault]
    monkeypatch.chdir(tmp_path)
    prepared(change)(tmp_path)
    capsys.readouterr()
    assert main(["check", "root", "--sheets", "sheets"]) == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    errors = [line for line in captured.out.splitlines() if line.startswith("error: ")]
    assert any(said in line for line in errors), captured.out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_names_its_command(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/somebody/run_it.py"])
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: pffnet {command} " in said
    for program in ("run_it.py", "cli.py", "train_net.py"):
        assert program not in said


@pytest.mark.parametrize("command", ["train", "evaluate", "kfold", "thresholds"])
def test_wrong_usage_names_its_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--num-gpus", "many"])
    assert end.value.code == 2
    assert f"pffnet {command}: error: argument --num-gpus" in capsys.readouterr().err


def test_train_net_says_the_same() -> None:
    script = Path(__file__).parents[2] / "train_net.py"
    done = subprocess.run(
        [sys.executable, str(script), "--config-file", "nowhere.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("pffnet: error: nowhere.yaml: no such config file; ")
