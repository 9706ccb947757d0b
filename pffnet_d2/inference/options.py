"""The options of a prediction, in one object that is passed from the command line to the tiles of a large image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pffnet_d2.config import is_config
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import Normalisation, parse_normalisation
from pffnet_d2.imaging.scene import ALL, Selection
from pffnet_d2.inference.export import Formats, choose
from pffnet_d2.inference.export.measure import Measures
from pffnet_d2.model_zoo.find import onnx_form

if TYPE_CHECKING:
    from detectron2.config import CfgNode

AnyPath = str | os.PathLike[str]
AUTO = "auto"  # as diameter: that of the objects in each image
PRECISIONS = ("auto", "float32", "bfloat16")


class InvalidOption(InputError):
    """An option has an invalid value. The command line names the option as the user types it."""

    def __init__(self, option: str, fault: str) -> None:
        super().__init__(f"{option} {fault}")
        self.option, self.fault = option, fault


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model that predicts, and how it sees images.

    Attributes:
        config: a merged config (not changed), or a YAML file; None uses ``model``.
        weights: a checkpoint; None uses MODEL.WEIGHTS.
        model: replaces config and weights: a folder that training or `pffnet package` wrote, an ONNX file that
            `pffnet export` wrote, or the name of a model that comes with the package; None uses "nuclei", the only such
            model.
        diameter: mean diameter of the objects in pixels, 2 sqrt(area / pi). Images are resized so that objects have
            the diameter that the network was trained on (MODEL.PFFNET.DIAMETER); results have the original size. None
            does not resize images. "auto" measures the objects of each image in a first pass.
        match_pixel_size: resize each image so that its pixels have the size of those that the network was trained on
            (MODEL.PFFNET.PIXEL_SIZE); results have the original size. Not with ``diameter``.
        device: "cpu", "cuda", "cuda:1"; None uses MODEL.DEVICE, or the CPU if that is a CUDA device and the machine
            has none.
        precision: of convolutions and matrix products: "float32", "bfloat16" or "auto", which is bfloat16 if the device
            is faster in it. Results in bfloat16 differ slightly.
        thresholds: keys of MODEL.PFFNET.LABEL_MAP to override, such as {"SCORE_THRESH": 0.4, "MASK_THRESH": 0.5}, or a
            YAML file of such keys, plain or as `pffnet thresholds` writes it.
        normalisation: for all images, instead of the one that fits the depth of each; a string has the form of
            ``--normalisation``, such as "as-is" or "percentile:1,99".
        invert: invert the grey values that the network sees, for dark objects on a bright background.
        opts: KEY VALUE pairs that override a config file.

    Raises:
        InputError: a value has the wrong type or is out of range; two options exclude each other.
    """

    config: CfgNode | AnyPath | None = None
    weights: AnyPath | None = None
    model: AnyPath | None = None
    diameter: float | str | None = None
    match_pixel_size: bool = False
    device: str | None = None
    precision: str = "float32"
    thresholds: Mapping[str, Any] | AnyPath | None = None
    normalisation: Normalisation | str | None = None
    invert: bool = False
    opts: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, given in {"weights": self.weights, "model": self.model}.items():
            if not isinstance(given, (str, os.PathLike, type(None))):
                raise InvalidOption(name, f"{kind_of(given)}: give the path of a file or folder")
        if self.config is None and self.weights is not None:
            raise InputError(f"{os.fspath(self.weights)}: weights without a config; give the config of their training")
        if self.config is not None and self.model is not None:
            raise InputError(f"model {os.fspath(self.model)} and a config: give one of them")
        if not (is_config(self.config) or isinstance(self.config, (str, os.PathLike, type(None)))):
            raise InputError(
                f"config {kind_of(self.config)}: give the path of a YAML file, or a config from Detectron2's get_cfg()"
            )
        diameter = self.diameter
        automatic = isinstance(diameter, str) and diameter == AUTO
        if diameter is not None and not automatic and not (is_number(diameter) and 0 < float(diameter) < float("inf")):
            raise InvalidOption("diameter", f"{diameter}: give the mean diameter of the objects in pixels, or auto")
        if self.precision not in PRECISIONS:
            raise InvalidOption(
                "precision", f"{self.precision!r}: give {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
            )
        if self.match_pixel_size and diameter is not None:
            raise InvalidOption("match_pixel_size", f"and diameter {diameter}: both resize images; give one of them")
        if not isinstance(self.thresholds, (Mapping, str, os.PathLike, type(None))):
            raise InvalidOption(
                "thresholds", f"{kind_of(self.thresholds)}: give a table such as {{'SCORE_THRESH': 0.4}}, or a file"
            )
        self.normalisation_rule  # noqa: B018 -- raises what is wrong with it

    @cached_property
    def onnx_file(self) -> Path | None:
        """The ONNX file that the model is predicted with; None if torch runs it."""
        return onnx_form(self.model) if self.config is None else None

    @cached_property
    def normalisation_rule(self) -> Normalisation | None:
        """The normalisation; None if the depth of each image decides."""
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
        formats: of the results, named as for ``--format``.
        plane, channels, scene, project, level: what is read of a file; see ``imaging.scene.Selection``. ``plane`` and
            ``scene`` may be "all" where each plane or image is an image of its own (``sources.find_sources``).
        pixel_size: side of a pixel in micrometres; 0 ignores the size that the file states; None uses it.
        batch: number of images, or tiles, that are predicted together.
        tile: side in pixels of the tiles that an image is predicted in, a multiple of the network's stride; None
            predicts the image as a whole.
        overlap: of tiles in pixels, more than the size of the largest object; "auto" measures objects in up to four
            tiles of high contrast (:func:`~pffnet_d2.inference.tiling.overlap_for`).
        tissue: "auto" leaves out tiles of background (:mod:`~pffnet_d2.inference.tissue`); None predicts all tiles.
        measure: what tables say of each object; None writes the columns of :func:`~.export.write_csv`.
        class_name: of the objects, in formats that name it.

    Raises:
        InputError: a value has the wrong type or is out of range; a format is unknown, lacks its library or cannot be
            written in tiles.
    """

    formats: Sequence[str] = ("label-tiff",)
    plane: Mapping[str, int] | int | str | None = None
    channels: Sequence[int | str] | None = None
    pixel_size: float | None = None
    batch: int = 1
    tile: int | None = None
    overlap: int | str = "auto"
    tissue: str | None = None
    scene: int | str | None = None
    project: str | None = None
    level: float | None = None
    measure: Measures | None = None
    class_name: str = "object"

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {"batch": self.batch}
        if self.tile is not None:
            numbers["tile"] = self.tile
        if self.overlap != "auto":
            numbers["overlap"] = self.overlap
        for name, value in numbers.items():
            if type(value) is not int:
                raise InvalidOption(name, f"{value!r}: give a whole number{' or auto' if name == 'overlap' else ''}")
        if self.tissue not in (None, "auto"):
            raise InvalidOption("tissue", f"{self.tissue!r}: give auto, or leave it out")
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
            raise InvalidOption("pixel_size", f"{size!r}: give micrometres per pixel, or 0 to measure in pixels")
        if isinstance(self.plane, str) and self.plane != ALL:
            raise InvalidOption("plane", f"{self.plane!r}: give a number from 0, axes and numbers, or 'all'")
        if self.project not in (None, "max"):
            raise InvalidOption("project", f"{self.project}: the only projection is max")
        self._check_level()
        if self.tile is not None and self.measure and self.measure.whole:
            raise InputError(f"--measure {self.measure.whole} needs the whole image; leave it out, or leave out --tile")
        if not self.class_name.strip():
            raise InvalidOption("class_name", "'': give a name, such as Nucleus")

    def _check_level(self) -> None:
        if self.level is None:
            return
        if not (is_number(self.level) and 0 < self.level < float("inf")):
            raise InvalidOption("level", f"{self.level!r}: give the size of a pixel in micrometres, such as 0.5")
        if self.pixel_size is not None:
            raise InputError("--level and --pixel-size: levels are chosen by the size that the file states; give one")

    @property
    def measures_channels(self) -> bool:
        """Whether tables contain grey values of every channel of the file."""
        measure = self.measure
        return measure is not None and bool(measure.intensities or measure.ring)

    def selection(self) -> Selection:
        """What is read of a file. Raises InputError if that is several images."""
        if isinstance(self.plane, str) or self.scene == ALL:
            raise InputError("all planes or images of a file are several images; predict them with `pffnet predict`")
        return Selection(
            plane=self.plane, channels=self.channels, scene=self.scene, project=self.project, level=self.level
        )

    @cached_property
    def exporters(self) -> Formats:
        return choose(self.formats, streaming=self.tile is not None)

    def scale_of(self, found: tuple[float, float] | None) -> tuple[float, float] | None:
        """Height and width of a pixel in micrometres, given the size ``found`` in the file; None if it is unknown."""
        size = found if self.pixel_size is None else (self.pixel_size, self.pixel_size)
        return size if size and size[0] else None


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions, ImageOptions):
    """The options of the model and of the images together."""

    def __post_init__(self) -> None:
        ModelOptions.__post_init__(self)
        ImageOptions.__post_init__(self)
        if self.match_pixel_size and self.pixel_size == 0:
            raise InvalidOption("match_pixel_size", "needs the size of a pixel, and pixel_size 0 ignores it; change it")


def kind_of(value: Any) -> str:
    """The type of a value, in words for messages."""
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
