"""``pffnet evaluate --truth --prediction`` and ``pffnet report``, and bad input."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pffnet_d2.evaluation.scores import COLUMNS, METRICS
from tests.data.readers import layouts
from tests.data.writers import png, tiff
from tests.robustness.case import Case, by_name, nothing
from tests.robustness.publishers import COLOURED, LABELS, Files

LABEL = png(LABELS.astype(np.uint8))
# A PNG that says it has 100,000 x 100,000 pixels.
HEAD = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + LABEL[24:29]
HUGE = LABEL[:12] + HEAD + zlib.crc32(HEAD).to_bytes(4, "big") + LABEL[33:]
MASK = png((LABELS > 0).astype(np.uint8) * 255)
PAIRS = {f"{folder}/{name}.png": LABEL for folder in ("truth", "results") for name in "ab"}
EVALUATE = "evaluate --truth truth --prediction results --out scores"


def row(name: str, command: str, says: str, *changes: Files, drop: tuple[str, ...] = ()) -> Case:
    """A case of two folders with two label images each, and of these files beside them or in their stead."""

    def write(folder: Path) -> None:
        files = dict(PAIRS)
        for change in changes:
            files |= change
        layouts.write(folder, {path: content for path, content in files.items() if path not in drop})

    return Case(name, command, tuple(says.split(" | ")), write)


def tif_of_b(name: str, says: str, array: Any) -> Case:
    return row(name, EVALUATE, f"results/b.tif | {says}", {"results/b.tif": tiff(array)}, drop=("results/b.png",))


def of_b(name: str, says: str, content: bytes) -> Case:
    return row(name, EVALUATE, f"results/b.png | {says}", {"results/b.png": content})


def prepared(name: str, says: str, change: Callable[[dict[str, Any]], Any]) -> Case:
    """The truth is a prepared split with one thing changed."""
    runs = {"size": [8, 10], "counts": [80]}
    data: dict[str, Any] = {
        "info": {},
        "images": [{"id": i, "file_name": f"{name}.png", "height": 8, "width": 10} for i, name in enumerate("ab")],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": runs}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    changed = change(data)
    content = changed if isinstance(changed, bytes) else json.dumps(data).encode()
    return row(name, EVALUATE, says, {"truth/instances.json": content})


def annotation(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["annotations"][0].update(values)


def groups(name: str, says: str, text: str) -> Case:
    return row(name, f"{EVALUATE} --groups groups.csv", f"groups.csv | {says}", {"groups.csv": text.encode()})


FOLDERS = [
    row("no truth folder", "evaluate --truth gone --prediction results", "gone: no such folder"),
    row("no prediction folder", "evaluate --truth truth --prediction gone", "gone: no such folder"),
    row("truth is a file", "evaluate --truth truth/a.png --prediction results", "truth/a.png: no such folder"),
    row("no label images", "evaluate --truth none --prediction results", "none: contains no", {"none/a.txt": b""}),
    row(
        "label images one folder deeper",
        "evaluate --truth t --prediction results",
        "t: contains no",
        {"t/x/a.png": LABEL},
    ),
    row(
        "only overlays",
        "evaluate --truth truth --prediction o",
        "o: contains overlays | label-tiff",
        {"o/a_overlay.png": COLOURED},
    ),
    row("no prediction of an image", EVALUATE, "truth/b.png | no label image b or b_labels", drop=("results/b.png",)),
    row("no truth of a prediction", EVALUATE, "results/b.png | no label image b", drop=("truth/b.png",)),
    row(
        "prediction twice",
        EVALUATE,
        "results/b.png: | b_labels.tif may be the same",
        {"results/b_labels.tif": tiff(LABELS)},
    ),
    row(
        "prediction twice, neither of the name",
        EVALUATE,
        "results/b_labels.tif | b_mask.png may be b too",
        {"results/b_labels.tif": tiff(LABELS), "results/b_mask.png": LABEL},
        drop=("results/b.png",),
    ),
    row(
        "truth twice",
        EVALUATE,
        "results/b_labels.tif | b and b_mask of truth",
        {"results/b_labels.tif": tiff(LABELS), "truth/b_mask.png": LABEL},
        drop=("results/b.png",),
    ),
    row("two files of one stem", EVALUATE, "results/b.tif | b.png has the same name", {"results/b.tif": tiff(LABELS)}),
    row("unknown meaning of one id", f"{EVALUATE} --objects masks", "--objects masks | auto, ids, components"),
    row("groups that are not there", f"{EVALUATE} --groups gone.csv", "gone.csv | columns image and group"),
    groups("groups without an image", "no group for image b", "image,group\na,x\n"),
    groups("groups without the column", "neither a csv with the columns image and group", "image,organ\na,x\nb,y\n"),
    groups("an image of two groups", "image a is of group 'x' and of 'y'", "image,group\na,x\nb,y\na,y\n"),
    groups("groups with an endless cell", "neither a csv", "image,group\na," + "x" * 200_000 + "\n"),
    row("groups of a json of rubbish", f"{EVALUATE} --groups g.json", "g.json | neither", {"g.json": b"[" * 100_000}),
    row(
        "groups of a json of words", f"{EVALUATE} --groups g.json", "g.json | neither", {"g.json": b'{"images": ["a"]}'}
    ),
]

IMAGES = [
    of_b("mask of 0 and 255", "one id, 255, in 2 separate parts | --objects components", MASK),
    row("truth of 0 and 255", EVALUATE, "truth/b.png | one id, 255, in 2 separate parts", {"truth/b.png": MASK}),
    row(
        "truth of 0 and 1",
        EVALUATE,
        "truth/b.png | one id, 1, in 2",
        {"truth/b.png": png((LABELS > 0).astype(np.uint8))},
    ),
    row("truth of black and white", EVALUATE, "truth/b.png | one id, 255, in 2", {"truth/b.png": png(LABELS > 0)}),
    row(
        "predictions of 0 and 1",
        EVALUATE,
        "results/a.png | one id, 1, in 2",
        {f"results/{n}.png": png((LABELS > 0).astype(np.uint8)) for n in "ab"},
    ),
    row("truth in colours", EVALUATE, "truth/b.png | in colours | never converted to RGB", {"truth/b.png": COLOURED}),
    of_b("in colours", "in colours | is not a label image", COLOURED),
    of_b(
        "grey with alpha", "with transparency | is not a label image", png(np.dstack([LABELS, LABELS]).astype(np.uint8))
    ),
    of_b("another size", "(8, 10) and prediction (4, 10) differ", png(LABELS[:4].astype(np.uint8))),
    of_b("empty file", "cannot be read", b""),
    of_b("text called png", "cannot be read", b"a note"),
    of_b("cut short", "cannot be read", LABEL[:60]),
    of_b("only the head of a png", "cannot be read", LABEL[:20]),
    of_b("of 10^10 pixels", "more than 134,217,728 pixels", HUGE),
    of_b("only the head of a tiff", "cannot be read", b"II*\0\x08\0\0\0"),
    of_b("tiff without pages", "cannot be read", b"II*\0\0\0\0\0"),
    of_b("tiff that points beyond its end", "cannot be read", b"II*\0\xff\xff\xff\x7f"),
    tif_of_b("floats", "prediction is of float32", LABELS.astype(np.float32)),
    tif_of_b("probabilities", "prediction is of float64", LABELS / 2),
    tif_of_b("not a number", "prediction is of float32", np.full((8, 10), np.nan, np.float32)),
    tif_of_b("complex", "complex64 values are not supported", LABELS.astype(np.complex64)),
    tif_of_b("negative ids", "negative id -2", -LABELS),
    tif_of_b("a stack", "a stack of 5 planes", np.stack([LABELS] * 5)),
    tif_of_b("a line", "axes X of (12,)", np.arange(12, dtype=np.int32)),
    tif_of_b("ids of 64 bits, another size", "differ in shape", LABELS[:4].astype(np.uint64)),
]

PREPARED = [
    prepared("json of another kind", "truth/instances.json | is not the JSON of a prepared", lambda d: b"[]"),
    prepared("json cut short", "truth/instances.json | is not the JSON of a prepared", lambda d: b'{"images": ['),
    prepared("json of brackets", "truth/instances.json | is not the JSON of a prepared", lambda d: b"[" * 100_000),
    prepared("no annotations", "truth/instances.json | is not the JSON of a prepared", lambda d: d.pop("annotations")),
    prepared(
        "images without size", "truth/instances.json | is not the JSON of", lambda d: d["images"][0].pop("height")
    ),
    prepared(
        "height in quotes",
        "truth/instances.json | is not the JSON of a prepared",
        lambda d: d["images"][0].update(height="8"),
    ),
    prepared(
        "height below 0",
        "truth/instances.json | is not the JSON of a prepared",
        lambda d: d["images"][0].update(height=-8),
    ),
    prepared(
        "runs of another size",
        "truth/instances.json | annotation 7 | 4 x 4",
        annotation(segmentation={"size": [4, 4], "counts": [16]}),
    ),
    prepared(
        "runs of rubbish",
        "truth/instances.json | annotation 7 | do not fill",
        annotation(segmentation={"size": [8, 10], "counts": "05"}),
    ),
    prepared("no runs", "truth/instances.json | annotation 7", annotation(segmentation=None)),
    prepared("a bad z_order", "truth/instances.json | annotation 7 | z_order", annotation(z_order="top")),
    prepared(
        "two images of one name",
        "truth/instances.json | two images are called a",
        lambda d: d["images"][1].update(file_name="a.jpg"),
    ),
    prepared("an annotation of no image", "truth/instances.json | annotation 7 is of image 5", annotation(image_id=5)),
]


def scores(images: str = "ab", **values: object) -> bytes:
    """A label_map.csv."""
    header = [*COLUMNS, *METRICS]
    lines = [
        ",".join(str({"image": image, "group": ""}.get(name, values.get(name, 0.5))) for name in header)
        for image in images
    ]
    return ("\n".join([",".join(header), *lines]) + "\n").encode()


def report(name: str, arguments: str, says: str, files: dict[str, bytes] | None = None) -> Case:
    """The scores of two methods in A and B, and these in their stead."""
    content = {"A/label_map.csv": scores(), "B/label_map.csv": scores(), **(files or {})}
    return Case(
        name, f"report {arguments} --out out", tuple(says.split(" | ")), lambda folder: layouts.write(folder, content)
    )


REPORT = [
    Case("report: no scores", "report A=gone --out out", ("gone", "label_map.csv"), nothing),
    report("report: no name", "A", "A: give each method as NAME=DIR"),
    report("report: an empty name", "=A", "=A: give each method as NAME=DIR"),
    report("report: no folder", "A=", "A=: give each method as NAME=DIR"),
    report("report: unknown method", "A=A B=B --proposed C", "--proposed C | A, B"),
    report("report: unknown metric", "A=A --metrics IoU", "--metrics IoU | AJI"),
    report("report: other images", "A=A B=B", "B: has no scores of image b", {"B/label_map.csv": scores("ac")}),
    report("report: fewer images", "A=A B=B", "B: has no scores of image b", {"B/label_map.csv": scores("a")}),
    report("report: half a fold", "A=A A=B", "A: image b is in two folds", {"B/label_map.csv": scores("bc")}),
    report("report: an empty table", "A=A", "A/label_map.csv | contains no scores", {"A/label_map.csv": b""}),
    report("report: only a head", "A=A", "A/label_map.csv | contains no scores", {"A/label_map.csv": scores("")}),
    report("report: a word", "A=A", "A/label_map.csv, line 2 | not a row", {"A/label_map.csv": scores(AJI="good")}),
    report("report: infinity", "A=A", "A/label_map.csv, line 2 | not a row", {"A/label_map.csv": scores(AJI="inf")}),
    report("report: a short row", "A=A", "A/label_map.csv, line 4 | not a row", {"A/label_map.csv": scores() + b"c\n"}),
    report(
        "report: an image twice", "A=A", "A/label_map.csv | image a is there twice", {"A/label_map.csv": scores("aa")}
    ),
    report("report: other columns", "A=A", "A/label_map.csv, line 2", {"A/label_map.csv": b"image,score\na,1\n"}),
    report(
        "report: not in Unicode", "A=A", "A/label_map.csv | cannot be read", {"A/label_map.csv": b"image,group\n\xff\n"}
    ),
    report(
        "report: an endless cell",
        "A=A",
        "A/label_map.csv | cannot be read",
        {"A/label_map.csv": b"image,group\n" + b"a" * 200_000},
    ),
    report("report: no prepared split", "A=A --otsu B", "B/instances.json | is not there"),
    report(
        "report: groups without an image", "A=A --groups g.csv", "g.csv | image a", {"g.csv": b"image,group\nb,x\n"}
    ),
]

CASES = [*FOLDERS, *IMAGES, *PREPARED, *REPORT]


@by_name(CASES)
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)
