"""Predicts large images as tasks of a Dask cluster, one image after the other.

Tasks, each of which only reads and writes files below OUT: begin (choices made once, by one worker); batches of tiles;
then, for formats that many processes can write (``Exporter.in_parallel``), the decisions at seams (one worker,
``seams.decide``), blocks of the label map, its reduced levels, and parts of the table; at last, on one worker, the
other formats, and everything moves to its place. This process holds no pixels. Results are those of one process.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pffnet_d2.errors import InputError
from pffnet_d2.inference.cluster import Shared, first_result, shared_by_tasks, worker_for
from pffnet_d2.inference.job import Job, outcome_of_tiles, summarise, take
from pffnet_d2.inference.large import LargePrediction, Run
from pffnet_d2.inference.large_image import opened
from pffnet_d2.inference.parallel_results import ParallelResults, Work
from pffnet_d2.inference.sources import Source
from pffnet_d2.inference.summary import Outcome, Summary
from pffnet_d2.inference.tile_folder import TileFolder
from pffnet_d2.parallel.dask_tasks import ClusterOptions, SchedulerLost, connected, run_tasks


@dataclass(frozen=True)
class Slide:
    """One image, as tasks get it."""

    shared: Shared
    source: Source  # with an absolute path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # tells runs of the same image apart


@dataclass
class _Progress:
    """One bar for all steps of an image."""

    bar: Any
    failures: list[str] = field(default_factory=list)

    def of(self, tasks: Iterable[Any], unit: str, total: int) -> Iterator[Any]:
        """The results of tasks. Errors are kept."""
        self.bar.reset(total=total)
        self.bar.unit = unit
        for done in tasks:
            if done.error:
                self.failures.append(done.error)
                tqdm.write(f"pffnet: {unit} failed twice: {done.error}", file=sys.stderr)
            else:
                yield done.result
            self.bar.update()


def predict_tiles_on_cluster(job: Job, cluster: ClusterOptions) -> Summary:
    """Predict the files of a job in tiles. Tiles that an earlier run kept are not predicted again.

    Args:
        job: with an absolute ``out``.

    Raises:
        InputError: there is no cluster, or it is lost; the model cannot be used; with ``job.stop``, a file fails.
    """
    outcomes: list[Outcome] = []
    with connected(cluster) as client:
        shared = shared_by_tasks(job, cluster)
        first_result(client, check_model, shared)
        start = time.perf_counter()
        # disable=None: only where stderr is a terminal
        with tqdm(disable=None, dynamic_ncols=True) as bar:
            for index, source in enumerate(job.sources):
                slide = Slide(shared, replace(source, path=Path(os.path.abspath(source.path))))
                bar.set_description(source.name, refresh=False)
                try:
                    done = _predict(client, slide, _Progress(bar))
                    take(job, outcomes, outcome_of_tiles(index, source.path, done))
                except SchedulerLost:
                    raise
                except InputError as error:
                    take(job, outcomes, Outcome(index, str(error)))
        seconds = time.perf_counter() - start
    return summarise(job, outcomes, seconds, {"tiles": seconds})


def _predict(client: Any, slide: Slide, progress: _Progress) -> LargePrediction:
    """Predicts one image."""
    name = slide.source.path
    with ExitStack() as held:
        held.enter_context(TileFolder(slide.shared.out, slide.source.name).alone())
        tiles, step = first_result(client, begin, slide)
        batches = [range(i, min(i + step, tiles)) for i in range(0, tiles, step)]
        found = list(progress.of(run_tasks(client, predict_batch, slide, batches, "tiles"), "tile", len(batches)))
        _check(progress, name, len(batches))
        for works in _stages(client, slide):
            list(progress.of(run_tasks(client, write_work, slide, works, "results"), "block", len(works)))
            _check(progress, name, len(works))
        result: LargePrediction = first_result(client, finish, slide, sum(found))
        return result


def _check(progress: _Progress, path: Path, tasks: int) -> None:
    if progress.failures:
        raise InputError(
            f"{path}: {len(progress.failures)} of {tasks} tasks failed twice, the first because: "
            f"{progress.failures[0]}; run the same command again to try them again"
        )


def _stages(client: Any, slide: Slide) -> Iterator[Sequence[Work]]:
    """Works that may run at the same time; each list needs the one before to be done."""
    if any(exporter.in_parallel for exporter in slide.shared.options.exporters.files):
        yield from first_result(client, decide, slide)


# --- On the workers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """The image that this process has open, and what it was opened for."""

    slide: Slide
    run: Run
    held: ExitStack


_opened: _Opened | None = None


def _run_of(slide: Slide, *, decided: bool = True) -> Run:
    """The run of an image, opened by the first task of a process."""
    global _opened
    if _opened is None or _opened.slide != slide or not decided:
        if _opened is not None:
            _opened.held.close()
            _opened = None
        worker = worker_for(slide.shared)
        model, options = worker.predictor.tile_model(), worker.options
        formats = [exporter.name for exporter in options.exporters.files]
        options = replace(slide.source.options(options), formats=formats)
        held = ExitStack()
        image = held.enter_context(opened(slide.source.path, options, model.normalisation))
        run = Run(model, image, TileFolder(slide.shared.out, slide.source.name), options)
        run.keeps_seams = any(exporter.in_parallel for exporter in run.exporters)
        if decided:
            run.read_decisions()
            _opened = _Opened(slide, run, held)
            return run
        with held:
            run.begin()
        return _run_of(slide)
    return _opened.run


def check_model(shared: Shared, _: None) -> None:
    worker_for(shared).predictor.check_tiles(shared.options)


def begin(slide: Slide, _: None) -> tuple[int, int]:
    """Makes the choices that all tiles share. Returns the number of tiles, and of tiles in a batch."""
    run = _run_of(slide, decided=False)
    return len(run.boxes), run.options.batch


def predict_batch(slide: Slide, batch: range) -> int:
    """Predicts the tiles of a batch, unless they are kept. Returns how many."""
    run = _run_of(slide)
    return 0 if run.kept(batch) else run.predict_batch(batch)


def decide(slide: Slide, _: None) -> list[list[Work]]:
    return ParallelResults(_run_of(slide)).decide()


def write_work(slide: Slide, work: Work) -> None:
    ParallelResults(_run_of(slide)).write(work)


def finish(slide: Slide, predicted: int) -> LargePrediction:
    """Writes the other formats and moves all results to their places."""
    global _opened
    run = _run_of(slide)
    others = [exporter for exporter in run.exporters if not exporter.in_parallel]
    counted = run.write(others) if others else ParallelResults(run).counted()
    result = run.publish(predicted, counted)
    if _opened is not None:
        _opened.held.close()
        _opened = None
    return result
