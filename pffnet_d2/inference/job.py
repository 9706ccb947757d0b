"""What the processes that predict many images need to know, and what they keep about each image."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import describe
from pffnet_d2.inference import caps
from pffnet_d2.inference.large import LargePrediction
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.predictor import Predictor
from pffnet_d2.inference.sources import Source
from pffnet_d2.inference.summary import Outcome, Summary, doubts
from pffnet_d2.parallel.dask_tasks import ClusterOptions


@dataclass(frozen=True)
class Job:
    """What each process needs to know. With ``options.tile``, the processes share the tiles of each image."""

    sources: list[Source]
    out: Path
    options: PredictOptions
    stop: bool = False  # stop at the first file that fails
    processes: int = 1
    cluster: ClusterOptions | None = None  # predict as tasks of Dask instead
    model: Callable[..., Predictor] = Predictor  # loads the model, given ``options``; other processes must import it
    table: Path | None = None  # one table of all images, .csv or .parquet; ``options`` must write csv
    well: str | None = None  # a regular expression that finds the well in the name of an image, for the summary


def take(job: Job, outcomes: list[Outcome], outcome: Outcome) -> None:
    """Stores an outcome and prints its error or warning. Raises InputError if the job stops at errors."""
    outcomes.append(outcome)
    if outcome.error and job.stop:
        good = sum(not o.error for o in outcomes)
        raise InputError(f"{outcome.error} (stopped; {good} of {len(job.sources)} images predicted)")
    if outcome.error:
        tqdm.write(f"pffnet: skipped: {outcome.error}", file=sys.stderr)
    if outcome.capped:
        path = job.sources[outcome.index].path
        tqdm.write(f"pffnet: warning: {path}: {caps.warning(outcome.capped)}", file=sys.stderr)


def summarise(job: Job, outcomes: Sequence[Outcome], seconds: float, stages: dict[str, float]) -> Summary:
    """The summary of a job. Prints the reasons why results may be unreliable."""
    everything = sorted(outcomes, key=lambda outcome: outcome.index)
    for line in doubts(job.sources, everything):
        print(f"pffnet: warning: {line}", file=sys.stderr)
    return Summary(everything, seconds, stages)


def outcome_of_tiles(index: int, path: Path, done: LargePrediction) -> Outcome:
    """The outcome of an image that was predicted in tiles. Prints its tiles and warnings."""
    kept = done.tiles - done.predicted - done.skipped
    said = f", {kept} of them from an earlier run" if kept else ""
    if done.skipped:
        said += f", {done.skipped} ({done.skipped / done.tiles:.0%}) skipped as background"
    tqdm.write(f"{path}: {done.tiles} tiles of {done.tile}, overlap {done.overlap}{said}", file=sys.stderr)
    for line in done.warnings_of_tiles():  # the doubt is printed once for all images
        tqdm.write(f"pffnet: warning: {path}: {line}", file=sys.stderr)
    return Outcome(
        index,
        doubts=tuple(filter(None, (done.doubt,))),
        objects=done.objects,
        pixels=done.shape[0] * done.shape[1],
        normalisation=f"{done.dtype}: {describe(done.normalisation)}",
        matched=done.matched,
        precision=done.precision,
    )
