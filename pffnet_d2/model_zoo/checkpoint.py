"""Reading and writing checkpoints. Only weights are read from a file, and all of them must fit the model.

Upstream reads ``.pkl`` files with pickle, which runs any code that such a file holds, and loads those weights of a
checkpoint that happen to fit. Here such files raise :class:`~pffnet_d2.errors.InputError` in one line.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from pffnet_d2.atomic_write import whole_file, write_text
from pffnet_d2.errors import InputError

logger = logging.getLogger(__name__)

AVERAGE = "weight_average"  # in a checkpoint of averaged weights, the key of the weights in training
# What to do where there are no weights to start training from, and where a trained model is needed.
WITHOUT_WEIGHTS = "set MODEL.WEIGHTS '' MODEL.BACKBONE.FREEZE_AT 0 or a local file"
OTHER_WEIGHTS = "give the file that training wrote (MODEL.WEIGHTS FILE, --weights FILE)"
CLASSIFIER = re.compile(r"(catalog|detectron2)://ImageNetPretrained/")

# The functions that rebuild pickled numpy arrays and scalars of any numpy release (numpy.core or numpy._core).
_NUMPY_REBUILDERS: dict[str, Any] = {
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "scalar": np.float64(0).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
}
_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    # Protocols 0 to 2 hold bytes, and empty bytes, in this way.
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
}


class NumpyUnpickler(pickle.Unpickler):
    """Unpickler of builtin containers, strings, numbers and numpy arrays. Any other object is an error."""

    def __init__(self, file: BinaryIO) -> None:
        # latin1: files of Caffe2 were pickled by Python 2.
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if re.fullmatch(r"numpy\._?core\.(multiarray|numeric)", module) and name in _NUMPY_REBUILDERS:
            return _NUMPY_REBUILDERS[name]
        if (module, name) in _ADMITTED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, not only numpy arrays")


def read_weights(path: str) -> dict[str, Any]:
    """Read a checkpoint file without running any code in it.

    Args:
        path: a local file. ``.pkl``: from Detectron2's model zoo (``{"model", "__author__"}``) or from Caffe2 /
            Detectron (names to arrays, perhaps under ``"blobs"``). Any other ending: from PyTorch, read with
            ``weights_only``.

    Returns:
        ``{"model": {name: Tensor or ndarray}, ...}`` and the rest of the file (``trainer``, ``iteration``,
        ``matching_heuristics``: whether names are matched by their endings, as upstream does for these files).

    Raises:
        InputError: the file is missing or cannot be read.
        DamagedWeights: it is damaged, or holds more than weights and plain values.
    """
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                loaded = NumpyUnpickler(file).load()
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            _check_sums(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file; check the path") from None
    except pickle.UnpicklingError as error:
        raise DamagedWeights(f"{path}: not read: {_reason(error)}; give a file of weights only") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise almost any exception
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); check its permissions and the disk"
            ) from error
        raise DamagedWeights(
            f"{path}: truncated, damaged or not a weights file ({type(error).__name__}); fetch or copy it again"
        ) from error

    if not isinstance(loaded, dict):
        raise DamagedWeights(f"{path}: not a checkpoint: it contains a {type(loaded).__name__}, not names and weights")
    if path.endswith(".pkl") and not {"model", "__author__"} <= loaded.keys():
        blobs = loaded.get("blobs", loaded)
        weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum") and k != "weight_order"}
        loaded = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    elif "model" not in loaded:
        loaded = {"model": loaded}
    model = loaded["model"]
    if not isinstance(model, dict) or not model or not all(isinstance(v, (Tensor, np.ndarray)) for v in model.values()):
        raise DamagedWeights(f"{path}: not a checkpoint: its weights are not a table of names and arrays")
    return loaded


class DamagedWeights(InputError):
    """A file that should hold weights is damaged or holds something else."""


def _check_sums(path: str) -> None:
    """Verify the checksums, which torch.load does not. Files of old releases hold none."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not fit")


def _reason(error: pickle.UnpicklingError) -> str:
    """The essence of PyTorch's page-long message, or of our own."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds {found.group(1)}, not only weights"
    if "Weights only load failed" in text or not text.startswith("it holds"):
        return "truncated, or not a weights file"
    return text


class Average(Protocol):
    """A moving average of weights (``engine.optimizer.WeightAverage``)."""

    @property
    def model(self) -> nn.Module: ...

    def restart(self, new: Collection[str] = ()) -> None: ...

    def resume(self, state: dict[str, Any]) -> None: ...

    def training_state(self) -> dict[str, Any]: ...


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but it reads safely, writes whole files, and raises where weights do not fit.

    ``load(path)`` requires every weight of the model in the file (evaluation, prediction, resuming).
    ``load(path, checkpointables=[])``, with which training starts, requires the backbone's weights. Heads may be new,
    even where the file has heads for other classes.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, average: Average | None = None, **checkpointables: Any
    ) -> None:
        """
        Args:
            average: of the weights of ``model``. Files then hold the averaged weights as the model and, besides, the
                weights in training.
            checkpointables: what else to save, as in upstream.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.average = average
        self._new: Collection[str] = ()  # parameters that were not in the file that was loaded last

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load ``path`` (a file, ``catalog://`` or a URL; "" loads nothing) and return the rest of its content.

        Raises:
            InputError: the file cannot be found, downloaded or read, or does not fit the model.
        """
        self._whole = checkpointables is None
        if path:
            path = self._local(path)
        self._source = path
        left: dict[str, Any] = super().load(path, checkpointables=checkpointables)
        if self.average is not None and self._whole:
            # A run that was begun without an average goes on with one.
            begun = {"weights": self.model.state_dict(), "iterations": 0}
            self.average.resume(left.pop(AVERAGE, begun))
        elif self.average is not None:
            self.average.restart(self._new)
        return left

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """:meth:`load_last` with ``resume`` and where there is a checkpoint; otherwise start from ``path``."""
        if resume and self.has_checkpoint():
            return self.load_last()
        return self.load(path, checkpointables=[])

    def load_last(self) -> dict[str, Any]:
        """Load the checkpoint that ``last_checkpoint`` names. Where it is missing or damaged, load the newest whole one
        before it, and log a warning.

        Raises:
            InputError: no checkpoint is complete, or the last one cannot be read or does not fit.
        """
        last = Path(self.get_checkpoint_file() or os.path.join(self.save_dir, "?"))
        trouble = f"{last}: no such file"
        for file in [last, *self._before(last.name)]:
            if not file.is_file():
                continue
            try:
                left = self.load(str(file))
            except DamagedWeights as error:
                trouble = trouble if file != last else str(error).partition(";")[0]
                continue
            if file != last:
                logger.warning(f"{trouble}; resuming from {file}, the newest complete checkpoint before it")
            return left
        raise InputError(
            f"{trouble}; {self.save_dir} has no complete checkpoint before it: omit --resume to start again"
        )

    def _before(self, name: str) -> list[Path]:
        """Checkpoints that were written before the one of this name, newest first."""
        numbered = {path.name: path for path in Path(self.save_dir).glob("model_*.pth") if _iteration(path.name) >= 0}
        last = _iteration(name)
        names = sorted((n for n in numbered if last < 0 or n < name), key=_iteration, reverse=True)
        # A final checkpoint, of a run that was then made longer.
        return [*(numbered[n] for n in names), *([] if last < 0 else [Path(self.save_dir) / "model_final.pth"])]

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth``. If the run is killed meanwhile, the checkpoint before it stays in force.

        Scalars of numpy are converted to Python's, with which a file can be read as weights only.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        if self.average is not None:
            data = {"model": self.average.model.state_dict(), AVERAGE: self.average.training_state()}
        data |= {key: stateful.state_dict() for key, stateful in self.checkpointables.items()}
        data |= {key: value.item() if isinstance(value, np.generic) else value for key, value in kwargs.items()}
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {file}")
        with whole_file(file, "wb") as stream:
            try:
                torch.save(data, stream)
            except RuntimeError as error:  # torch hides an error of the file, such as a full disk, behind its own
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _local(self, path: str) -> str:
        remedy = OTHER_WEIGHTS if self._whole else WITHOUT_WEIGHTS
        if self._whole and CLASSIFIER.match(path):
            raise InputError(f"{path}: an ImageNet classifier to start training from, not a trained model; {remedy}")
        if "://" in path:
            logger.warning(f"fetching {path}, unless an earlier run did")
        try:
            local = str(self.path_manager.get_local_path(path))
        except InputError:
            raise
        except Exception as error:  # no network, no such catalog entry, a missing page: the remedy is the same
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(f"{path}: these weights cannot be fetched ({reason}); {remedy}") from error
        if os.path.isdir(local):
            raise InputError(f"{path}: a folder, not a weights file; {remedy}")
        if not os.path.isfile(local):
            raise InputError(f"{path}: no such weights file; {remedy}")
        return local

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_weights(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        try:
            incompatible = super()._load_model(checkpoint)
        except ValueError as error:  # upstream's matching of names found two places for one weight
            raise InputError(f"{self._source}: {error} These weights do not fit the config") from error

        self._new = set(incompatible.missing_keys)
        misfits = [
            f"{key} {file} in the file, {model} here"
            for key, file, model in incompatible.incorrect_shapes
            if self._whole or key.startswith("backbone.")
        ]
        if not misfits:
            missing = sorted(set(incompatible.missing_keys))
            if not self._whole:
                # Upstream's matching of names also counts a weight of another shape as missing.
                missing = sorted(self._backbone_parameters().intersection(missing))
            misfits = [f"{key} missing" for key in missing]
        if misfits:
            more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
            raise InputError(
                f"{self._source}: does not fit the model: {', '.join(misfits[:3])}{more}; "
                "give the weights that belong to this config"
            )
        return incompatible

    def _backbone_parameters(self) -> set[str]:
        """Names of the parameters that a file to start training from (an ImageNet classifier) must hold."""
        names = [name for name, _ in self.model.named_parameters()]
        bottom_up = {name for name in names if name.startswith("backbone.bottom_up.")}
        return bottom_up or {name for name in names if name.startswith("backbone.")}


def _iteration(name: str) -> int:
    """The iteration in the name of a checkpoint; -1 for model_final.pth and other files."""
    found = re.fullmatch(r"model_(\d+)\.pth", name)
    return int(found[1]) if found else -1
