"""Parses numbers that users type. ``str.isdigit`` and ``int`` also accept ``²``, ``٣`` or ``1_000``."""

from __future__ import annotations

import math
import re


def whole_number(text: str) -> int:
    """Parses ``0`` or ``12``: only the digits 0 to 9. Raises ValueError for any other text."""
    if not re.fullmatch("[0-9]+", text):
        raise ValueError(f"{text!r} is not a whole number from 0")
    return int(text)


def real_number(text: str) -> float:
    """Parses ``0.5``, ``-1`` or ``1e3``: a finite number in ASCII digits. Raises ValueError for any other text."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError(f"{text!r} is not a number")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is too large")
    return value
