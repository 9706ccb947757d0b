"""Starts Dask workers as jobs of SLURM, PBS or LSF, and predicts on them.

    python examples/slurm/dask_cluster.py --system slurm --jobs 20 -- 'plates/**/*.tif' --out results --device cpu

What follows ``--`` goes to ``pffnet predict``. With ``--script`` it only prints the script of a job. Needs
``pip install dask-jobqueue`` beside ``pffnet_d2[cluster]``. Run it where jobs may be submitted from, in a session that
stays open (tmux, or a job of its own); folders must be the same on all machines.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

# How the systems ask for a GPU.
GPU = {
    "slurm": {"job_extra_directives": ["--gpus=1"]},
    "pbs": {"resource_spec": "select=1:ncpus=4:ngpus=1:mem=16gb"},
    "lsf": {"job_extra_directives": ["-gpu num=1"]},
}


def cluster(system: str, *, gpu: bool, queue: str | None) -> Any:
    """A cluster whose jobs have one worker with one thread each."""
    import dask_jobqueue

    kinds = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
    # cores=1 gives a worker one thread: a model predicts one batch at a time. job_cpu is what the job asks for.
    given: dict[str, Any] = {"cores": 1, "processes": 1, "memory": "16GB", "walltime": "04:00:00", "queue": queue}
    given |= {"job_script_prologue": ["export OMP_NUM_THREADS=4"], "scheduler_options": {"dashboard_address": ":0"}}
    if system == "slurm":
        given["job_cpu"] = 4
    if system == "lsf":
        given |= {"ncpus": 4, "mem": 16_000_000_000, "walltime": "04:00", "use_stdin": True}
    return getattr(dask_jobqueue, kinds[system])(**given, **(GPU[system] if gpu else {}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=sorted(GPU), default="slurm")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--queue", help="or partition")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each job")
    parser.add_argument("--script", action="store_true", help="print the script of a job and end")
    parser.add_argument("predict", nargs="*", help="arguments of pffnet predict, after --")
    args = parser.parse_args()
    with cluster(args.system, gpu=args.gpu, queue=args.queue) as jobs:
        if args.script:
            print(jobs.job_script())
            return 0
        jobs.scale(jobs=args.jobs)
        command = [sys.executable, "-m", "pffnet_d2.cli", "predict", "--scheduler", jobs.scheduler_address]
        return subprocess.run([*command, *args.predict]).returncode


if __name__ == "__main__":
    sys.exit(main())
