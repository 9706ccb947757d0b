"""PFFNet and its relatives for Detectron2: instance segmentation of nuclei, cells and leaves.

Importing the package registers its modules and data sets with Detectron2. Without a working Detectron2 (or torch) the
parts that need neither still import: metrics, readers, label maps, ``pffnet_d2.env``; the rest says what to install.
"""

from __future__ import annotations

from importlib.util import find_spec

from pffnet_d2.config import config_path
from pffnet_d2.env import problem

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "add_pffnet_config", "config_path"]

_problem = problem()
if not _problem:
    from detectron2.utils.file_io import PathManager

    from pffnet_d2 import modeling  # noqa: F401  (registers)
    from pffnet_d2.config import add_pffnet_config
    from pffnet_d2.data import catalog
    from pffnet_d2.engine.optimizer import register_optimizers
    from pffnet_d2.inference.predictor import Predictor
    from pffnet_d2.model_zoo.imagenet import register_package_weights

    catalog.register_all()
    register_package_weights(PathManager)
    register_optimizers()


def __getattr__(name: str) -> object:
    # A submodule is reported absent in the usual way: `from pffnet_d2 import evaluation` then goes on to import it.
    if _problem and not name.startswith("_") and find_spec(f"{__name__}.{name}") is None:
        raise ImportError(f"pffnet_d2.{name}: {_problem}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
