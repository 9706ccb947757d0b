"""Every way to start other processes, and how an error of one of them reaches the user.

Training, evaluation and prediction share it, which is why it is below all of them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from detectron2.utils import comm
from torch import distributed
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import spawn
from torch.multiprocessing.spawn import ProcessRaisedException

from pffnet_d2.errors import InputError, original
from pffnet_d2.parallel.dask_tasks import ClusterOptions, connected, run_tasks

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
        launch(_tied, gpus, num_machines, machine_rank, dist_url, (work, *args))


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


def _tied(work: Callable[..., Any], *args: Any) -> None:
    """Call ``work(*args)`` in a process that ends with the one that started it."""
    _end_with_parent()
    work(*args)


@dataclass(frozen=True)
class Launched:
    """The place of this process among those that torchrun, or a script of SLURM, started.

    Both describe it in the environment: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    restarts: int  # how often torchrun has started all processes again

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Launched | None:
        """None unless RANK and WORLD_SIZE are set.

        Raises:
            InputError: a variable is missing or is not a number in range; torchrun could not start the processes of
                several machines again.
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return None
        missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise InputError(
                f"RANK and WORLD_SIZE are set but {' and '.join(missing)} not; start with torchrun, or unset RANK"
            )
        rank, size, local = (_whole(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        here = _whole(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else 1
        if not (0 <= rank < size and 0 <= local < here):
            raise InputError(
                f"RANK {rank} of WORLD_SIZE {size}, LOCAL_RANK {local} of LOCAL_WORLD_SIZE {here}: out of range; start "
                "with torchrun"
            )
        if size > here and _whole(environment, "TORCHELASTIC_MAX_RESTARTS", "0") and _shares_store(environment):
            raise InputError(
                "torchrun --max-restarts on several machines: processes that are started again would find the "
                "addresses of those that ended; give --rdzv-backend c10d and set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
            )
        return cls(rank, size, local, here, _whole(environment, "TORCHELASTIC_RESTART_COUNT", "0"))


def _shares_store(environment: Mapping[str, str]) -> bool:
    """Whether the store in which processes publish their addresses outlives them, because it is torchrun's own. A
    restart then reads what was written before it (https://github.com/pytorch/pytorch/issues/135712)."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _whole(environment: Mapping[str, str], name: str, default: str = "") -> int:
    try:
        return int(environment.get(name, default))
    except ValueError:
        raise InputError(
            f"{name} {environment[name]!r} in the environment: not a whole number; start with torchrun"
        ) from None


def join_launched(work: Callable[..., Any], launched: Launched, *, gpus: bool, args: Sequence[Any] = ()) -> None:
    """Call ``work(*args)`` in this process, one of those that torchrun started. It communicates through ``comm``.

    Args:
        work: communicates through ``detectron2.utils.comm``.
        launched: from the environment, which also holds the address at which the processes meet.
        gpus: whether each process has a GPU, and NCCL connects them; otherwise gloo does.

    Raises:
        InputError: the processes cannot connect; this machine has fewer GPUs than processes.
        ...: what ``work`` raises.
    """
    if gpus:
        here = torch.cuda.device_count()
        if launched.local_world_size > here:
            raise InputError(
                f"torchrun started {launched.local_world_size} processes on this machine, which has {here} CUDA "
                "devices; lower --nproc-per-node, or give --cpu-ranks"
            )
        torch.cuda.set_device(launched.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // launched.local_world_size))
    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        if launched.world_size == launched.local_world_size:  # machines may count restarts differently
            store = distributed.PrefixStore(f"start {launched.restarts}", store)  # see _shares_store
        backend = "nccl" if gpus else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the processes of torchrun cannot connect ({reason}); check MASTER_ADDR and MASTER_PORT"
        ) from error
    try:
        _group_by_machine(launched.local_world_size)
        work(*args)
    finally:
        distributed.destroy_process_group()


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


def run_command(
    arguments: Sequence[str], *, directory: str | None = None, variables: Mapping[str, str] | None = None
) -> int:
    """Run ``pffnet`` with these arguments in a separate process, which leaves no loggers, seeds or memory behind. On
    Linux it ends with this one, even if this one is killed.

    Args:
        arguments: of the command line.
        directory: working directory; None keeps that of this process.
        variables: added to the environment.

    Returns:
        The exit code; negative if a signal ended the process.
    """
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **(variables or {})}  # as in train_net.py
    command = [sys.executable, "-m", "pffnet_d2.cli", *arguments]
    end = _end_with_parent if os.name == "posix" else None  # elsewhere subprocess refuses it
    return subprocess.run(command, env=environment, cwd=directory, preexec_fn=end).returncode


class _Place(NamedTuple):
    """Where workers run commands, so that these find the same files as here."""

    directory: str
    variables: Mapping[str, str]


def run_commands(
    commands: Sequence[Sequence[str]], cluster: ClusterOptions | None, variables: Mapping[str, str]
) -> Iterator[tuple[int, int]]:
    """Run ``pffnet`` with each of these arguments, in separate processes: one after the other until one fails, or one
    per worker of a Dask cluster at a time. There, one that fails runs a second time, and does not stop the others.

    Args:
        commands: arguments of the command line. Workers run them in the working directory of this process.
        cluster: None runs them here.
        variables: added to the environment of each.

    Yields:
        The number of a command that ended, from 0, and its exit code.

    Raises:
        InputError: there is no cluster, or it is lost.
    """
    if cluster is None:
        for number, arguments in enumerate(commands):
            code = run_command(arguments, variables=variables)
            yield number, code
            if code:
                return
        return
    with connected(cluster) as client:
        place = _Place(os.getcwd(), variables)
        for done in run_tasks(client, _run_on_worker, place, list(enumerate(commands)), "command", bool):
            number, arguments = done.task
            if done.error:
                print(f"pffnet {arguments[0]}: {done.error}", file=sys.stderr)
            yield number, 1 if done.error else int(done.result or 0)


def _run_on_worker(place: _Place, task: tuple[int, Sequence[str]]) -> int:
    return run_command(task[1], directory=place.directory, variables=place.variables)


def _end_with_parent() -> None:
    """Asks Linux to kill this process when its parent ends: two trainings must not write one folder.

    ``torch.multiprocessing`` asks for SIGINT, which processes ignore that a script started in the background.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, man 2 prctl


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
    _end_with_parent()
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
