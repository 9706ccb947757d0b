"""PFFNet and related networks for Detectron2: instance segmentation of nuclei, cells and leaves.

Importing the package registers its networks and data sets with Detectron2, whichever of the two is imported first.
Metrics, readers, label maps, ``pffnet_d2.env`` and prediction with a model in ONNX need neither Detectron2 nor torch,
and can be imported without them. Importing anything else then raises an error that says what to install.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pffnet_d2 import env
from pffnet_d2.config import config_path
from pffnet_d2.env import VERSION as __version__
from pffnet_d2.registration import register, register_with_detectron2

if TYPE_CHECKING:
    from pffnet_d2.config import add_pffnet_config
    from pffnet_d2.inference.predictor import Predictor

__all__ = ["Predictor", "__version__", "add_pffnet_config", "config_path"]

# Public names that are slow to import, and their modules.
_IMPORTED_LATER = {"Predictor": "inference.predictor", "add_pffnet_config": "config"}

register_with_detectron2()


def __getattr__(name: str) -> Any:
    if name in _IMPORTED_LATER:
        # With a model in ONNX, Predictor needs less; with another, it raises the same error.
        without_detectron2 = name == "Predictor" and not env.problem(onnx=True)
        if not without_detectron2 and (problem := register()):
            raise ImportError(f"{__name__}.{name}: {problem}")
        return getattr(import_module(f"{__name__}.{_IMPORTED_LATER[name]}"), name)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
