"""What every test shares: real data named by the environment, quiet threads, no leaks from the user's settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before numpy or torch are imported: the tensors of the tests are small, and more threads than this slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# The tests write and read their own data sets.
os.environ.pop("DETECTRON2_DATASETS", None)

# On a busy machine a deadline fails examples that are merely slow.
settings.register_profile("pffnet_d2", deadline=None)
settings.load_profile("pffnet_d2")


@pytest.fixture(scope="session")
def pffnet_data() -> Callable[[str], Path]:
    """Folder of a publisher's files, as in ``pffnet_data("bbbc039")``; skips the test where it is not at hand."""

    def folder(name: str) -> Path:
        path = _folder("PFFNET_DATA") / name
        if not path.is_dir():
            pytest.skip(f"PFFNET_DATA has no folder {name}")
        return path

    return folder


@pytest.fixture(scope="session")
def pffnet_oracles() -> Path:
    """Folder of the reference values; skips the test where it is not at hand."""
    return _folder("PFFNET_ORACLES")


@pytest.fixture
def leave_no_trace() -> Iterator[None]:
    """Undo what a run sets for the process: loggers on a stdout that pytest then closes, and no denormal numbers."""
    yield
    import torch
    from detectron2.utils.logger import setup_logger

    torch.set_flush_denormal(False)
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "pffnet_d2"):
        logging.getLogger(name).handlers.clear()


def _folder(variable: str) -> Path:
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{variable} is not set")
    folder = Path(named)
    if not folder.is_dir():
        pytest.skip(f"{variable}={named} is not a folder")
    return folder
