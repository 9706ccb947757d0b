"""Runs tasks on the workers of a Dask cluster: one started here, or one that exists.

Prediction and cross-validation share it. Only this module and the workers import Dask.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pffnet_d2.errors import InputError, one_line

# Tasks run at most this often: a second time on another worker, if there is one.
ATTEMPTS = 2
# Seconds between two questions to the scheduler about the number of workers.
_CENSUS = 5.0
# Seconds that a scheduler has to answer.
_ANSWER = 20.0

Task = TypeVar("Task")
Result = TypeVar("Result")


class SchedulerLost(InputError):
    """The scheduler ended while tasks ran."""


@dataclass(frozen=True)
class ClusterOptions:
    """Where tasks run.

    Attributes:
        workers: number of worker processes to start on this machine.
        scheduler: address of a scheduler that runs already, such as "tcp://10.0.0.1:8786", or a scheduler file.

    Raises:
        InputError: neither or both are given; there are fewer than 1 workers.
    """

    workers: int | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if (self.workers is None) == (self.scheduler is None):
            raise InputError("give either --workers or --scheduler")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"{self.workers} workers: must be at least 1")

    @classmethod
    def given(cls, workers: int | None, scheduler: str | None) -> ClusterOptions | None:
        """None, for this process, if neither is given."""
        return None if workers is None and scheduler is None else cls(workers, scheduler)


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A task that ended. ``error``: one line; empty if there is a result."""

    task: Task
    result: Result | None = None
    error: str = ""


@contextmanager
def connected(options: ClusterOptions) -> Iterator[Any]:
    """The ``distributed.Client`` of a cluster, inside the block. A cluster that was started here ends with the block.

    Prints the address of Dask's dashboard on stderr.

    Raises:
        InputError: Dask is not installed; no scheduler answers; its release of Dask differs too much from ours.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError(
            f"--workers and --scheduler need Dask ({error}); type: pip install 'pffnet_d2[cluster]'"
        ) from error
    with ExitStack() as held, warnings.catch_warnings():
        # Dask reports each lost connection with a traceback; what matters to the user is told in one line.
        for logger in map(logging.getLogger, ("distributed", "distributed.client")):
            held.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore")  # such as a port of the dashboard that is taken
        if options.workers is not None:
            # A task whose worker dies is ours to start again (ATTEMPTS), not the scheduler's. A worker whose disk is
            # full is idle after each failure and must not steal what another one is to try again.
            ours = {"distributed.scheduler.allowed-failures": 0, "distributed.scheduler.work-stealing": False}
            held.enter_context(dask.config.set(ours))
            cluster = LocalCluster(
                n_workers=options.workers,
                threads_per_worker=1,
                memory_limit=None,
                dashboard_address="127.0.0.1:8787",
                silence_logs=logging.CRITICAL,
            )
            held.callback(_quietly, cluster.close)
            address: Any = cluster
        else:
            address = options.scheduler
        client = _client(Client, address, options)
        held.callback(_quietly, lambda: client.close(timeout=2))
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
        yield client


def _client(kind: Any, address: Any, options: ClusterOptions) -> Any:
    given = (
        {"scheduler_file": address} if isinstance(address, str) and os.path.isfile(address) else {"address": address}
    )
    try:
        return kind(**given, timeout=_ANSWER, name="pffnet")
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"--scheduler {options.scheduler}: no Dask scheduler answers there ({reason}); start one with `dask "
            "scheduler` and give the address that it prints"
        ) from error


def _quietly(close: Callable[[], Any]) -> None:
    try:
        close()
    except Exception:  # what is closed may be dead already, and closing has no other result
        logging.getLogger(__name__).debug("closing", exc_info=True)


@dataclass
class _Running(Generic[Task]):
    task: Task
    number: int
    attempt: int = 1
    avoid: str = ""  # the worker on which the first attempt failed


def run_tasks(
    client: Any,
    work: Callable[[Any, Task], Result],
    shared: Any,
    tasks: Sequence[Task],
    name: str = "task",
    failed: Callable[[Result], bool] = lambda result: False,
) -> Iterator[Done[Task, Result]]:
    """Runs ``work(shared, task)`` for each task on the workers. Yields tasks in the order in which they end.

    As many tasks are sent as there are threads of workers, so that neither the scheduler nor the client holds a long
    list, and a worker that dies takes one task with it. A task that fails runs again, on another worker if there is
    one; a task that fails twice is yielded with its error.

    Args:
        client: as :func:`connected` gives it.
        work: a function that workers can import.
        shared: what all tasks need; small, because it is sent with each of them.
        tasks: small descriptions of work, which is done by reading and writing files.
        name: of the tasks on the dashboard.
        failed: whether a result reports an error of its own, so that the task runs again.

    Raises:
        SchedulerLost: the scheduler is lost.
    """
    from distributed import as_completed

    waiting = deque(_Running(task, number) for number, task in enumerate(tasks))
    running: dict[str, _Running[Task]] = {}
    completed = as_completed(with_results=False)
    threads = _Census(client)

    def send() -> None:
        while waiting and len(running) < max(threads.now(), 1):
            one = waiting.popleft()
            key = f"{name}-{os.getpid()}-{id(completed)}-{one.number}-{one.attempt}"
            where = threads.without(one.avoid)
            future = client.submit(
                _guarded, work, shared, one.task, key=key, pure=False, workers=where, allow_other_workers=bool(where)
            )
            running[key] = one
            completed.add(future)

    with _scheduler_lost(client):
        send()
        while running:
            future = next(completed)
            one = running.pop(future.key)
            result, error, worker = _ended(future)
            del future
            if one.attempt < ATTEMPTS and (error or failed(result)):
                waiting.append(_Running(one.task, one.number, one.attempt + 1, worker))
            else:
                yield Done(one.task, result, error)
            send()


class _Census:
    """The workers of a cluster, which may come and go. The scheduler is asked every few seconds."""

    def __init__(self, client: Any) -> None:
        self._client, self._asked = client, 0.0
        self._threads: dict[str, int] = {}

    def now(self) -> int:
        """The number of threads of all workers."""
        if time.monotonic() - self._asked > _CENSUS or not self._threads:
            self._threads = dict(self._client.nthreads())
            self._asked = time.monotonic()
        return sum(self._threads.values())

    def without(self, worker: str) -> list[str] | None:
        """All workers except one; None if that leaves no choice."""
        others = [address for address in self._threads if address != worker]
        return others if worker and others else None


def _guarded(work: Callable[[Any, Task], Result], shared: Any, task: Task) -> tuple[Result | None, str, str]:
    """Runs on a worker. Returns the result, or one line about the error, and the worker's address."""
    from distributed import get_worker

    address = str(get_worker().address)
    # As in commands: what libraries tell programmers. A worker here runs nothing else.
    warnings.simplefilter("ignore", append=True)
    try:
        return work(shared, task), "", address
    except Exception as error:
        line = one_line(error) or f"{type(error).__name__}: {error}".partition("\n")[0]
        return None, line, address


def _ended(future: Any) -> tuple[Any, str, str]:
    """Result, error and worker of a task that ended. Raises CancelledError if the scheduler forgot the task."""
    from distributed import KilledWorker

    try:
        found: tuple[Any, str, str] = future.result()
        return found
    except KilledWorker as error:
        worker = str(getattr(error.last_worker, "address", ""))
        return (
            None,
            f"the worker {worker} ended while it ran this; if memory ran out, use fewer workers or tiles",
            worker,
        )


@contextmanager
def _scheduler_lost(client: Any) -> Iterator[None]:
    """Turn what Dask raises without its scheduler into one line."""
    from asyncio import CancelledError

    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError

    address = getattr(client.scheduler, "addr", "")
    try:
        yield
    except (TimeoutError, CommClosedError, FutureCancelledError, CancelledError) as error:
        raise SchedulerLost(
            f"the Dask scheduler {address} is lost; start it and its workers and run the same command again: what is "
            "done is kept"
        ) from error
