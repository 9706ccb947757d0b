"""``pffnet predict``: options, keys of the config, models and files of thresholds that cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.robustness.case import Case, by_name

WORKS = "predict cell.png --model {run} --out results --format label-tiff"
# Made before a model is loaded, so that an unwritable one is named early.
MADE = ("results/*",)
LABEL_MAP = "MODEL.PFFNET.LABEL_MAP"


def cell(folder: Path) -> None:
    """One grey image, 64 x 96, of bright squares on a dark ground."""
    image = np.full((64, 96), 8, np.uint8)
    image[10:30, 10:30] = image[30:50, 60:80] = 180
    Image.fromarray(image).save(folder / "cell.png")


def with_file(name: str, content: str | bytes) -> Callable[[Path], None]:
    """The image, and a file."""

    def write(folder: Path) -> None:
        cell(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def with_folder(folder: Path) -> None:
    cell(folder)
    (folder / "model").mkdir()


def row(name: str, flags: str, *says: str, inputs: Callable[[Path], None] = cell) -> Case:
    """Flags after a command that works without them."""
    return Case(name, f"{WORKS} {flags}", says, inputs)


def key(name: str, value: str, *says: str) -> Case:
    """A value of one key."""
    return row(f"{name} {value}", f"--opts {name} '{value}'", "command line", name, *says)


def thresholds(name: str, content: str | bytes, *says: str) -> Case:
    """A file given with --thresholds."""
    return row(f"thresholds: {name}", "--thresholds t.yaml", "t.yaml", *says, inputs=with_file("t.yaml", content))


NUMBERS = [
    *(row(f"diameter {v}", f"--diameter={v}", f"diameter {float(v)}", "pixels") for v in ("-5", "0", "nan", "inf")),
    row("diameter a word", "--diameter large", "--diameter", "'large'"),
    row("diameter beyond the image", "--stop-on-error --diameter 2000", "cell.png", "no object of diameter 2000 fits"),
    row("diameter all but 0", "--stop-on-error --diameter 1e-320", "cell.png", "give a larger diameter"),
    *(
        row(f"threshold {v}", f"--threshold={v}", f"--threshold {float(v)}", "from 0 to below 1")
        for v in ("-0.1", "1", "1.5", "50", "nan", "inf")
    ),
    row("threshold a word", "--threshold high", "--threshold", "'high'"),
    row("threshold of two files", "--threshold 0.5 --thresholds t.yaml", "--threshold and --thresholds"),
    *(row(f"pixel size {v}", f"--pixel-size={v}", "--pixel-size", "micrometres") for v in ("-1", "nan", "inf")),
    row("pixel size with unit", "--pixel-size 0.5um", "--pixel-size", "'0.5um'"),
    *(row(f"batch {v}", f"--batch={v}", "batches", "at least 1") for v in ("0", "-3")),
    *(row(f"batch {v}", f"--batch={v}", "--batch", f"'{v}'") for v in ("1.5", "nan", "many")),
    *(row(f"processes {v}", f"--processes={v}", "processes", "at least 1") for v in ("0", "-1")),
    row("processes a word", "--processes all", "--processes", "'all'"),
    *(row(f"tile {v}", f"--tile={v}", f"tiles of {v} pixels", "multiple") for v in ("0", "-64", "100")),
    *(row(f"tile {v}", f"--tile={v}", "--tile", f"'{v}'") for v in ("nan", "large", "64.0")),
    *(row(f"overlap {v}", f"--tile 64 --overlap={v}", f"--overlap {v}", "pixels") for v in ("-8", "nan", "²", "8.5")),
    *(
        row(f"overlap {v}", f"--tile 64 --overlap={v}", f"overlap by {v}", "smaller than the tile")
        for v in ("0", "64", "1000")
    ),
    row("overlap without tiles", "--overlap 8", "--overlap", "--tile"),
    *(row(f"plane {v}", f"--plane={v}", f"--plane {v}", "Z=3") for v in ("-1", "x", "Z=", "Z=²", "²", "=1", "1.5")),
    *(row(f"channels {v}", f"--channels={v}", f"--channels {v}") for v in ("-1", "0,,1", "²", "0.5")),
    row("channel without a name", "--stop-on-error --channels r", "no channel 'r' (--channels r)", "numbers from 0"),
    *(row(f"scene {v}", f"--scene={v}", f"--scene {v}") for v in ("-1", "0.5", "²")),
    row("image that is not there", "--stop-on-error --scene 2", "cell.png", "no image 2 (--scene 2): it has 1"),
    *(row(f"level {v}", f"--level={v}", f"--level {float(v)}", "micrometres") for v in ("0", "-1", "nan", "inf")),
    row("level of a picture", "--stop-on-error --level 0.5", "cell.png", "is no pyramid; leave --level out"),
    row("level and pixel size", "--level 1 --pixel-size 1", "--level and --pixel-size", "give one"),
    row("projection of a plane", "--stop-on-error --project max", "cell.png", "nothing to project"),
    *(row(f"measure {v}", f"--measure={v}", f"--measure {v}", "choose from area") for v in ("size", "area,,", "Area")),
    row("measure twice", "--measure area,area", "--measure area,area", "area is there twice"),
    *(row(f"ring {v}", f"--ring={v}", f"--ring {v}", "pixels") for v in ("0", "-3")),
    row("ring in tiles", "--tile 64 --ring 3", "--ring 3 needs the whole image", "--tile"),
    row("background in tiles", "--tile 64 --measure background", "background needs the whole image"),
    row("table of another kind", "--table all.xlsx", "--table all.xlsx", ".csv or .parquet"),
    row("table in no folder", "--table none/all.csv", "none/all.csv", "no folder none"),
    row("wells without a table", "--well A01", "--well", "--table"),
    row("wells by no expression", "--table all.csv --well (", "--well (", "no regular expression"),
    row("no class name", "--class-name=", "--class-name", "give a name"),
    row("preview of tiles", "--preview --tile 64", "--preview", "--tile"),
    *(row(f"channels {v}", f"--channels={v}", f"--channels {v}", "three") for v in ("0,1", "0,1,2,3")),
    row("channel that is not there", "--stop-on-error --channels 7", "cell.png", "no channel 7"),
    *(
        row(f"normalisation {v}", f"--normalisation={v}", f"normalisation {v}", "percentile:LOW,HIGH,RANGE")
        for v in (
            "bright",
            "percentile:",
            "percentile:1",
            "percentile:99,1",
            "percentile:-1,99",
            "percentile:1,101",
            "percentile:nan,99",
            "percentile:1,99,inf",
            "percentile:1,99,nan",
            "percentile:1,99,-5",
            "percentile:1,99,5,5",
            "as-is:1",
        )
        if v != "percentile:"
    ),
    *(row(f"format {v or 'empty'}", f"--format '{v}'", "format") for v in ("png", "csv,,geojson", "CSV")),
    row("format that tiles do not have", "--tile 64 --format roi", "roi", "label-tiff"),
    *(row(f"device {v}", f"--device {v}", f"device {v}", "cpu") for v in ("meta", "gpu", "cuda:97", "0", "cpu:x")),
    row("device without a name", "--device ''", "device", "cpu"),
]

KEYS = [
    row("key without a value", "--opts MODEL.PFFNET.DIAMETER", "MODEL.PFFNET.DIAMETER", "pairs"),
    row("unknown key", "--opts MODEL.PFFNET.DIAMETRE 24.0", "DIAMETRE"),
    row("a folder of keys", "--opts MODEL.PFFNET 3", "MODEL.PFFNET"),
    row("a word for a number", "--opts TEST.DETECTIONS_PER_IMAGE many", "TEST.DETECTIONS_PER_IMAGE"),
    row("a number for a list", "--opts MODEL.PIXEL_MEAN 8.0", "MODEL.PIXEL_MEAN"),
    row("a half number", "--opts TEST.DETECTIONS_PER_IMAGE 1.5", "TEST.DETECTIONS_PER_IMAGE"),
    row("a part that is not there", f"--opts {LABEL_MAP}.A.B 1", "A"),
    key("MODEL.META_ARCHITECTURE", "PFFNnet", "PFFNet"),
    key("MODEL.META_ARCHITECTURE", "None", "PFFNet"),
    key("MODEL.BACKBONE.NAME", "resnet", "build_pffnet_resnet_fpn_backbone"),
    key("MODEL.PROPOSAL_GENERATOR.NAME", "rpn", "RPN"),
    key("MODEL.ROI_HEADS.NAME", "Heads", "PFFNetROIHeads"),
    key("MODEL.ROI_MASK_QUALITY_HEAD.NAME", "Head", "MaskQualityHead"),
    key("MODEL.PFFNET.FUSION.NAME", "Head", "RAFFHead"),
    key("MODEL.RESNETS.DEPTH", "17", "18, 34, 50, 101, 152"),
    key("MODEL.RESNETS.NORM", "gn", "GN"),
    key("MODEL.PIXEL_MEAN", "[8.0]", "list of 3"),
    key("MODEL.PIXEL_MEAN", '["a", 8.0, 8.0]', "list of 3"),
    key("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]", "above 0"),
    key("MODEL.PIXEL_STD", "[1.0, 1.0]", "list of 3"),
    key("MODEL.ANCHOR_GENERATOR.SIZES", "[]", "one or more"),
    key("MODEL.ANCHOR_GENERATOR.SIZES", "[[0], [16], [32], [64], [128]]", "above 0"),
    key("MODEL.RPN.PRE_NMS_TOPK_TEST", "0", "1 or more"),
    key("MODEL.RPN.POST_NMS_TOPK_TEST", "-5", "1 or more"),
    key("MODEL.RPN.NMS_THRESH", "-0.5", "from 0 to 1"),
    key("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0", "below 1"),
    key("MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.5", "from 0 to 1"),
    key("MODEL.ROI_HEADS.NUM_CLASSES", "0", "1 or more"),
    key("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "0", "1 or more"),
    key("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "Align", "ROIAlignV2"),
    key("MODEL.PFFNET.NORMALISATION", "gamma", "stretch"),
    key("MODEL.PFFNET.IMAGES", "x-ray", "fluorescence"),
    key("MODEL.PFFNET.DIAMETER", "-1.0", "0 or more"),
    key("MODEL.PFFNET.PIXEL_SIZE", "-1.0", "0 or more"),
    key(f"{LABEL_MAP}.SCORE_THRESH", "1.01", "below 1"),
    key(f"{LABEL_MAP}.MASK_THRESH", "-0.1", "from 0"),
    key(f"{LABEL_MAP}.MAX_COVERED", "1.1", "from 0 to 1"),
    key(f"{LABEL_MAP}.MIN_SIZE", "-1", "0 or more"),
    key("INPUT.FORMAT", "GRAY", "BGR"),
    key("INPUT.MIN_SIZE_TEST", "-4", "0 or more"),
    key("INPUT.MAX_SIZE_TEST", "0", "1 or more"),
    key("INPUT.SQUARE.TEST", "-512", "0 or more"),
    key("TEST.DETECTIONS_PER_IMAGE", "0", "1 or more"),
    key("TEST.DETECTIONS_PER_IMAGE", "-1", "1 or more"),
    key("TEST.DETECTIONS_PER_IMAGE", "None", "1 or more"),
    key("SEED", "-2", "from -1 to"),
    row("unknown feature", "--opts MODEL.FPN.IN_FEATURES '[\"res9\"]'", "MODEL", "res9"),
    row("unknown view", "--opts MODEL.PFFNET.TTA '[\"flip\"]'", "MODEL.PFFNET.TTA", "hflip"),
    row("a device of the config", "--opts MODEL.DEVICE meta", "device meta"),
    row("of another shape", "--opts MODEL.FPN.OUT_CHANNELS 64", "model_final.pth", "does not fit the model"),
    row("tiles that are resized", "--tile 64 --opts INPUT.MIN_SIZE_TEST 64", "INPUT.MIN_SIZE_TEST 64"),
    row("resized twice", "--diameter 30 --opts INPUT.SQUARE.TEST 64", "INPUT.SQUARE.TEST", "set it to 0"),
    row("of unknown diameter", "--diameter 30 --opts MODEL.PFFNET.DIAMETER 0.0", "MODEL.PFFNET.DIAMETER 24.0"),
]

THRESHOLDS = [
    row("thresholds: missing", "--thresholds t.yaml", "t.yaml", "cannot be read"),
    row("thresholds: a folder", "--thresholds model", "model", "cannot be read", inputs=with_folder),
    thresholds("empty", "", "SCORE_THRESH: 0.4"),
    thresholds("a list", "- 0.5", "SCORE_THRESH: 0.4"),
    thresholds("not yaml", "SCORE_THRESH: [", "is not a YAML file"),
    thresholds("not text", b"\xff\xfe\x00\x81", "is not a YAML file"),
    thresholds("nested without end", "[" * 500, "is not a YAML file"),
    thresholds("unknown key", "BETA: 0.5", "unknown key BETA", "SCORE_THRESH"),
    thresholds("a number as key", "1: 0.5", "unknown key 1", "SCORE_THRESH"),
    thresholds("above 1", "SCORE_THRESH: 1.5", "SCORE_THRESH 1.5", "below 1"),
    thresholds("negative", "MASK_THRESH: -0.5", "MASK_THRESH -0.5", "from 0"),
    thresholds("nan", "SCORE_THRESH: .nan", "SCORE_THRESH nan", "below 1"),
    thresholds("inf", "MIN_SIZE: .inf", "MIN_SIZE inf", "whole number"),
    thresholds("a half pixel", "MIN_SIZE: 2.5", "MIN_SIZE 2.5", "whole number"),
    thresholds("nothing", "SCORE_THRESH:", "SCORE_THRESH None", "below 1"),
    thresholds("true", "SCORE_THRESH: true", "SCORE_THRESH True", "below 1"),
    thresholds("a number for true", "FILL_HOLES: 1", "FILL_HOLES 1", "true or false"),
    thresholds("a word", "MAX_COVERED: most", "MAX_COVERED 'most'", "from 0 to 1"),
    thresholds("a list of values", "SCORE_THRESH: [0.5]", "SCORE_THRESH [0.5]", "below 1"),
    thresholds("another config", "MODEL: {WEIGHTS: a.pth}", "MODEL.PFFNET.LABEL_MAP"),
    thresholds("a list for the keys", "MODEL: {PFFNET: {LABEL_MAP: [1]}}", "MODEL.PFFNET.LABEL_MAP"),
]


def model(name: str, flags: str, *says: str, inputs: Callable[[Path], None] = cell) -> Case:
    """A command with another model than the one that works."""
    return Case(name, f"predict cell.png --out results {flags}", says, inputs, leaves=MADE)


CARD = json.dumps({"sha256": {"config.yaml": "0" * 64, "model_final.pth": "0" * 64}})

MODELS = [
    model("no such model", "--model nuclie", "nuclie", "nuclei"),
    model("a file as model", "--model cell.png", "cell.png", "no such model"),
    model("an empty folder as model", "--model model", "config.yaml", "missing", inputs=with_folder),
    model("no weights in the folder", "--model m", "model_final.pth", inputs=with_file("m/config.yaml", "VERSION: 2")),
    model("a damaged card", "--model m", "card.json", "damaged", inputs=with_file("m/card.json", "{")),
    model("a card of nothing", "--model m", "card.json", "not the card", inputs=with_file("m/card.json", "[]")),
    model("weights alone", "--weights cell.png", "cell.png", "without a config"),
    model("a config that is missing", "--config no.yaml --weights w.pth", "no.yaml", "no such config"),
    model("a folder as config", "--config model", "model", "no such config", inputs=with_folder),
    model("a model and a config", "--model {run} --config {run}/config.yaml", "give one of them"),
    model("no weights", "--config {run}/config.yaml", "--weights FILE"),
]


@by_name(NUMBERS)
def test_options(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@by_name(KEYS)
def test_keys(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@by_name(THRESHOLDS)
def test_thresholds(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@by_name(MODELS)
def test_models(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model_final.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("config.yaml", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("config.yaml", b"MODEL: {META_ARCHITECTURE: Unknown}", "MODEL.META_ARCHITECTURE 'Unknown'"),
        ("config.yaml", b"TEST: {DETECTIONS_PER_IMAGE: 0}", "DETECTIONS_PER_IMAGE 0"),
        ("config.yaml", b"MODEL: {PIXEL_STD: [.nan, 1.0, 1.0]}", "MODEL.PIXEL_STD [nan, 1.0, 1.0]"),
        ("card.json", CARD.encode(), "damaged or changed"),
    ],
)
def test_a_damaged_model(file: str, content: bytes, says: str, tiny_run: Path, check: Callable[[Case], None]) -> None:
    def write(folder: Path) -> None:
        cell(folder)
        shutil.copytree(tiny_run, folder / "m")
        (folder / "m" / file).write_bytes(content)

    check(model(f"{file} {says}", "--model m", "m/", says, inputs=write))


def test_the_command_works_without_them(check: Callable[[Case], None], tmp_path: Path) -> None:
    """Else every row would only show that it does not."""
    with pytest.raises(AssertionError):
        check(Case("works", WORKS, ("",), cell))
    assert (tmp_path / "results" / "cell_labels.tif").is_file()
