"""A cheap model for tests of prediction on a cluster. Workers import it by name, so it is a module of its own."""

from __future__ import annotations

import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from distributed import get_worker
from numpy.typing import NDArray
from scipy import ndimage

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AUTO
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.predictor import Predictor
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.model_zoo.facts import ModelFacts


@dataclass(frozen=True)
class Found:
    label_map: NDArray[np.int32]
    scores: dict[str, NDArray[np.float32]]
    capped: tuple[str, ...] = ()


class Threshold(Predictor):
    """Finds what is brighter than half.

    Variables of the environment make it fail. A file named in PFFNET_TEST_KILL is removed by the first process that
    predicts, which then kills itself. An image as high as PFFNET_TEST_POISON always kills. The worker called
    PFFNET_TEST_FULL can write no file, as on a full disk.
    """

    identity = "threshold"
    precision = "float32"
    facts = ModelFacts(LabelMapRule(), AUTO.name, images="", diameter=0.0, stride=8, caps_area=0, caps={})
    normalisation, scale, own_scale, matching, matched = AUTO, 1.0, False, False, ""

    def __init__(self, options: PredictOptions) -> None:
        if os.environ.get("PFFNET_TEST_LOADS"):
            (Path(os.environ["PFFNET_TEST_LOADS"]) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        full = os.environ.get("PFFNET_TEST_FULL")
        if full and full == str(get_worker().name):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def predict(self, images: list[NDArray[np.uint8]]) -> list[Found]:
        found = []
        for image in images:
            die_once()
            if os.environ.get("PFFNET_TEST_POISON") == str(image.shape[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            labels, n = ndimage.label(image[:, :, 0] > 127)
            sizes = np.bincount(labels.ravel(), minlength=n + 1)[1:]
            found.append(Found(labels.astype(np.int32), {"score": (sizes / image.size).astype(np.float32)}))
        return found


def die_once() -> None:
    mark = os.environ.get("PFFNET_TEST_KILL")
    if mark and os.path.exists(mark):
        os.unlink(mark)
        os.kill(os.getpid(), signal.SIGKILL)


_asked: dict[int, int] = {}


def fail_at_first(times: dict[int, int], task: int) -> int:
    """The square of a number; a task fails as often as ``times`` says."""
    _asked[task] = _asked.get(task, 0) + 1
    if _asked[task] <= times.get(task, 0):
        raise InputError(f"task {task} failed")
    return task**2
