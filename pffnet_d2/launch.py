"""Every way to start other processes, and how an error of one of them reaches the user.

Training, evaluation and prediction share it, which is why it is below all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import spawn
from torch.multiprocessing.spawn import ProcessRaisedException

from pffnet_d2.errors import InputError, original

TIMEOUT = timedelta(minutes=30)  # that of Detectron2's launch
PER_CORE = 4  # processes; more than one serve only to try things out


def launch_on_gpus(
    work: Callable[..., Any],
    gpus: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: Sequence[Any] = (),
) -> None:
    """Call ``work(*args)`` in one process per GPU, with Detectron2's ``launch``. The processes communicate over NCCL.

    Args:
        work, num_machines, machine_rank, dist_url, args: as in :func:`launch_over_gloo`.
        gpus: number of GPUs of this machine.

    Raises:
        InputError, OSError, MemoryError, NonFiniteLoss: raised by the first process that failed; the others are ended.
        ProcessRaisedException: any other error of a process, with its traceback as text.
    """
    from detectron2.engine import launch

    with _errors_of_processes():
        launch(work, gpus, num_machines, machine_rank, dist_url, tuple(args))


def launch_over_gloo(
    work: Callable[..., Any],
    processes: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: Sequence[Any] = (),
    timeout: timedelta = TIMEOUT,
) -> None:
    """Call ``work(*args)`` in processes of this machine, which share its threads, and wait for them.

    Call this function on every machine. Detectron2's ``launch`` supports only CUDA devices and NCCL.

    Args:
        work: a function that other processes can import. It communicates through ``detectron2.utils.comm``.
        processes: number of processes of this machine.
        num_machines, machine_rank: the number of machines, and the number of this machine, counted from 0.
        dist_url: the address at which the processes connect, ``tcp://HOST:PORT`` of machine 0; "auto" on one machine.
        timeout: timeout of the communication between them.

    Raises:
        InputError: too many processes for this machine, or they cannot connect.
        InputError, OSError, MemoryError, NonFiniteLoss: raised by the first process that failed; the others are ended.
        ProcessRaisedException: any other error of a process, with its traceback as text.
    """
    check_processes(processes)
    with tempfile.TemporaryDirectory() as folder, _errors_of_processes():
        url = f"file://{folder}/rendezvous" if dist_url == "auto" else dist_url
        spawn(_rank, (work, tuple(args), processes, num_machines, machine_rank, url, timeout), nprocs=processes)


def check_processes(processes: int) -> None:
    """Check the number of processes on this machine.

    Raises:
        InputError: more than ``PER_CORE`` processes would share a core of this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes > PER_CORE * cores:
        raise InputError(
            f"{processes} processes: this machine has {cores} CPU core{'' if cores == 1 else 's'}; "
            f"use at most {PER_CORE * cores}"
        )


def run_command(arguments: Sequence[str]) -> int:
    """Run ``pffnet`` with these arguments in a separate process, which leaves no loggers, seeds or memory behind.

    Returns:
        The exit code; negative if a signal ended the process.
    """
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # as in train_net.py
    return subprocess.run([sys.executable, "-m", "pffnet_d2.cli", *arguments], env=environment).returncode


@contextmanager
def _errors_of_processes() -> Iterator[None]:
    """In this context, errors of other processes that are shown in one line are raised as they were raised there."""
    try:
        yield
    except ProcessRaisedException as error:
        meant = original(error)
        if meant is error:
            raise
        raise meant from None


def _rank(
    local_rank: int,
    work: Callable[..., Any],
    args: tuple[Any, ...],
    processes: int,
    num_machines: int,
    machine_rank: int,
    url: str,
    timeout: timedelta,
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    rank = machine_rank * processes + local_rank
    try:
        distributed.init_process_group("gloo", url, timeout, num_machines * processes, rank)
    except distributed.DistError as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"--dist-url {url}: the processes cannot connect ({reason}); choose another port") from error
    try:
        _group_by_machine(processes)
        work(*args)
    finally:
        distributed.destroy_process_group()


def _group_by_machine(processes: int) -> None:
    """Tell Detectron2's ``comm`` which processes share a machine, as Detectron2's own launch does."""
    if hasattr(comm, "create_local_process_group"):  # Detectron2's main branch
        comm.create_local_process_group(processes)
    else:  # Detectron2 0.6 has only the variable
        comm._LOCAL_PROCESS_GROUP, _ = distributed.new_subgroups(processes)
