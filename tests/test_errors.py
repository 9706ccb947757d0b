"""errors.py: a command ends with one line, also for errors of other processes; bugs keep their traceback."""

from __future__ import annotations

import errno
import logging

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pffnet_d2.errors import InputError, NonFiniteLoss, exit_code, hide_traceback, one_line
from pffnet_d2.model_zoo.checkpoint import DamagedWeights

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\n'


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.png: damaged; fetch it again"), "a.png: damaged; fetch it again"),
        (InputError("two\nlines"), "two lines"),
        (NonFiniteLoss("iteration 3: loss is nan"), "iteration 3: loss is nan"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x.csv"),
            "out/x.csv: No space left on device; free some space, or choose another folder",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space, or choose anoth"),
        (PermissionError(errno.EACCES, "Permission denied", b"x"), "x: Permission denied; change its permissions, or"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "x: No such file or directory; check the"),
        (FileExistsError(errno.EEXIST, "File exists", "x"), "x: File exists; a file is where a folder is needed"),
        (OSError("cannot identify image file"), "cannot identify image file; try again"),
        (MemoryError(), "not enough memory; give smaller images or batches"),
        (MemoryError("Unable to allocate 451. GiB"), "not enough memory (Unable to allocate 451. GiB); give"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."), "not enough memory (CUDA out of memory); give"),
        (
            RuntimeError("[enforce fail at alloc.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "not enough memory (DefaultCPUAllocator: can't allocate memory: 9 bytes); give",
        ),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "),
            "not enough memory (DataLoader worker (pid 3) is killed by signal: Killed.); give",
        ),
        # Of other processes.
        (
            RuntimeError(f"Process 1:\n{TRACEBACK}pffnet_d2.errors.InputError: a.png: damaged\n"),
            "a.png: damaged",
        ),
        (
            RuntimeError(f"{TRACEBACK}{DamagedWeights.__module__}.DamagedWeights: w.pth: truncated\n"),
            "w.pth: truncated",
        ),
        (
            OSError(f"Caught OSError in worker.\n{TRACEBACK}OSError: [Errno 28] No space left on device: 'x/y'\n"),
            "x/y: No space left on device; free some space",
        ),
        (
            RuntimeError(f"{TRACEBACK}PermissionError: [Errno 13] Permission denied: 'z'\n"),
            "z: Permission denied; change its permissions",
        ),
        (
            RuntimeError(f"{TRACEBACK}numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9. TiB\n"),
            "not enough memory (Unable to allocate 9. TiB)",
        ),
    ],
)
def test_one_line(error: Exception, line: str) -> None:
    said = one_line(error)
    assert said is not None
    assert said.startswith(line)
    assert "\n" not in said


def test_torch_save_on_a_full_device() -> None:
    with pytest.raises((RuntimeError, OSError)) as caught, open("/dev/full", "wb", buffering=0) as file:
        torch.save({"w": torch.zeros(100_000)}, file)
    assert (one_line(caught.value) or "").startswith("No space left on device; free some space")


@pytest.mark.parametrize(
    "error", [RuntimeError("shape '[2]' is invalid"), ZeroDivisionError(), RuntimeError(f"{TRACEBACK}KeyError: 3")]
)
def test_bugs_are_not_shown_in_one_line(error: Exception) -> None:
    assert one_line(error) is None


def test_exit_codes() -> None:
    assert exit_code(InputError("x")) == exit_code(OSError(28, "x")) == exit_code(MemoryError()) == 2
    assert exit_code(NonFiniteLoss("x")) == 1
    assert exit_code(RuntimeError(f"{TRACEBACK}pffnet_d2.errors.NonFiniteLoss: x")) == 1


class Missing(Dataset[int]):
    """A data set that cannot be read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise PermissionError(13, "Permission denied", "plate.tif")


def test_a_workers_error_names_its_file() -> None:
    with pytest.raises(PermissionError) as caught:
        next(iter(DataLoader(Missing(), num_workers=1)))
    assert (one_line(caught.value) or "").startswith("plate.tif: Permission denied; ")


def test_logs_show_no_traceback_of_errors_shown_in_one_line() -> None:
    def record(error: Exception | None) -> logging.LogRecord:
        info = (type(error), error, None) if error else None
        return logging.LogRecord("x", logging.ERROR, "", 0, "Exception", None, info)

    assert not hide_traceback(record(InputError("a.png: truncated")))
    assert not hide_traceback(record(OSError(28, "No space left on device")))
    assert hide_traceback(record(RuntimeError("ours to mend")))
    assert hide_traceback(record(None))
