"""What a format of results is: the contract of an exporter, and what it is given."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.inference.tiling import Box

Scores = Mapping[str, NDArray[Any]]
"""Columns of n values, such as ``{"score": (n,)}``; entry i belongs to the i-th label in ascending order."""


@dataclass(frozen=True)
class SourceImage:
    """The image whose objects are exported. A large one is never whole in memory, so its pixels come as windows."""

    file_name: str  # without folders
    shape: tuple[int, int]  # H, W
    pixels: Callable[[Box], NDArray[Any]]  # a window of the values in the file, (h, w) or (h, w, C)
    rgb: Callable[[Box], NDArray[np.uint8]]  # a window as the network saw it, (h, w, 3)
    whole: bool  # the label map comes in one part; otherwise in many, as tiles are finished
    pixel_size: tuple[float, float] | None = None  # height and width of a pixel, micrometres
    resolution: tuple[Any, Any, int] | None = None  # XResolution, YResolution and ResolutionUnit of a TIFF


@dataclass(frozen=True)
class Part:
    """A finished window of the label map."""

    labels: NDArray[np.int32]  # (h, w), 0 background
    scores: Scores = field(default_factory=dict)
    first: int = 1  # the id in the image of label 1
    origin: tuple[int, int] = (0, 0)  # y, x in the image of the window's first pixel


Add = Callable[[Part], None]


class Exporter(ABC):
    """A format with one file per image."""

    name: str  # as --format takes it
    ending: str  # of the file's name, after the name of the image without its own ending
    about: str  # what the file is, in a few words for the help text
    streams: bool = False  # can be written part by part; otherwise only ``SourceImage.whole`` images are exported
    by_rows: bool = False  # parts are successive rows of the label map, (n, W); otherwise finished, whole objects

    def require(self) -> None:  # noqa: B027 -- most formats need no library
        """Raises InputError, saying what to install, where a library is missing."""

    def check(self, name: str, image: SourceImage) -> None:  # noqa: B027 -- most formats hold any image
        """Raises InputError, beginning with ``name``, where the format cannot hold such an image. Called before a large
        image is predicted, and again by ``begin``."""

    @abstractmethod
    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        """Begins a file. The function that entering gives adds a part; leaving ends the file, which appears at
        ``path`` when it is complete and not at all after an error.

        Raises:
            InputError: the file cannot be written, or the format cannot hold the image.
        """


class CollectionExporter(ABC):
    """A format with one file for all images of a run, made of the files of another format."""

    name: str
    about: str
    file_name: str
    made_of: str  # the name of an Exporter

    @abstractmethod
    def require(self) -> None:
        """As ``Exporter.require``."""

    @abstractmethod
    def check_images(self, images: Sequence[Path]) -> None:
        """Raises InputError where these images cannot be in one file; called before anything is predicted."""

    @abstractmethod
    def write(self, path: Path, files: Mapping[Path, Path]) -> None:
        """Writes the file.

        Args:
            path: the file.
            files: of each image that was predicted, its file of the format ``made_of``.
        """


def library(module: str, name: str, requirement: str) -> Any:
    """The optional module that a format needs. Raises InputError, saying what to install, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"format {name}: {module} is not installed; type: pip install '{requirement}'") from error


def score_rows(scores: Scores) -> Callable[[int], dict[str, float]]:
    """The scores of the i-th object, rounded to six digits."""
    columns = {key: np.asarray(column, dtype=np.float64) for key, column in scores.items()}
    return lambda i: {key: float(f"{column[i]:.6g}") for key, column in columns.items()}
