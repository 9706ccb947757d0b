"""Registers networks, data sets, weights and optimizers with Detectron2, once both packages are imported.

Importing Detectron2 takes seconds, and readers, metrics and ``pffnet --help`` do not need it. This module therefore
waits until Detectron2 is imported. Everything is then registered, whichever package was imported first.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pffnet_d2 import env

OURS, THEIRS = "pffnet_d2", "detectron2"


def register_with_detectron2() -> None:
    """Register with Detectron2: at once if it is imported already, otherwise as soon as it is."""
    if sys.modules.get(THEIRS):
        register()
    else:
        sys.meta_path.insert(0, _Watch())


@cache
def register() -> str:
    """Import Detectron2 and register with it, once.

    Returns:
        "", or one line that says why Detectron2 does not work and what to type.
    """
    try:
        with _without_announcements():
            _register()
    except Exception:  # an incompatible package raises AttributeError, OSError and others
        problem = env.problem()
        if not problem:
            raise
        return problem
    return ""


@contextmanager
def _without_announcements() -> Iterator[None]:
    """Hide the deprecations that torch announces when Detectron2 is imported; its users cannot act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _register() -> None:
    from detectron2.utils.file_io import PathManager

    from pffnet_d2 import modeling  # noqa: F401  (registers the networks)
    from pffnet_d2.data import catalog
    from pffnet_d2.engine.optimizer import register_optimizers
    from pffnet_d2.model_zoo.imagenet import register_package_weights

    catalog.register_published()
    register_package_weights(PathManager)
    register_optimizers()


class _Watch(MetaPathFinder):
    """Registers as soon as Detectron2 is imported and no module of this package is only partly imported.

    A partly imported module cannot be used yet.
    """

    def __init__(self) -> None:
        self.running = 0  # the number of modules being imported, each by the one before it

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != THEIRS and not fullname.startswith(f"{OURS}."):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.running += 1
            try:
                with _without_announcements():
                    execute(module)
            finally:
                self.running -= 1
            if not self.running and sys.modules.get(THEIRS) and self in sys.meta_path:
                sys.meta_path.remove(self)
                register()

        loader.exec_module = exec_module
