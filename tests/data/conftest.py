"""The publishers' layouts as fixtures: test modules are loaded by path and cannot import each other."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def writers() -> ModuleType:
    return module("writers.py")


@pytest.fixture(scope="session")
def layouts() -> ModuleType:
    return module("readers/layouts.py")


def module(file: str) -> ModuleType:
    """The file beside this one, loaded once."""
    path = Path(__file__).parent / file
    name = f"pffnet_test_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded
        spec.loader.exec_module(loaded)
    return sys.modules[name]
