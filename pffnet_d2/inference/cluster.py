"""Predicts many images as tasks of a Dask cluster. ``pffnet predict --workers`` and ``--scheduler`` run this.

A task is a batch of images, the same batches as in one process. Workers read, predict and write; this process only
hands out tasks, collects outcomes and adds to the manifest (``run_manifest``).
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pffnet_d2.errors import InputError
from pffnet_d2.inference.job import Job, summarise, take
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.predictor import Predictor
from pffnet_d2.inference.run_manifest import Entry, RunManifest, description, digest_of, entry, key_of, run_manifest
from pffnet_d2.inference.sources import Source
from pffnet_d2.inference.summary import Outcome, Summary
from pffnet_d2.inference.worker import Worker
from pffnet_d2.parallel.dask_tasks import ClusterOptions, connected, run_tasks


@dataclass(frozen=True)
class Shared:
    """What every task needs."""

    options: PredictOptions
    out: Path
    run: str = ""  # key of the run; "" while it is not known
    threads: int | None = None  # of PyTorch in a worker; None leaves them as the worker was started
    one_gpu_each: bool = False  # workers of this machine, numbered from 0
    model: Callable[..., Predictor] = Predictor  # as ``Job.model``


@dataclass(frozen=True)
class Batch:
    """Images that are predicted together, and what the manifest says about them."""

    indices: range
    sources: list[Source]
    known: list[Entry | None]


@dataclass(frozen=True)
class Ended:
    """The outcomes of a batch. ``entries``: of images that this run predicted."""

    outcomes: list[Outcome]
    entries: list[Entry]
    stages: dict[str, float]


def predict_on_cluster(job: Job, cluster: ClusterOptions) -> Summary:
    """Predict all files of a job. Images that the manifest names as done are skipped.

    Args:
        job: with an absolute ``out``.

    Raises:
        InputError: there is no cluster, or it is lost; the model cannot be used; with ``job.stop``, a file fails.
    """
    with run_manifest(job.out) as manifest, connected(cluster) as client:
        shared = shared_by_tasks(job, cluster)
        described = first_result(client, describe_run, shared)
        manifest.begin(described)
        return _predict(client, job, replace(shared, run=key_of(described)), manifest)


def shared_by_tasks(job: Job, cluster: ClusterOptions) -> Shared:
    threads = max(1, torch.get_num_threads() // cluster.workers) if cluster.workers else None
    return Shared(job.options, job.out, threads=threads, one_gpu_each=cluster.workers is not None, model=job.model)


def first_result(client: Any, work: Any, shared: Any, task: Any = None) -> Any:
    """The result of one task. Raises InputError with its error."""
    (done,) = run_tasks(client, work, shared, [task])
    if done.error:
        raise InputError(done.error)
    return done.result


def _predict(client: Any, job: Job, shared: Shared, manifest: RunManifest) -> Summary:
    start, pixels, kept = time.perf_counter(), 0, 0
    outcomes: list[Outcome] = []
    stages = dict.fromkeys(["reading", "predicting", "writing"], 0.0)
    # disable=None: only where stderr is a terminal
    with tqdm(total=len(job.sources), unit="image", disable=None, dynamic_ncols=True) as progress:
        for ended in _ended(client, job, shared, manifest):
            for done in ended.entries:
                manifest.add(done)
            kept += len(ended.outcomes) - len(ended.entries) - sum(bool(o.error) for o in ended.outcomes)
            stages = {key: stages[key] + ended.stages.get(key, 0.0) for key in stages}
            for outcome in ended.outcomes:
                take(job, outcomes, outcome)
                pixels += outcome.pixels
            progress.set_postfix_str(f"{pixels / 1e6 / (time.perf_counter() - start):.2f} Mpx/s", refresh=False)
            progress.update(len(ended.outcomes))
    if kept:
        print(f"{kept} of {len(job.sources)} images were done by an earlier run", file=sys.stderr)
    return summarise(job, outcomes, time.perf_counter() - start, stages)


def _ended(client: Any, job: Job, shared: Shared, manifest: RunManifest) -> Iterator[Ended]:
    """The outcomes of batches as they end. A batch whose images failed runs a second time, as any task that fails."""
    step = job.options.batch
    batches = []
    for first in range(0, len(job.sources), step):
        indices = range(first, min(first + step, len(job.sources)))
        sources = [replace(job.sources[i], path=Path(os.path.abspath(job.sources[i].path))) for i in indices]
        batches.append(Batch(indices, sources, [manifest.done.get(source.name) for source in sources]))
    for done in run_tasks(client, predict_batch, shared, batches, "images", _any_failed):
        if done.result is not None:
            yield done.result
        else:
            failed = [Outcome(i, f"{job.sources[i].path}: {done.error}") for i in done.task.indices]
            yield Ended(failed, [], {})


def _any_failed(ended: Ended) -> bool:
    return any(outcome.error for outcome in ended.outcomes)


# --- On the workers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loaded:
    """The model of this process, and what it was loaded for."""

    shared: Shared
    worker: Worker
    described: dict[str, Any]


_loaded: _Loaded | None = None


def worker_for(shared: Shared) -> Worker:
    """The model, loaded by the first task of a process.

    Raises:
        InputError: it cannot be loaded, or differs from that of the other workers.
    """
    loaded = _load(shared)
    if shared.run and shared.run != key_of(loaded.described):
        raise InputError(
            f"{socket.gethostname()}: this worker has another release or model than the first one; install the same on "
            "all machines"
        )
    return loaded.worker


def _load(shared: Shared) -> _Loaded:
    global _loaded
    shared = replace(shared, run="")
    if _loaded is None or _loaded.shared != shared:
        options = shared.options
        if shared.threads:
            torch.set_num_threads(shared.threads)
        if shared.one_gpu_each and options.device != "cpu" and torch.cuda.is_available():
            options = replace(options, device=f"cuda:{_number() % torch.cuda.device_count()}")
        worker = Worker(Job([], shared.out, options, model=shared.model))
        model = worker.predictor
        _loaded = _Loaded(shared, worker, description(model.identity, options, model.normalisation.info()))
    return _loaded


def _number() -> int:
    """The number of this worker among those of its machine."""
    from distributed import get_worker

    return int(get_worker().name)


def describe_run(shared: Shared, _: None) -> dict[str, Any]:
    """What the results depend on, as one worker sees it."""
    return _load(shared).described


def predict_batch(shared: Shared, batch: Batch) -> Ended:
    """Predicts the images of a batch and writes their results, unless all are done."""
    worker = worker_for(shared)
    digests = [digest_of(source.path) for source in batch.sources]
    targets = [shared.out / source.name for source in batch.sources]
    images = list(zip(batch.indices, batch.known, digests, targets, strict=True))
    if all(known and known.is_current(shared.run, image, target) for _, known, image, target in images):
        return Ended([known.outcome_of(index) for index, known, _, _ in images if known], [], {})
    worker.job = replace(worker.job, sources=batch.sources)
    before = dict(worker.stages)
    local = worker.whole(range(len(batch.sources)))
    stages = {key: seconds - before[key] for key, seconds in worker.stages.items()}
    entries = []
    for source, outcome, image, target in zip(batch.sources, local, digests, targets, strict=True):
        if not outcome.error:
            files = [target.name + exporter.ending for exporter in shared.options.exporters.files]
            entries.append(entry(shared.run, source.name, image, target, outcome, files))
    outcomes = [replace(outcome, index=index) for index, outcome in zip(batch.indices, local, strict=True)]
    return Ended(outcomes, entries, stages)
