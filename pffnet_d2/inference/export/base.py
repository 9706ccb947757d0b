"""The interface of exporters, and the data that they receive."""

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
from pffnet_d2.inference.export.measure import Measured
from pffnet_d2.inference.tiling import Box

Scores = Mapping[str, NDArray[Any]]
"""Columns of n values, such as ``{"score": (n,)}``; entry i belongs to the i-th label in ascending order."""


@dataclass(frozen=True)
class SourceImage:
    """The image whose objects are exported. A large image is never loaded as a whole, so pixels come as windows."""

    file_name: str  # without folders
    shape: tuple[int, int]  # H, W
    pixels: Callable[[Box], NDArray[Any]]  # a window of the values in the file, (h, w) or (h, w, C)
    rgb: Callable[[Box], NDArray[np.uint8]]  # a window as the network saw it, (h, w, 3)
    whole: bool  # whether the label map comes in one part; otherwise it comes in many, as tiles are finished
    pixel_size: tuple[float, float] | None = None  # height and width of a pixel, micrometres
    resolution: tuple[Any, Any, int] | None = None  # XResolution, YResolution and ResolutionUnit of a TIFF
    measured: Measured | None = None  # what tables say of each object; None writes the default columns
    class_name: str = "object"  # of the objects, in formats that name it


@dataclass(frozen=True)
class Part:
    """A finished window of the label map."""

    labels: NDArray[np.int32]  # (h, w), 0 background
    scores: Scores = field(default_factory=dict)
    first: int = 1  # the id that label 1 has in the image
    origin: tuple[int, int] = (0, 0)  # y, x of the window's first pixel in the image


Add = Callable[[Part], None]


class Exporter(ABC):
    """A format with one file per image."""

    name: str  # as given to --format
    ending: str  # appended to the name of the image without its extension
    about: str  # a few words on the file for the help text
    streams: bool = False  # whether it can be written part by part; otherwise images must be ``SourceImage.whole``
    by_rows: bool = False  # whether parts are successive rows of the label map, (n, W); otherwise finished objects
    in_parallel: bool = False  # whether the processes of a cluster write it together, as a folder

    def require(self) -> None:  # noqa: B027 -- most formats need no library
        """Raises InputError that says what to install if a library is missing."""

    def check(self, name: str, image: SourceImage) -> None:  # noqa: B027 -- most formats hold any image
        """Raises InputError, beginning with ``name``, if the format cannot represent the image. Called before a large
        image is predicted, and again by ``begin``."""

    def replaces(self, place: Path) -> bool:
        """Whether a result may replace what is at its place: a file, or a folder of the same format."""
        return not place.is_dir()

    @abstractmethod
    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        """Begins a file. The context manager returns a function that adds a part. At the end of the block the complete
        file appears at ``path``; after an error it does not appear.

        Raises:
            InputError: the file cannot be written, or the format cannot represent the image.
        """


class CollectionExporter(ABC):
    """A format with one file for all images of a run, made from the files of another format."""

    name: str
    about: str
    file_name: str
    made_of: str  # the name of an Exporter

    @abstractmethod
    def require(self) -> None:
        """See ``Exporter.require``."""

    @abstractmethod
    def check_images(self, images: Sequence[Path]) -> None:
        """Raises InputError if one file cannot contain these images. Called before prediction starts."""

    @abstractmethod
    def write(self, path: Path, files: Mapping[Path, Path]) -> None:
        """Writes the file.

        Args:
            path: the file.
            files: for each predicted image, its file in the format ``made_of``.
        """


def required(module: str, name: str, requirement: str) -> Any:
    """Imports the optional module that a format needs. Raises InputError that says what to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"format {name}: {module} is not installed; type: pip install '{requirement}'") from error


def score_rows(scores: Scores) -> Callable[[int], dict[str, float]]:
    """Returns a function that gives the scores of the i-th object, rounded to six digits."""
    columns = {key: np.asarray(column, dtype=np.float64) for key, column in scores.items()}
    return lambda i: {key: float(f"{column[i]:.6g}") for key, column in columns.items()}
