"""What can be asked of a prediction: one object from the command line down to the tiles of a large image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import Normalisation, parse_normalisation
from pffnet_d2.inference.export import Formats, choose

AnyPath = str | os.PathLike[str]


class InvalidOption(InputError):
    """An option has a value that cannot be; the command line names the option as it is typed there."""

    def __init__(self, option: str, fault: str) -> None:
        super().__init__(f"{option} {fault}")
        self.option, self.fault = option, fault


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model predicts, and what it is shown.

    Attributes:
        config: a merged config (not changed), or a yaml file; None takes ``model``.
        weights: a checkpoint; None takes MODEL.WEIGHTS.
        model: instead of config and weights: a folder that training or `pffnet package` wrote, or the name of a model
            that comes with the package; None takes its only one, "nuclei".
        diameter: mean diameter of the objects in pixels, 2 sqrt(area / pi): images pass through the network enlarged
            or reduced to the diameter that it knows (MODEL.PFFNET.DIAMETER), and results have the original size. None
            leaves images as they are.
        device: "cpu", "cuda", "cuda:1"; None takes MODEL.DEVICE, or the CPU where that is a CUDA
            device and there is none.
        thresholds: keys of MODEL.PFFNET.LABEL_MAP to override, such as {"SCORE_THRESH": 0.4, "MASK_THRESH": 0.5}, or a
            yaml file of them, as it is or as `pffnet thresholds` writes it.
        normalisation: for all images, instead of what each one's depth gets; a string as ``--normalisation`` takes it,
            such as "as-is" or "percentile:1,99".
        invert: show the network inverted grey values: for dark objects on a bright ground.
        opts: KEY VALUE pairs that override a config file.

    Raises:
        InputError: a value is of another type or out of its range; options that exclude each other.
    """

    config: CfgNode | AnyPath | None = None
    weights: AnyPath | None = None
    model: AnyPath | None = None
    diameter: float | None = None
    device: str | None = None
    thresholds: Mapping[str, Any] | AnyPath | None = None
    normalisation: Normalisation | str | None = None
    invert: bool = False
    opts: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, given in {"weights": self.weights, "model": self.model}.items():
            if not isinstance(given, (str, os.PathLike, type(None))):
                raise InvalidOption(name, f"{kind_of(given)}: give the path of a file or folder")
        if self.config is None and self.weights is not None:
            raise InputError(f"{os.fspath(self.weights)}: weights without a config; give the one of their training too")
        if self.config is not None and self.model is not None:
            raise InputError(f"model {os.fspath(self.model)} and a config: give one of them")
        if not isinstance(self.config, (CfgNode, str, os.PathLike, type(None))):
            raise InputError(
                f"config {kind_of(self.config)}: give the path of a yaml file, or a config of Detectron2's get_cfg()"
            )
        if self.diameter is not None and not (is_number(self.diameter) and 0 < self.diameter < float("inf")):
            raise InvalidOption("diameter", f"{self.diameter}: give the mean diameter of the objects in pixels")
        if not isinstance(self.thresholds, (Mapping, str, os.PathLike, type(None))):
            raise InvalidOption(
                "thresholds", f"{kind_of(self.thresholds)}: give a table such as {{'SCORE_THRESH': 0.4}}, or a file"
            )
        self.normalisation_rule  # noqa: B018 -- raises what is wrong with it

    @cached_property
    def normalisation_rule(self) -> Normalisation | None:
        """The normalisation; None where each image's depth decides."""
        given = self.normalisation
        if isinstance(given, str):
            return parse_normalisation(given)
        if given is not None and not isinstance(given, Normalisation):
            raise InvalidOption(
                "normalisation",
                f"{kind_of(given)}: give auto, as-is, percentile:LOW,HIGH,RANGE or a Normalisation",
            )
        return given


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How images are read, predicted and written.

    Attributes:
        formats: of the results, as ``--format`` takes them.
        plane: of a file, as ``read_microscopy_image`` takes it.
        channels: of a file, likewise.
        pixel_size: micrometres; 0: none, whatever the file says; None: what it says.
        batch: images, or tiles, predicted together.
        tile: side in pixels of the tiles that an image is predicted in, a multiple of the network's stride; None
            predicts it whole.
        overlap: of tiles in pixels, more than the largest object; "auto" measures objects in up to four tiles with
            much contrast (:func:`~pffnet_d2.inference.tiling.overlap_for`).

    Raises:
        InputError: a value is of another type or out of its range; a format is unknown, lacks its library or cannot be
            written in tiles.
    """

    formats: Sequence[str] = ("label-tiff",)
    plane: Mapping[str, int] | int | None = None
    channels: Sequence[int] | None = None
    pixel_size: float | None = None
    batch: int = 1
    tile: int | None = None
    overlap: int | str = "auto"

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {"batch": self.batch}
        if self.tile is not None:
            numbers["tile"] = self.tile
        if self.overlap != "auto":
            numbers["overlap"] = self.overlap
        for name, value in numbers.items():
            if type(value) is not int:
                raise InvalidOption(name, f"{value!r}: give a whole number{' or auto' if name == 'overlap' else ''}")
        if self.batch < 1:
            raise InputError(f"batches of {self.batch}: must be at least 1")
        if isinstance(self.formats, str):
            raise InvalidOption("formats", f"{self.formats!r}: give a list, such as ['label-tiff', 'csv']")
        self.exporters  # noqa: B018 -- raises what is wrong with them
        if self.channels is not None and len(self.channels) not in (1, 3):
            listed = ",".join(map(str, self.channels))
            raise InvalidOption("channels", f"{listed}: give one (grey) or three (red, green, blue)")
        size = self.pixel_size
        if size is not None and not (is_number(size) and 0 <= size < float("inf")):
            raise InvalidOption("pixel_size", f"{size!r}: give micrometres a pixel, or 0 to measure in pixels")

    @cached_property
    def exporters(self) -> Formats:
        return choose(self.formats, streaming=self.tile is not None)

    def scale_of(self, found: tuple[float, float] | None) -> tuple[float, float] | None:
        """Height and width of a pixel in micrometres, of an image whose file says ``found``; None: not known."""
        size = found if self.pixel_size is None else (self.pixel_size, self.pixel_size)
        return size if size and size[0] else None


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions, ImageOptions):
    """Both."""

    def __post_init__(self) -> None:
        ModelOptions.__post_init__(self)
        ImageOptions.__post_init__(self)


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
