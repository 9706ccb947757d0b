"""Training and evaluation. Scripts use ``read_config``, ``check_config`` and ``Trainer``, or ``run(argv)`` for what the
command line does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Names that scripts import from here, and their modules, which are imported on first use.
PUBLIC = {
    "Trainer": "trainer",
    "argument_parser": "arguments",
    "check_config": "run_config",
    "read_config": "run_config",
    "run": "trainer",
    "setup": "run_config",
    "train_or_evaluate": "trainer",
    "trained_model": "trainer",
}
RENAMED = {"check": "check_config"}


def __getattr__(name: str) -> Any:
    name = RENAMED.get(name, name)
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)
