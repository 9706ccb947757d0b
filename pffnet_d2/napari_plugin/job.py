"""Work off the GUI thread: a bar that shows how far it is and cancels it. Errors of users appear as one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from napari.qt.threading import FunctionWorker, create_worker
from napari.utils.notifications import show_error
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from pffnet_d2.errors import one_line
from pffnet_d2.napari_plugin.llvm import import_compiler
from pffnet_d2.napari_plugin.progress import Cancelled, Report, Step

T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[T]):
    """Work for another thread, and what this thread does with what comes of it."""

    title: str
    work: Callable[[Report], T]
    done: Callable[[T], object]  # not called after an error or a cancellation
    progress: Callable[[Step], object] = lambda step: None


@dataclass(frozen=True)
class _Mistake:
    """An error of the user or the machine, in one line."""

    line: str


class JobBar(QWidget):
    """Runs one job at a time. ``busy`` says when one starts and ends."""

    busy = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._job: Job[Any] | None = None
        self._workers: list[FunctionWorker] = []  # one while a job runs
        self.status = QLabel("Ready")
        self.status.setWordWrap(True)
        self.bar = QProgressBar()
        self.cancel = QPushButton("Cancel")
        self.cancel.clicked.connect(self.stop)
        row = QHBoxLayout()
        row.addWidget(self.bar)
        row.addWidget(self.cancel)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.status)
        layout.addLayout(row)
        self._show_running(False)
        workers = self._workers
        self.destroyed.connect(lambda: [worker.quit() for worker in workers])

    @property
    def running(self) -> bool:
        return bool(self._workers)

    def start(self, job: Job[Any]) -> None:
        """Starts a job. Only call it while none is running."""
        assert not self.running
        relay = _Relay()
        relay.step.connect(self._show)
        relay.step.connect(job.progress)

        def work() -> Any:
            return _in_thread(job.work, worker, relay)

        worker = create_worker(work, _start_thread=False)
        worker.returned.connect(self._take)
        worker.errored.connect(self._fail)
        worker.finished.connect(self._end)
        self._job = job
        self._workers.append(worker)
        self.status.setText(f"{job.title} ...")
        self._show_running(True)
        worker.start()

    def stop(self) -> None:
        """Asks the job to stop at its next step. What it returns after that is dropped."""
        for worker in self._workers:
            worker.quit()
            self.status.setText("Stopping ...")
            self.cancel.setEnabled(False)

    def _show(self, step: Step) -> None:
        self.bar.setMaximum(step.total)  # 0 shows that it is busy
        self.bar.setValue(step.done)

    def _take(self, result: Any) -> None:
        assert self._job is not None
        if isinstance(result, _Mistake):
            self._fail()
            show_error(result.line)
            return
        self.status.setText(f"{self._job.title}: done")
        self._job.done(result)

    def _fail(self, error: Any = None) -> None:
        assert self._job is not None
        self.status.setText(f"{self._job.title}: failed")

    def _end(self) -> None:
        if any(worker.abort_requested for worker in self._workers):
            self.status.setText("Cancelled")
        self._workers.clear()
        self._job = None
        self._show_running(False)

    def _show_running(self, running: bool) -> None:
        self.bar.setMaximum(0 if running else 1)
        self.bar.setValue(0)
        self.bar.setVisible(running)
        self.cancel.setVisible(running)
        self.cancel.setEnabled(running)
        self.busy.emit(running)


class _Relay(QObject):
    """Carries steps to the GUI thread."""

    step = Signal(object)


def _in_thread(work: Callable[[Report], Any], worker: FunctionWorker, relay: _Relay) -> Any:
    """The result of the work, a ``_Mistake``, or None if it was cancelled. Bugs are raised, and napari shows them."""

    def report(step: Step) -> None:
        # napari sets this too, when its window is closed.
        if worker.abort_requested:
            raise Cancelled
        relay.step.emit(step)

    try:
        # napari shows every warning of its threads, also those that libraries address to programmers.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_compiler()
            return work(report)
    except Cancelled:
        return None
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        return _Mistake(line)
