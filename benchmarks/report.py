"""What every benchmark prints: a line of ratios for people, a json line for ``run.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def report(benchmark: str, case: str, ratios: Mapping[str, float], **details: Any) -> None:
    """
    Args:
        benchmark: what is measured, such as "fusion".
        case: sizes, device and whatever else tells it from the benchmark's other cases.
        ratios: by what they say, such as {"loop over ROIs / closed form": 9.7}; without unit.
        details: seconds, bytes and counts behind them, for the json line.
    """
    shown = ", ".join(f"{name} {value:.3g}x" for name, value in ratios.items())
    print(f"{benchmark}, {case}: {shown}")
    print(json.dumps({"benchmark": benchmark, "case": case, "ratios": dict(ratios), **details}), flush=True)
