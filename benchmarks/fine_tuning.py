"""How many labelled images does fine-tuning need? A curve of AJI over their number, for each start.

    python benchmarks/fine_tuning.py --train datasets/kumar/train --val datasets/kumar/val [--counts 1 2 4 8]
        [--starts pretrained scratch] [--out output/fine_tuning] [KEY VALUE ...]

Takes the first N images of the prepared split TRAIN in an order that SEED shuffles, so that more images include fewer,
fine-tunes from each start with `pffnet finetune`, and scores all images of VAL with the last weights. All runs have as
many iterations. Draws OUT/curve.png and prints a table. Called again it goes on where it stopped. Minutes a run on a
CPU core.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import tifffile
from matplotlib.figure import Figure

from pffnet_d2.data.prepared import LabelledImage, PreparedSplit
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.scores import CSV, read_scores
from pffnet_d2.parallel.launch import run_command

SHOWN = ("AJI", "PQ", "F1")
SCORES = Path("inference") / "own_val" / CSV


def write_folder(images: Iterable[LabelledImage], folder: Path) -> None:
    """The images and their label images in the layout of a user's folder."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for image in images:
        shutil.copyfile(image.file, folder / "images" / image.file.name)
        tifffile.imwrite(folder / "labels" / f"{image.name}.tif", image.truth().astype("uint32"), compression="zlib")


class Point(NamedTuple):
    """A run: its number of training images, its start, and its mean scores over the images of VAL."""

    images: int
    start: str
    scores: dict[str, float]


def draw(points: Sequence[Point], path: Path) -> None:
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for start in dict.fromkeys(point.start for point in points):
        own = [point for point in points if point.start == start]
        axes.plot([point.images for point in own], [point.scores["AJI"] for point in own], "o-", label=f"from {start}")
    counts = sorted({point.images for point in points})
    axes.set(xscale="log", xlabel="labelled images", ylabel="AJI")
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


def curve(args: argparse.Namespace) -> list[Point]:
    """Train what is not trained, and score it.

    Raises:
        InputError: a split is not prepared, or has too few images; two starts have one name.
        SystemExit: a training failed.
    """
    train = [image for image in PreparedSplit(args.train).labelled_images() if image.truth().any()]
    if len(train) < max(args.counts):
        raise InputError(f"{args.train}: has {len(train)} images with objects; lower --counts {max(args.counts)}")
    if len({Path(start).name for start in args.starts}) < len(args.starts):
        raise InputError(f"--starts {' '.join(args.starts)}: two have one name, and so one folder of OUT; rename one")
    random.Random(args.seed).shuffle(train)
    opts = ["SEED", args.seed, "SOLVER.MAX_ITER", args.iterations, "SOLVER.STEPS", f"({args.iterations * 4 // 5},)"]
    points = []
    for count in args.counts:
        data = args.out / f"images{count}"
        if not data.is_dir():
            part = data.with_name(f"{data.name}.part")  # what an interruption leaves is not taken for the whole
            shutil.rmtree(part, ignore_errors=True)
            write_folder(train[:count], part / "train")
            write_folder(PreparedSplit(args.val).labelled_images(), part / "val")
            part.rename(data)
        for start in args.starts:
            run = args.out / f"{Path(start).name}{count}"
            if not (run / SCORES).is_file():
                command = ["finetune", data, "--from", start, "--out", run, *opts, *args.opts]
                if code := run_command([str(word) for word in command]):
                    raise SystemExit(f"{run}: exit code {code}")
            rows = read_scores(run / SCORES)
            means = {name: statistics.mean(float(row[name]) for row in rows) for name in SHOWN}
            points.append(Point(count, start, means))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="a prepared split")
    parser.add_argument("--val", type=Path, required=True, help="another")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of images")
    parser.add_argument("--starts", nargs="+", default=["pretrained", "scratch"], help="as for finetune --from")
    parser.add_argument("--iterations", type=int, default=400, help="of each run")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the images and of the trainings")
    parser.add_argument("--out", type=Path, default=Path("output/fine_tuning"))
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of all runs")
    args = parser.parse_args()
    try:
        points = curve(args)
    except InputError as error:
        raise SystemExit(f"fine_tuning: {error}") from error
    draw(points, args.out / "curve.png")
    print("| images | start | " + " | ".join(SHOWN) + " |\n|--:|---|" + "--:|" * len(SHOWN))
    for count, start, scores in points:
        print(f"| {count} | {start} | " + " | ".join(f"{scores[name]:.3f}" for name in SHOWN) + " |")


if __name__ == "__main__":
    main()
