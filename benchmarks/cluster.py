"""What does a cluster cost? Memory of each process over time, tasks per second, overhead against plain processes.

    python benchmarks/cluster.py slide [--side 30000] [--tile 1024] [--workers 2] [--out output/cluster]
    python benchmarks/cluster.py slide --side 8192 --model nuclei --fields bbbc039/images
    python benchmarks/cluster.py images [--images 200] [--seconds 0.5] [--workers 2] [--repeat 3]
    python benchmarks/cluster.py tasks [--workers 2]

First form: a slide (OME-Zarr, a mosaic of one generated image on a background that covers a third of it) is predicted
in tiles with a threshold instead of a network, so that reading, stitching and writing (labels as OME-Zarr, Parquet) are
what is measured. Writes memory.png, the resident memory of this process (client and scheduler) and of each worker over
time, and prints its peaks and tiles per second. ``--model NAME`` predicts with a network instead, and ``--fields``
lays the images of a folder side by side, without background.

Second form: images that a model keeps busy for ``--seconds`` each, by ``--workers`` of Dask and by the plain processes
of ``predict --processes``, which take turns. Prints the ratio of their times without their start, and with it.

Third form: what a plan for many workers needs. Milliseconds of CPU of client and scheduler for each task, bytes of the
message of a task, milliseconds for the decisions of a tile (the only step that one worker takes alone) and bytes that a
tile takes on shared storage.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from large_image import Mosaic, piece, threshold
from numpy.typing import NDArray
from report import report

from pffnet_d2.imaging.normalisation import AUTO
from pffnet_d2.inference.batch import predict_files
from pffnet_d2.inference.job import Job
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.predictor import Predictor
from pffnet_d2.inference.sources import Source
from pffnet_d2.inference.summary import Summary
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.model_zoo.facts import ModelFacts
from pffnet_d2.parallel.dask_tasks import ClusterOptions, connected, run_tasks

PERIOD = 0.5  # seconds between two looks at memory


class StandIn(Predictor):
    """A threshold in the place of a network."""

    identity, precision = "threshold", "float32"
    facts = ModelFacts(LabelMapRule(), AUTO.name, images="", diameter=0.0, stride=32, caps_area=0, caps={})
    normalisation, scale, own_scale, matching, matched = AUTO, 1.0, False, False, ""

    def __init__(self, seconds: float, options: PredictOptions) -> None:
        self.seconds = seconds

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Any]:
        end = time.perf_counter() + self.seconds * len(images)
        found = threshold(list(images))
        time.sleep(max(0.0, end - time.perf_counter()))  # so that other work on the machine changes little
        return found


def _lay_pieces(array: Any) -> None:
    """One generated image again and again; the right third is noise."""
    side = array.shape[0]
    nuclei, noise = piece(), np.random.default_rng(0).integers(0, 4, (1024, 1024)).astype(np.uint8)
    mosaic = Mosaic(nuclei, side)
    for y in range(0, side, 1024):
        for x in range(0, side, 1024):
            y1, x1 = min(y + 1024, side), min(x + 1024, side)
            shown = x < side * 2 // 3
            array[y:y1, x:x1] = mosaic[y:y1, x:x1] if shown else noise[: y1 - y, : x1 - x]


def _lay(array: Any, files: list[Path]) -> None:
    """Images of one size in rows, the first again after the last."""
    height, width = tifffile.imread(files[0]).shape
    again = itertools.cycle(files)
    for y in range(0, array.shape[0], height):
        for x in range(0, array.shape[1], width):
            y1, x1 = min(y + height, array.shape[0]), min(x + width, array.shape[1])
            array[y:y1, x:x1] = tifffile.imread(next(again))[: y1 - y, : x1 - x]


def write_slide(path: Path, side: int, fields: Path | None) -> None:
    """An OME-Zarr without a pyramid, of the images of a folder or of a generated one."""
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    array = group.create_array("0", shape=(side, side), chunks=(1024, 1024), dtype="uint16" if fields else "uint8")
    if fields:
        _lay(array, sorted(fields.glob("*.tif")))
    else:
        _lay_pieces(array)
    scale = [{"type": "scale", "scale": [0.5, 0.5]}]
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    image: dict[str, Any] = {
        "version": "0.4",
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    group.attrs["multiscales"] = [image]


@dataclass
class Memory:
    """Resident memory in MB of this process and its descendants, over time."""

    start: float = field(default_factory=time.perf_counter)
    seen: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        import psutil

        own = psutil.Process()
        while not self.stop.wait(PERIOD):
            now = time.perf_counter() - self.start
            for process in [own, *own.children(recursive=True)]:
                try:
                    held = process.memory_info().rss / 1e6
                except psutil.Error:
                    continue
                if process is own or held > 150:  # the rest are helpers of multiprocessing
                    name = "client and scheduler" if process is own else f"worker {process.pid}"
                    self.seen.setdefault(name, []).append((now, held))

    def plot(self, path: Path, title: str) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
        numbers = {name: i for i, name in enumerate(sorted(self.seen), 0)}
        for name in sorted(self.seen):
            times, held = zip(*self.seen[name], strict=True)
            label = name if name.startswith("client") else f"worker {numbers[name]}"
            axes.plot(times, held, label=label)
        axes.set(xlabel="seconds", ylabel="resident memory, MB", title=title, ylim=(0, None))
        axes.legend(frameon=False)
        figure.savefig(path, dpi=150)


def slide(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"slide{args.side}.zarr"
    if not path.exists():
        write_slide(path, args.side, args.fields)
    model: Any = Predictor if args.model else partial(StandIn, 0.0)
    options = PredictOptions(
        model=args.model, tile=args.tile, overlap=64, tissue="auto", formats=("ome-zarr", "parquet"), pixel_size=0.5
    )
    cluster = ClusterOptions(workers=args.workers)
    memory = Memory()
    watcher = threading.Thread(target=memory.watch)
    watcher.start()
    try:
        done = predict_files(Job([Source(path, "slide")], args.out / "results", options, True, 1, cluster, model))
    finally:
        memory.stop.set()
        watcher.join()
    print("\n".join(done.lines()))
    tiles = (args.side / (args.tile - 64)) ** 2
    memory.plot(args.out / "memory.png", f"{args.side} x {args.side} pixels, {args.workers} workers")
    peaks = {name: max(held for _, held in values) for name, values in memory.seen.items()}
    case = f"{args.side}x{args.side}, about {tiles:.0f} tiles of {args.tile}, {args.workers} workers"
    report("cluster, slide", case, {"tiles per second": tiles / done.seconds}, peaks_mb=peaks, seconds=done.seconds)


def images(args: argparse.Namespace) -> None:
    """Turns of Dask's workers and of plain processes."""
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for i in range(args.images):
            sources.append(Source(Path(folder) / f"{i}.tif", str(i)))
            tifffile.imwrite(sources[-1].path, piece())
        model: Any = partial(StandIn, args.seconds)
        options = PredictOptions(formats=("label-tiff",), device="cpu")

        def timed(out: str, **where: Any) -> tuple[Summary, float]:
            start = time.perf_counter()
            done = predict_files(Job(sources, Path(folder) / out, options, model=model, **where))
            return done, time.perf_counter() - start

        ratios: dict[str, list[float]] = {"without start": [], "with start": []}
        for turn in range(args.repeat):
            plain, plain_all = timed(f"plain{turn}", processes=args.workers)
            _, dask_all = timed(f"start{turn}", cluster=ClusterOptions(workers=args.workers))
            with connected(ClusterOptions(workers=args.workers)) as client:
                there = ClusterOptions(scheduler=client.scheduler.address)
                timed(f"warm{turn}", cluster=there)  # each worker imports what it needs
                dask, _ = timed(f"dask{turn}", cluster=there)
            ratios["without start"].append(dask.seconds / plain.seconds)
            ratios["with start"].append(dask_all / plain_all)
        case = f"{args.images} images of {args.seconds} s, {args.workers} workers"
        medians = {name: statistics.median(values) for name, values in ratios.items()}
        report("cluster, time to plain processes", case, medians, turns=ratios)


def nothing(_: Any, task: int) -> int:
    return task


def tasks(args: argparse.Namespace) -> None:
    from distributed.protocol import dumps
    from distributed.protocol.serialize import Serialize

    from pffnet_d2.inference.cluster import Batch, Shared
    from pffnet_d2.inference.seams import decide, seam_of
    from pffnet_d2.inference.stitch import View
    from pffnet_d2.inference.tile_folder import TileFolder
    from pffnet_d2.inference.tiling import Tiles

    options = PredictOptions()
    shared = Shared(options, Path("/data/results"), run="0" * 64)
    batch = Batch(range(1), [Source(Path("/data/images/plate1/A01_s1.tif"), "plate1/A01_s1")], [None])
    message = sum(map(len, dumps({"task": Serialize((shared, batch))})))
    with connected(ClusterOptions(workers=args.workers)) as client:
        list(run_tasks(client, nothing, shared, range(20)))
        wall, cpu = time.perf_counter(), time.process_time()
        list(run_tasks(client, nothing, shared, range(500)))
        cpu, wall = ((now - then) * 2 for now, then in ((time.process_time(), cpu), (time.perf_counter(), wall)))
    tiles = Tiles((4832, 4832), args.tile, 64, 32)
    mosaic = Mosaic(piece(), 4832)
    with tempfile.TemporaryDirectory() as folder:
        kept = TileFolder(Path(folder), "a")
        kept.path.mkdir()
        for index, (y0, x0, y1, x1) in enumerate(tiles.boxes()):
            grey = mosaic[y0:y1, x0:x1]
            (found,) = threshold([np.repeat(grey[:, :, None], 3, axis=2)])
            kept.keep(index, found, seam_of(View(found.label_map, found.scores), tiles, index))
        stored = sum(path.stat().st_size for path in kept.path.iterdir())
        objects: list[Any] = []
        seconds = time.process_time()
        decide(tiles, lambda index: kept.kept_seam(index), objects.append)  # type: ignore[arg-type,return-value]
        seconds = time.process_time() - seconds
    n, count = len(tiles.boxes()), sum(group.count for group in objects)
    ratios = {
        "CPU of client and scheduler, ms a task": cpu,
        "decisions, ms of CPU a tile": seconds / n * 1000,
        "bytes of a task's message": message,
        "bytes a tile on storage": stored / n,
    }
    report("cluster, tasks", f"{n} tiles of {args.tile}, {count} objects", ratios, wall_ms_a_task=wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["slide", "images", "tasks"])
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", help="such as nuclei; default: a threshold")
    parser.add_argument("--fields", type=Path, help="a folder of 16-bit TIFFs of one size")
    parser.add_argument("--out", type=Path, default=Path("output/cluster"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    {"slide": slide, "images": images, "tasks": tasks}[args.form](args)


if __name__ == "__main__":
    main()
