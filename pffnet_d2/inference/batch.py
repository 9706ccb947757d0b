"""Many image files to many result files: what ``pffnet predict`` does, in one process or shared among several."""

from __future__ import annotations

import glob
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from numpy.typing import NDArray
from torch.multiprocessing import spawn
from torch.multiprocessing.spawn import ProcessRaisedException
from tqdm import tqdm

from pffnet_d2.atomic_write import work_folder
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.microscopy import Micrograph, describe, read_micrograph
from pffnet_d2.imaging.read import Normalisation, normalisation_of
from pffnet_d2.inference import caps
from pffnet_d2.inference.export import Formats, Part, SourceImage, choose
from pffnet_d2.inference.predictor import Prediction, Predictor, check_device
from pffnet_d2.inference.tiling import Box

# What a folder is searched for.
ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".gif")
WILD = "*?["
# Seconds that results wait while another process writes those of the same name.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Source:
    """An image file and the name its results get, a path below the output folder without ending."""

    path: Path
    name: str


@dataclass(frozen=True)
class Job:
    """All that a process must know. With ``tile``, processes share the tiles of each image, not the images."""

    sources: list[Source]
    out: Path
    formats: list[str]
    config: str | None = None  # None: model
    weights: str | None = None
    device: str | None = None
    thresholds: dict[str, Any] | str | None = None
    opts: list[str] = field(default_factory=list)
    normalisation: Normalisation | None = None
    plane: dict[str, int] | int | None = None
    channels: list[int] | None = None
    pixel_size: float | None = None  # micrometres; 0: none, whatever files say; None: what each file says
    batch: int = 1  # images (or tiles) read and written together; those of one size are predicted together
    stop: bool = False  # end at the first file that fails
    processes: int = 1
    tile: int | None = None  # side in pixels of the tiles that images are predicted in; None: whole
    overlap: int | str = "auto"  # of tiles
    model: str | None = None  # None, and no config: the one that comes with the package
    diameter: float | None = None
    invert: bool = False  # the grey values that the network sees


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    index: int  # among the sources
    error: str = ""  # one line; empty where all its results were written
    capped: tuple[str, ...] = ()  # caps that were reached, so that objects may be missing
    doubt: str = ""  # one line where the model was not made for such images
    objects: int = 0
    pixels: int = 0
    normalisation: str = ""


@dataclass(frozen=True)
class Summary:
    """Outcomes in the order of the sources, and how long it took."""

    outcomes: list[Outcome]
    seconds: float  # wall clock, without loading the model
    stages: dict[str, float]  # seconds of all processes: reading, predicting, writing

    @property
    def failed(self) -> int:
        return sum(bool(outcome.error) for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0: every file was predicted; 1: some failed; 2: all did."""
        return 0 if not self.failed else 2 if self.failed == len(self.outcomes) else 1

    def lines(self) -> list[str]:
        """For people: how many of how many, objects, speed, normalisation."""
        done = [outcome for outcome in self.outcomes if not outcome.error]
        speed = len(done) / self.seconds, sum(outcome.pixels for outcome in done) / 1e6 / self.seconds
        total = sum(self.stages.values()) or 1.0
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.stages.items())
        said = [f"normalisation: {text} ({n} images)" for text, n in Counter(o.normalisation for o in done).items()]
        return [
            *said,
            f"{len(done)} of {len(self.outcomes)} images predicted, {sum(o.objects for o in done)} objects, "
            f"{self.seconds:.1f} s: {speed[0]:.2f} images/s, {speed[1]:.2f} Mpx/s ({shares})"
            + (f"; {self.failed} failed" if self.failed else ""),
        ]


def find_sources(arguments: Sequence[str], out: Path, formats: Sequence[str]) -> list[Source]:
    """The files that arguments stand for, each once, in their order; a folder's and a pattern's sorted.

    Args:
        arguments: files, folders (images directly in them) or patterns (``*``, ``?``, ``[]``, ``**`` for any depth).
            Results of a pattern's files keep the folders below its fixed part.
        out: where results go.
        formats: of those in ``export``.

    Raises:
        InputError: an argument stands for nothing, two files' results would have the same name, or a result would
            replace an image.
    """
    sources: dict[Path, Source] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
            base = path
            if not found:
                raise InputError(f"{argument}: no images in this folder ({' '.join(ENDINGS)}); name them, or a pattern")
        elif not os.path.lexists(path) and any(c in argument for c in WILD):
            found = [Path(p) for p in sorted(glob.glob(argument, recursive=True)) if not Path(p).is_dir()]
            base = Path(*_fixed(path.parts))
            if not found:
                raise InputError(f"{argument}: no file has such a name; check the pattern")
        elif os.path.lexists(path):
            found, base = [path], path.parent
        else:
            raise InputError(f"{argument}: no such file; check the path")
        for p in found:
            sources.setdefault(Path(os.path.abspath(p)), Source(p, str(_stem(p.relative_to(base)))))

    endings = [exporter.ending for exporter in choose(formats).files]
    owners: dict[str, Path] = {}
    for source in sources.values():
        if source.name in owners:
            raise InputError(
                f"{owners[source.name]} and {source.path}: both give results {out / source.name}; predict them apart"
            )
        owners[source.name] = source.path
        for ending in endings:
            result = Path(os.path.abspath(out / (source.name + ending)))
            if result in sources:
                raise InputError(f"{result}: {source.path} would replace this image; choose another --out")
    return list(sources.values())


def _fixed(parts: tuple[str, ...]) -> list[str]:
    """The folders before the first that a pattern leaves open."""
    fixed: list[str] = []
    for part in parts[:-1]:
        if any(c in part for c in WILD):
            break
        fixed.append(part)
    return fixed


def _stem(path: Path) -> Path:
    """``a.ome.tif`` and ``a.png`` without their endings."""
    stem = path.with_suffix("")
    return stem.with_suffix("") if stem.suffix.lower() == ".ome" else stem


def predict_files(job: Job) -> Summary:
    """Predict and write all files of a job; those that fail are named on stderr and left out.

    Files are shared among the processes in batches that do not depend on their number, so neither do the results.

    Raises:
        InputError: formats, config, weights, device or output folder cannot be used; with ``job.stop`` the first file
            that fails.
    """
    formats = choose(job.formats, streaming=job.tile is not None)
    for collection in formats.collections:
        collection.check_images([source.path for source in job.sources])
    if job.processes < 1 or job.batch < 1:
        raise InputError(f"{job.processes} processes, batches of {job.batch}: both must be at least 1")
    if job.channels is not None and len(job.channels) not in (1, 3):
        raise InputError(f"--channels {','.join(map(str, job.channels))}: give one (grey) or three (red, green, blue)")
    cuda = torch.cuda.is_available() if job.device is None else job.device.startswith("cuda")
    if job.processes > 1 and cuda:
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if job.device not in (None, "cuda"):
            raise InputError(f"--device {job.device} is one device for {job.processes} processes; use cuda or cpu")
        if job.processes > here:
            raise InputError(f"{job.processes} processes: this machine has {here} CUDA devices; use at most as many")
    elif job.device is not None:
        check_device(job.device)
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=job.out):
            pass
    except OSError as error:
        raise InputError(f"{job.out}: cannot be written to ({error.strerror}); choose another --out") from error

    summary = _predict_all(job)
    _write_collections(job, formats, [job.sources[o.index] for o in summary.outcomes if not o.error])
    return summary


def _write_collections(job: Job, formats: Formats, done: Sequence[Source]) -> None:
    """The files that hold all images that were predicted; none where there are no such images."""
    endings = {exporter.name: exporter.ending for exporter in formats.files}
    for collection in formats.collections if done else ():
        ending = endings[collection.made_of]
        files = {source.path: job.out / (source.name + ending) for source in done}
        collection.write(job.out / collection.file_name, files)


def _predict_all(job: Job) -> Summary:
    """In this process, or in several."""
    if job.processes == 1:
        return _work(job)
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_rank, (job, f"{folder}/rendezvous", f"{folder}/summary.pt"), nprocs=job.processes)
        except ProcessRaisedException as error:
            prefix = f"{InputError.__module__}.{InputError.__qualname__}: "
            said = [line for line in str(error).splitlines() if line.startswith(prefix)]
            if not said:
                raise
            raise InputError(said[-1].removeprefix(prefix)) from None
        outcomes, seconds, stages = torch.load(f"{folder}/summary.pt", weights_only=True)
    return Summary([Outcome(**outcome) for outcome in outcomes], seconds, stages)


def _rank(rank: int, job: Job, rendezvous: str, result: str) -> None:
    """One of several processes; the first leaves the summary of all in a file."""
    if job.device != "cpu" and torch.cuda.is_available():
        job = Job(**{**vars(job), "device": f"cuda:{rank}"})
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // job.processes))
    # Nothing but the outcomes passes between them, after perhaps hours apart.
    dist.init_process_group("gloo", f"file://{rendezvous}", timedelta(days=7), job.processes, rank)
    try:
        summary = _work(job)
        if rank == 0:
            torch.save(([vars(outcome) for outcome in summary.outcomes], summary.seconds, summary.stages), result)
    finally:
        dist.destroy_process_group()


def _work(job: Job) -> Summary:
    """This process's share; the main process gets the outcomes of all."""
    predictor = Predictor(
        job.config,
        job.weights,
        model=job.model,
        diameter=job.diameter,
        device=job.device,
        thresholds=job.thresholds,
        normalisation=job.normalisation,
        invert=job.invert,
        opts=job.opts,
    )
    if job.tile is not None:
        predictor.check_tiles(job.tile, job.overlap)
    rank, world = comm.get_rank(), comm.get_world_size()
    indices = range(len(job.sources))
    if job.tile is None:
        batches = [indices[i : i + job.batch] for i in range(0, len(indices), job.batch)][rank::world]
    else:
        batches = [indices[i : i + 1] for i in indices]
    outcomes: list[Outcome] = []
    stages = dict.fromkeys(["reading", "predicting", "writing"] if job.tile is None else ["tiles"], 0.0)
    start, pixels = time.perf_counter(), 0
    total = sum(len(batch) for batch in batches)
    # disable=None: only where stderr is a terminal
    with tqdm(total=total, unit="image", disable=None if rank == 0 else True, dynamic_ncols=True) as progress:
        for batch in batches:
            done = (
                _batch(job, predictor, list(batch), stages)
                if job.tile is None
                else _large(job, predictor, batch[0], stages)
            )
            for outcome in done:
                outcomes.append(outcome)
                pixels += outcome.pixels
                if outcome.error and job.stop:
                    good = sum(not o.error for o in outcomes)
                    raise InputError(f"{outcome.error} (stopped; {good} of {len(job.sources)} images predicted)")
                if outcome.error:
                    tqdm.write(f"pffnet: skipped: {outcome.error}", file=sys.stderr)
                if outcome.capped:
                    path = job.sources[outcome.index].path
                    tqdm.write(f"pffnet: warning: {path}: {caps.warning(outcome.capped)}", file=sys.stderr)
                progress.set_postfix_str(f"{pixels / 1e6 / (time.perf_counter() - start):.2f} Mpx/s", refresh=False)
                progress.update()
    gathered = comm.gather((outcomes, stages))
    everything = sorted((outcome for part, _ in gathered for outcome in part), key=lambda outcome: outcome.index)
    seconds = time.perf_counter() - start
    for line in _doubts(job, everything):
        print(f"pffnet: warning: {line}", file=sys.stderr)
    return Summary(everything, seconds, {key: sum(part[key] for _, part in gathered) for key in stages})


def _doubts(job: Job, outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each reason why the model was not made for some images: how many, the first of them, what to do."""
    lines = []
    for doubt, count in Counter(outcome.doubt for outcome in outcomes if outcome.doubt).items():
        first = next(job.sources[outcome.index].path for outcome in outcomes if outcome.doubt == doubt)
        some = f"{count} of {len(outcomes)} images, the first {first}" if count > 1 else str(first)
        lines.append(f"{some}: {doubt}")
    return lines


def _batch(job: Job, predictor: Predictor, indices: list[int], stages: dict[str, float]) -> list[Outcome]:
    """Read, predict and write some files; an outcome for each."""
    errors: dict[int, str] = {}
    read: dict[int, tuple[Micrograph, Any]] = {}
    started = time.perf_counter()
    for index in indices:
        path = job.sources[index].path
        try:
            micrograph = read_micrograph(path, plane=job.plane, channels=job.channels)
            read[index] = micrograph, _named(path, predictor, micrograph)
        except InputError as error:
            errors[index] = str(error)
    stages["reading"] += time.perf_counter() - started

    started = time.perf_counter()
    predictions: dict[int, Prediction] = {}
    try:
        predictions = dict(zip(read, predictor.predict([image for _, image in read.values()]), strict=True))
    except torch.OutOfMemoryError:
        for index in read:
            errors[index] = (
                f"{job.sources[index].path}: {predictor.cfg.MODEL.DEVICE} has too little memory for it; "
                "use a smaller --batch, --device cpu, or cut the image"
            )
        torch.cuda.empty_cache()
    stages["predicting"] += time.perf_counter() - started

    started = time.perf_counter()
    for index, prediction in predictions.items():
        micrograph, image = read[index]
        size = micrograph.pixel_size if job.pixel_size is None else (job.pixel_size, job.pixel_size)
        source = job.sources[index]
        pixels = micrograph.pixels
        exported = SourceImage(
            source.path.name,
            (pixels.shape[0], pixels.shape[1]),
            partial(_window, pixels),
            partial(_window, image),
            whole=True,
            pixel_size=size if size and size[0] else None,
            resolution=micrograph.resolution,
        )
        try:
            _write(job, source, exported, Part(prediction.label_map, prediction.scores))
        except InputError as error:
            errors[index] = str(error)
    stages["writing"] += time.perf_counter() - started

    outcomes = []
    for index in indices:
        if index in errors:
            outcomes.append(Outcome(index, errors[index]))
            continue
        pixels, prediction = read[index][0].pixels, predictions[index]
        normalisation = normalisation_of(pixels, predictor.normalisation)
        outcomes.append(
            Outcome(
                index,
                capped=prediction.capped,
                doubt=predictor.doubt(read[index][1]),
                objects=int(prediction.label_map.max(initial=0)),
                pixels=prediction.label_map.size,
                normalisation=f"{pixels.dtype}: {describe(normalisation)}",
            )
        )
    return outcomes


def _large(job: Job, predictor: Predictor, index: int, stages: dict[str, float]) -> list[Outcome]:
    """Predict and write one file in tiles, together with the other processes; the first of them has the outcome."""
    assert job.tile is not None
    source, main = job.sources[index], comm.is_main_process()
    started = time.perf_counter()
    try:
        done = predictor.predict_large(
            source.path,
            job.out,
            name=source.name,
            tile=job.tile,
            overlap=job.overlap,
            formats=[exporter.name for exporter in choose(job.formats).files],
            plane=job.plane,
            channels=job.channels,
            pixel_size=job.pixel_size,
            batch=job.batch,
        )
    except InputError as error:
        return [Outcome(index, str(error))] if main or job.stop else []
    finally:
        stages["tiles"] += time.perf_counter() - started
    if not main:
        return []
    kept = f", {done.tiles - done.predicted} of them from an earlier run" if done.predicted < done.tiles else ""
    tqdm.write(f"{source.path}: {done.tiles} tiles of {done.tile}, overlap {done.overlap}{kept}", file=sys.stderr)
    for line in done.warnings()[bool(done.doubt) :]:  # the first is the doubt, said once for all images
        tqdm.write(f"pffnet: warning: {source.path}: {line}", file=sys.stderr)
    normalisation = f"{done.dtype}: {describe(done.normalisation)}"
    height, width = done.shape
    return [Outcome(index, doubt=done.doubt, objects=done.objects, pixels=height * width, normalisation=normalisation)]


def _named(path: Path, predictor: Predictor, micrograph: Micrograph) -> Any:
    try:
        predictor.network_size(*micrograph.pixels.shape[:2])
        return predictor.normalise(micrograph.pixels)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _window(pixels: NDArray[Any], box: Box) -> NDArray[Any]:
    return pixels[box[0] : box[2], box[1] : box[3]]


def _write(job: Job, source: Source, image: SourceImage, part: Part) -> None:
    """All formats of one image, or none of them."""
    try:
        target = job.out / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(target, wait=_PATIENCE) as folder:
            results = []
            for exporter in choose(job.formats).files:
                results.append(folder / (target.name + exporter.ending))
                with exporter.begin(results[-1], image) as add:
                    add(part)
            for path in results:
                os.replace(path, target.parent / path.name)
    except OSError as error:
        raise InputError(
            f"{source.path}: results cannot be written to {job.out} ({error.strerror or error})"
        ) from error
    except InputError as error:  # names a file in a folder that is gone
        message = str(error).partition(": ")[2] if str(error).startswith(str(job.out)) else str(error)
        raise InputError(f"{source.path}: {message}") from error
