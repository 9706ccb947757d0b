"""The processes of a run, as each of them sees the others.

Detectron2's ``comm`` does the work where processes were started (``launch.py``). A process that never imported it is
alone, and needs neither Detectron2 nor torch to know that.
"""

from __future__ import annotations

import sys
from typing import Any


def rank() -> int:
    """The number of this process, from 0."""
    comm = _comm()
    return int(comm.get_rank()) if comm else 0


def count() -> int:
    """The number of processes."""
    comm = _comm()
    return int(comm.get_world_size()) if comm else 1


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, by rank, in each of them."""
    comm = _comm()
    return list(comm.all_gather(value)) if comm else [value]


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank, in the first one; [] in the others."""
    comm = _comm()
    return list(comm.gather(value)) if comm else [value]


def _comm() -> Any:
    return sys.modules.get("detectron2.utils.comm")
