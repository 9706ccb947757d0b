"""Numbers as users type them. ``str.isdigit`` and ``int`` take ``²``, ``٣`` and ``1_000`` for numbers too."""

from __future__ import annotations

import math
import re


def whole_number(text: str) -> int:
    """``0``, ``12``: the digits 0 to 9 and nothing else. Raises ValueError for any other text."""
    if not re.fullmatch("[0-9]+", text):
        raise ValueError(f"{text!r} is not a whole number from 0")
    return int(text)


def real_number(text: str) -> float:
    """``0.5``, ``-1``, ``1e3``: a finite number in ASCII digits. Raises ValueError for any other text."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError(f"{text!r} is not a number")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is too large")
    return value
