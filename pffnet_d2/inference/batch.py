"""Predicts many image files and writes their results, in one process or several. ``pffnet predict`` runs this."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path, PurePosixPath

from pffnet_d2.errors import InputError
from pffnet_d2.inference.job import Job
from pffnet_d2.inference.sources import Source, label_of
from pffnet_d2.inference.summary import Outcome, Summary
from pffnet_d2.inference.tables import ImageTable, check_table, write_tables
from pffnet_d2.inference.worker import Worker
from pffnet_d2.parallel import ranks
from pffnet_d2.parallel.dask_tasks import ClusterOptions


def predict_files(job: Job) -> Summary:
    """Predict all files of a job and write the results. Files that fail are named on stderr and skipped.

    The processes share the files in batches. The batches do not depend on the number of processes, so the results do
    not depend on it either.

    Raises:
        InputError: the config, the weights, the device or the output folder cannot be used; with ``job.stop``, a file
            fails.
    """
    for collection in job.options.exporters.collections:
        collection.check_images([source.path for source in job.sources])
    _check_devices(job)
    if job.table is not None:
        check_table(job.table, job.well, job.out)
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=job.out):
            pass
    except OSError as error:
        raise InputError(f"{job.out}: cannot be written to ({error.strerror}); choose another --out") from error
    summary = _predict_all(job)
    done = [job.sources[outcome.index] for outcome in summary.outcomes if not outcome.error]
    _write_collections(job, done)
    if job.table is not None:
        write_tables(job.table, [_table_of(job, source) for source in done], well=job.well)
    return summary


def _check_devices(job: Job) -> None:
    """Raises InputError if this machine has too few cores or devices for the processes, or lacks the device."""
    device = job.options.device
    if job.cluster and job.cluster.workers is None:
        return  # the device is that of other machines
    if job.cluster and job.cluster.workers:
        job = replace(job, processes=job.cluster.workers)
    if job.processes < 1:
        raise InputError(f"{job.processes} processes: must be at least 1")
    if job.options.onnx_file is not None:
        if job.processes > 1:
            raise InputError(
                f"{job.processes} processes: a model in ONNX is predicted in one, which uses all cores; leave it out"
            )
        return
    import torch

    from pffnet_d2.inference.model_config import check_device
    from pffnet_d2.parallel.launch import check_processes

    check_processes(job.processes)
    cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
    if job.processes > 1 and cuda:
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device not in (None, "cuda"):
            raise InputError(f"--device {device} is one device for {job.processes} processes; use cuda or cpu")
        if job.processes > here:
            raise InputError(f"{job.processes} processes: this machine has {here} CUDA devices; use at most as many")
    elif device is not None:
        check_device(device)


def _write_collections(job: Job, done: Sequence[Source]) -> None:
    """Writes the files that cover all predicted images. Writes nothing if no image was predicted."""
    endings = {exporter.name: exporter.ending for exporter in job.options.exporters.files}
    for collection in job.options.exporters.collections if done else ():
        ending = endings[collection.made_of]
        collection.write(
            job.out / collection.file_name, {source.path: job.out / (source.name + ending) for source in done}
        )


def _table_of(job: Job, source: Source) -> ImageTable:
    return ImageTable(
        label_of(source.path, source.name, source.options(job.options)),
        PurePosixPath(Path(source.name).parent / source.path.name),
        job.out / f"{source.name}.csv",
    )


# --- Processes -------------------------------------------------------------------------------------------------------


def _predict_all(job: Job) -> Summary:
    """Predicts in this process, in several processes or on a Dask cluster."""
    if job.cluster:
        return _predict_on_cluster(job, job.cluster)
    if job.processes == 1:
        return Worker(job).run()
    import torch

    from pffnet_d2.parallel.launch import launch_over_gloo

    with tempfile.TemporaryDirectory() as folder:
        # The processes exchange only their outcomes, and may finish hours apart.
        result = f"{folder}/summary.pt"
        launch_over_gloo(_share, job.processes, args=(job, result), timeout=timedelta(days=7))
        outcomes, seconds, stages = torch.load(result, weights_only=True)
    return Summary([Outcome(**outcome) for outcome in outcomes], seconds, stages)


def _predict_on_cluster(job: Job, cluster: ClusterOptions) -> Summary:
    job = replace(job, out=Path(os.path.abspath(job.out)))  # workers may run in other folders
    if job.options.tile is None:
        from pffnet_d2.inference.cluster import predict_on_cluster

        return predict_on_cluster(job, cluster)
    from pffnet_d2.inference.cluster_tiles import predict_tiles_on_cluster

    return predict_tiles_on_cluster(job, cluster)


def _share(job: Job, result: str) -> None:
    """Runs in each of several processes. The first one writes the summary of all of them to a file."""
    import torch

    if job.options.device != "cpu" and torch.cuda.is_available():
        job = replace(job, options=replace(job.options, device=f"cuda:{ranks.rank()}"))
    summary = Worker(job).run()
    if ranks.rank() == 0:
        torch.save(([vars(outcome) for outcome in summary.outcomes], summary.seconds, summary.stages), result)
