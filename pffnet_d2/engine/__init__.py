"""Training and evaluation: ``run(argv)`` is the command line; ``read_config``, ``check`` and ``Trainer`` are for
scripts."""

from __future__ import annotations

from importlib import import_module
from typing import Any

PUBLIC = ("Trainer", "argument_parser", "check", "read_config", "run", "setup", "train_or_evaluate", "trained_model")


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: prediction does without training.
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'arguments' if name == 'argument_parser' else 'trainer'}"), name)
