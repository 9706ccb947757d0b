"""Detectron2's ``launch`` for processes on CPUs, which talk over gloo; its own knows CUDA devices and NCCL only."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import spawn

from pffnet_d2.errors import InputError


def launch_on_cpu(
    work: Callable[..., Any],
    ranks: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: Sequence[Any] = (),
) -> None:
    """Call ``work(*args)`` in ``ranks`` processes of this machine and wait for them; called on every machine.

    Args:
        work: importable from another process; meets the others through ``detectron2.utils.comm``.
        num_machines, machine_rank: how many machines there are, and which this is, from 0.
        dist_url: where the processes meet, ``tcp://HOST:PORT`` of machine 0; "auto" on one machine needs none.

    Raises:
        ProcessRaisedException: the first process that failed, its traceback as text; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        url = f"file://{folder}/rendezvous" if dist_url == "auto" else dist_url
        spawn(_rank, (work, tuple(args), ranks, num_machines, machine_rank, url), nprocs=ranks)


def _rank(
    local_rank: int,
    work: Callable[..., Any],
    args: tuple[Any, ...],
    ranks: int,
    num_machines: int,
    machine_rank: int,
    url: str,
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    rank = machine_rank * ranks + local_rank
    try:
        distributed.init_process_group("gloo", url, DEFAULT_TIMEOUT, num_machines * ranks, rank)
    except distributed.DistError as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"--dist-url {url}: the processes do not meet ({reason}); choose another port") from error
    try:
        # What Detectron2's launch sets up and its comm asks.
        comm._LOCAL_PROCESS_GROUP, _ = distributed.new_subgroups(ranks)
        work(*args)
    finally:
        distributed.destroy_process_group()
