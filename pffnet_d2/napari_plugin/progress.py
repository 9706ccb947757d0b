"""How work in a thread tells how far it is, and how it learns that it should stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class Cancelled(BaseException):
    """The user cancelled the work. Like ``asyncio.CancelledError`` it is no ``Exception``, so that nothing on the way
    reports or logs it as an error."""


@dataclass(frozen=True)
class Step:
    """How far the work is."""

    done: int
    total: int  # 0 while it is unknown
    losses: tuple[float, ...] = ()  # of the iterations up to ``done`` that were not reported before


Report = Callable[[Step], None]
"""Takes a step; raises ``Cancelled`` if the work should stop."""
