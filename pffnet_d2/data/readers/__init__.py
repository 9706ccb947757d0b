"""One module a publisher, all with the contract of ``record.Reader``; a module in this folder that has it is found by
its name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, cast

from pffnet_d2.data.readers.record import Reader

READERS: dict[str, Reader] = {
    info.name: cast(Reader, module)
    for info in pkgutil.iter_modules(__path__)
    if hasattr(module := importlib.import_module(f"{__name__}.{info.name}"), "records")
}


def schemes(name: str) -> dict[str, tuple[str, ...]]:
    """The split schemes of a reader with their splits, the default first; a reader without has one called ""."""
    reader = READERS[name]
    found: dict[str, tuple[str, ...]] = getattr(reader, "SCHEMES", {"": reader.SPLITS})
    return found


def options(name: str) -> dict[str, tuple[Any, str]]:
    """The options of a reader: default and help by name."""
    found: dict[str, tuple[Any, str]] = getattr(READERS[name], "OPTIONS", {})
    return found
