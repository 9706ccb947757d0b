"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "pffnet_d2").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_examples_were_found() -> None:
    assert {"pffnet_d2.evaluation.metrics", "pffnet_d2.masks.compose"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed
