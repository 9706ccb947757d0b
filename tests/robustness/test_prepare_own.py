"""``pffnet prepare own`` and bad input: label images, lists, options, COCO jsons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.readers import layouts
from tests.data.writers import tiff
from tests.robustness.case import Case, by_name
from tests.robustness.publishers import COLOURED, IMAGE, LABELS, Files, add, of, put, row, source, without

LABEL = layouts.png(LABELS.astype(np.uint8))


def own() -> Files:
    labels = LABEL
    return {"images/a.png": layouts.png(IMAGE), "labels/a.png": labels} | {
        "images/b.png": layouts.png(IMAGE),
        "labels/b.png": labels,
    }


def coco(change: Callable[[dict[str, Any]], Any]) -> Callable[[], Files]:
    """Two images with a polygon each, one thing changed."""

    def files() -> Files:
        images = [{"id": i, "file_name": f"{name}.png", "height": 8, "width": 10} for i, name in enumerate("ab")]
        annotations = [
            {"id": 10 + i, "image_id": i, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]} for i in (0, 1)
        ]
        data: dict[str, Any] = {"images": images, "annotations": annotations}
        changed = change(data)
        made = {f"images/{name}.png": layouts.png(IMAGE) for name in "ab"}
        return {**made, "truth.json": changed if isinstance(changed, bytes) else json.dumps(data).encode()}

    return files


def image(**values: Any) -> Callable[[dict[str, Any]], Any]:
    """Changes the second image."""
    return lambda data: data["images"][1].update(values)


def truth(**values: Any) -> Callable[[dict[str, Any]], Any]:
    """Changes the second annotation."""
    return lambda data: data["annotations"][1].update(values)


def polygon(*points: Any) -> Callable[[dict[str, Any]], Any]:
    return truth(segmentation=[list(points)])


def dead_link(folder: Path) -> None:
    source(own)(folder)
    (folder / "source" / "images" / "c.png").symlink_to("gone.png")


OWN = of("own", "--name mine --option fractions=all=1")

OWN_LABELS = [
    row(
        "own: name of 300 characters",
        OWN,
        "mine all: aaaa | 301 characters",
        own,
        *(add(f"{kind}/{'a' * 150}/{'b' * 150}.png", LABEL) for kind in ("images", "labels")),
    ),
    row("own: negative seed", f"{OWN} --option seed=-1", "option seed=-1 | whole number from 0", own),
    row("own: endless range", f"{OWN} --option minimum_range=inf", "minimum_range=inf", own),
    Case(
        "own: list with a dot",
        of("own", "--name mine --option lists=../lists"),
        ("train.txt", "no image '.'"),
        lambda f: (source(own)(f), layouts.write(f / "lists", {"train.txt": b"a\n.\n"})),
    ),
    row("own: no truth", OWN, "images/b.png | has no truth", own, without("labels/b.png")),
    row("own: truth without image", OWN, "labels/b.png | without an image", own, without("images/b.png")),
    row(
        "own: mask of all objects",
        OWN,
        "labels/b.png | one id in 2 | truth=components",
        own,
        put("labels/b.png", layouts.png((LABELS > 0).astype(np.uint8) * 255)),
    ),
    row(
        "own: half ids",
        OWN,
        "labels/b.tif | no whole numbers",
        own,
        without("labels/b.png"),
        add("labels/b.tif", tiff(LABELS + np.float32(0.5))),
    ),
    row(
        "own: ids that are not numbers",
        OWN,
        "labels/b.tif | no whole numbers",
        own,
        without("labels/b.png"),
        add("labels/b.tif", tiff(np.full((8, 10), np.nan, np.float32))),
    ),
    row("own: coloured truth", OWN, "labels/b.png | in colours", own, put("labels/b.png", COLOURED)),
    row(
        "own: another size",
        OWN,
        "b:  | 8 x 10 | 4 x 10",
        own,
        put("labels/b.png", layouts.png(LABELS[:4].astype(np.uint8))),
    ),
    row(
        "own: stack",
        OWN,
        "images/b.tif | stack of 5 planes",
        own,
        without("images/b.png"),
        add("images/b.tif", tiff(np.zeros((5, 8, 10), np.uint16))),
    ),
    row("own: text called png", OWN, "images/b.png | cannot be read", own, put("images/b.png", b"a note")),
    row("own: empty file", OWN, "images/b.png | cannot be read", own, put("images/b.png", b"")),
    Case("own: a name with a dead link", OWN, ("images/c.png", "link to gone.png"), dead_link),
    row("own: two of one name", OWN, "two images are called b", own, add("images/b.jpg", b"")),
    row("own: unknown truth", f"{OWN} --option truth=colours", "truth=colours | components", own),
    row(
        "own: fractions above 1",
        of("own", "--name mine --option fractions=a=0.9,b=0.9"),
        "fractions=a=0.9 | sum to 1",
        own,
    ),
    row(
        "own: fractions that are words",
        of("own", "--name mine --option fractions=half"),
        "fractions=half | train=0.8",
        own,
    ),
    row("own: no regular expression", f"{OWN} --option 'group=('", "group=( | regular expression", own),
    row(
        "own: report group that finds nothing",
        f"{OWN} --option report_group=plate",
        "report_group=plate | finds nothing in a",
        own,
    ),
    row("own: lists that are not there", f"{OWN} --option lists=lists", "source/lists | <split>.txt", own),
    Case(
        "own: list of another image",
        of("own", "--name mine --option lists=../lists"),
        ("lists/train.txt", "'c'"),
        lambda f: (source(own)(f), layouts.write(f / "lists", {"train.txt": b"a\nc\n"})),
    ),
    Case(
        "own: image in two lists",
        of("own", "--name mine --option lists=../lists"),
        ("val.txt", "a is in train.txt"),
        lambda f: (source(own)(f), layouts.write(f / "lists", {"train.txt": b"a\n", "val.txt": b"a\n"})),
    ),
    row("own: percentiles upside down", f"{OWN} --option low=60 --option high=40", "low=60 | low < high", own),
    row("own: no images", OWN, "source | holds no images", lambda: {"note.md": b""}),
]

JSON = "source/truth.json"
OWN_COCO = [
    row("coco: height in quotes", OWN, f"{JSON} | b.png | height '8'", coco(image(height="8"))),
    row("coco: height that is true", OWN, f"{JSON} | b.png | height True", coco(image(height=True))),
    row("coco: width of 0", OWN, f"{JSON} | b.png | width 0", coco(image(width=0))),
    row("coco: width that is not a number", OWN, f"{JSON} | b.png | width nan", coco(image(width=float("nan")))),
    row("coco: width without end", OWN, f"{JSON} | b.png | width inf", coco(image(width=float("inf")))),
    row("coco: half a pixel", OWN, f"{JSON} | b.png | height 8.5", coco(image(height=8.5))),
    row("coco: no file name", OWN, f"{JSON} | image 1 has the file_name None", coco(image(file_name=None))),
    row("coco: image that is not there", OWN, f"{JSON} | c.png is not there", coco(image(file_name="c.png"))),
    row("coco: another size", OWN, f"images/b.png | {JSON} | 8 x 10 | 9 x 10", coco(image(height=9))),
    row("coco: id that is a list", OWN, f"{JSON} | is not COCO JSON", coco(image(id=[1]))),
    row("coco: id twice", OWN, f"{JSON} | same id", coco(image(id=0))),
    row("coco: annotation of no image", OWN, f"{JSON} | annotation 11 is of image 5", coco(truth(image_id=5))),
    row("coco: crowd in quotes", OWN, f"{JSON} | annotation 11 | iscrowd '0'", coco(truth(iscrowd="0"))),
    row(
        "coco: polygon with NaN",
        OWN,
        f"{JSON} | annotation 11 of b.png | not a number",
        coco(polygon(1, 1, 5, float("nan"), 5, 4)),
    ),
    row(
        "coco: polygon without end",
        OWN,
        f"{JSON} | annotation 11 of b.png | far too large",
        coco(polygon(1, 1, 5, 1e300, 5, 4)),
    ),
    row(
        "coco: polygon of 10^400",
        OWN,
        f"{JSON} | annotation 11 of b.png | far too large",
        coco(polygon(1, 1, 5, 10**400, 5, 4)),
    ),
    row(
        "coco: polygon of another image",
        OWN,
        f"{JSON} | annotation 11 of b.png | column 900 | 8 x 10",
        coco(polygon(1, 1, 900, 1, 5, 4)),
    ),
    row(
        "coco: polygon of two points", OWN, f"{JSON} | annotation 11 of b.png | three points", coco(polygon(1, 1, 5, 4))
    ),
    row(
        "coco: polygon with an odd number",
        OWN,
        f"{JSON} | annotation 11 of b.png | x, y",
        coco(polygon(1, 1, 5, 1, 5, 4, 1)),
    ),
    row("coco: polygon of words", OWN, f"{JSON} | annotation 11 of b.png | x, y", coco(polygon("1", 1, 5, 1, 5, 4))),
    row(
        "coco: polygon of points", OWN, f"{JSON} | annotation 11 of b.png | x, y", coco(polygon([1, 1], [5, 1], [5, 4]))
    ),
    row(
        "coco: polygon not in a list",
        OWN,
        f"{JSON} | annotation 11 of b.png | x, y",
        coco(truth(segmentation=[1, 1, 5, 1, 5, 4])),
    ),
    row(
        "coco: no segmentation",
        OWN,
        f"{JSON} | annotation 11 of b.png | neither run",
        coco(lambda d: d["annotations"][1].pop("segmentation")),
    ),
    row(
        "coco: empty segmentation", OWN, f"{JSON} | annotation 11 of b.png | neither run", coco(truth(segmentation=[]))
    ),
    row(
        "coco: runs of another size",
        OWN,
        f"{JSON} | annotation 11 of b.png | 4 x 4 | 8 x 10",
        coco(truth(segmentation={"size": [4, 4], "counts": [16]})),
    ),
    row(
        "coco: runs with the sides changed",
        OWN,
        f"{JSON} | annotation 11 of b.png | 10 x 8",
        coco(truth(segmentation={"size": [10, 8], "counts": [80]})),
    ),
    row(
        "coco: runs that do not fill the image",
        OWN,
        f"{JSON} | annotation 11 of b.png | do not fill 8 x 10",
        coco(truth(segmentation={"size": [8, 10], "counts": [4, 5]})),
    ),
    row(
        "coco: negative runs",
        OWN,
        f"{JSON} | annotation 11 of b.png | do not fill",
        coco(truth(segmentation={"size": [8, 10], "counts": [90, -10]})),
    ),
    row(
        "coco: runs of rubbish",
        OWN,
        f"{JSON} | annotation 11 | do not fill 8 x 10",
        coco(truth(segmentation={"size": [8, 10], "counts": "rubbish"})),
    ),
    row(
        "coco: runs of another alphabet",
        OWN,
        f"{JSON} | annotation 11 | neither run",
        coco(truth(segmentation={"size": [8, 10], "counts": "é"})),
    ),
    row(
        "coco: no runs",
        OWN,
        f"{JSON} | annotation 11 | empty",
        coco(truth(segmentation={"size": [8, 10], "counts": ""})),
    ),
    row(
        "coco: no category",
        OWN,
        f"{JSON} | is not COCO JSON | category_id",
        coco(lambda d: d["annotations"][1].pop("category_id")),
    ),
    row(
        "coco: annotations that are null", OWN, f"{JSON} | is not COCO JSON", coco(lambda d: d.update(annotations=None))
    ),
    row("coco: images that are numbers", OWN, f"{JSON} | is not COCO JSON", coco(lambda d: d.update(images=[1, 2]))),
    row("coco: a list", OWN, f"{JSON} | is not COCO JSON", coco(lambda d: b"[]")),
    row("coco: cut short", OWN, f"{JSON} | is not COCO JSON", coco(lambda d: b'{"images": [')),
    row("coco: brackets without end", OWN, f"{JSON} | is not COCO JSON", coco(lambda d: b"[" * 100000)),
    row("coco: not in Unicode", OWN, f"{JSON} | is not COCO JSON", coco(lambda d: b'{"images": "\xff"}')),
    row("coco: another json named", f"{OWN} --option coco=a.json", "source | no a.json there", coco(lambda d: None)),
]

CASES = [*OWN_LABELS, *OWN_COCO]


@by_name(CASES)
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)
