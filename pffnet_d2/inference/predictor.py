"""Predicts the label map of an image. Scripts and the command line use the same class."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2 import env
from pffnet_d2.errors import DeviceMemoryError, InputError
from pffnet_d2.imaging.lazy import Sliceable
from pffnet_d2.imaging.microscopy import MicroscopyImage, read_microscopy_image
from pffnet_d2.imaging.normalisation import BY_DEPTH, normalisation_of, to_rgb8
from pffnet_d2.inference import caps
from pffnet_d2.inference.backend import Backend
from pffnet_d2.inference.large import LargePrediction, Progress, TileModel, check_tiles, predict_large
from pffnet_d2.inference.modality import UNLIKE, lost_contrast
from pffnet_d2.inference.options import AUTO, ImageOptions, ModelOptions, kind_of
from pffnet_d2.inference.own_scale import doubt_about_size, own_scale
from pffnet_d2.masks.compose import label_map_and_indices

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# Scores an Instances may hold, in the order of the columns of exports.
SCORES = {"score": "scores", "class_score": "class_scores", "mask_quality": "mask_quality"}

# Most pixels of an enlarged image. The compact PFFNet needs about 200 bytes per pixel on a CPU, which makes 7 GB.
MAX_ENLARGED = 1 << 25


@dataclass(frozen=True)
class Prediction:
    """What was found in one image."""

    label_map: NDArray[np.int32]  # (H, W), 0 background, ids 1..n, 1 the most confident
    capped: tuple[str, ...]  # caps that were reached, so that objects may be missing, as KEY VALUE of the config
    # Detectron2's Instances, or ``onnx_backend.Detections`` of a model in ONNX: n on the CPU; entry i belongs to label
    # i + 1; ``pred_masks``: ROI masks, which may overlap
    instances: Any

    @property
    def scores(self) -> dict[str, NDArray[np.float32]]:
        """Columns (n,): score, by which objects are ordered, and class_score and mask_quality if the model has them."""
        fields = {key: name for key, name in SCORES.items() if self.instances.has(name)}
        return {key: np.asarray(self.instances.get(name), np.float32) for key, name in fields.items()}


class Predictor:
    """A trained model, with the rule that turns its detections into label maps.

        predictor = Predictor()  # the model that comes with the package
        predictor = Predictor(model="output/mine")  # a folder with config.yaml and model_final.pth
        predictor = Predictor(model="model.onnx")  # a file of `pffnet export`, which needs neither torch nor Detectron2
        predictor = Predictor("configs/bbbc039/PFFNet_R18_FPN.yaml", "model_final.pth")
        label_map = predictor("plate_A01.tif").label_map

    Images are normalised as in training (MODEL.PFFNET.NORMALISATION) unless another normalisation is given. With
    ``invert``, dark objects on a bright background become bright objects on a dark one. For images larger than those
    of training (MODEL.PFFNET.CAPS_AREA), the config's caps on proposals and detections are raised.
    """

    def __init__(
        self,
        config: CfgNode | str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        *,
        options: ModelOptions | None = None,
        **others: Any,
    ) -> None:
        """
        Args:
            config: a merged config (not changed), or a YAML file; None uses ``model``, or the model that comes with
                the package.
            weights: a checkpoint; None uses MODEL.WEIGHTS.
            options: all options in one object, instead of the other arguments.
            others: ``model``, ``diameter``, ``match_pixel_size``, ``device``, ``precision``, ``thresholds``,
                ``normalisation``, ``invert`` and ``opts``; see :class:`~pffnet_d2.inference.options.ModelOptions`.

        Raises:
            ImportError: something that the model needs is not installed; the message says how to install it.
            InputError: a file cannot be read; a key is unknown or its value is out of range; the weights do not belong
                to the config; the device does not exist; the model's files are missing or damaged, or its diameter or
                pixel size is unknown; an argument has the wrong type.
        """
        if options is None:
            options = ModelOptions(config=config, weights=weights, **others)
        elif config is not None or weights is not None or others:
            raise TypeError("give either options or the other arguments")
        self.backend = _loaded(options)
        self.facts = self.backend.facts
        self.own_scale = options.diameter == AUTO
        self.scale = self.facts.scale_for(options.diameter)
        self.matching, self.matched = options.match_pixel_size, ""
        if self.matching:
            self.facts.check_matching()
        rule = options.normalisation_rule or BY_DEPTH[self.facts.normalisation]
        self.normalisation = replace(rule, invert=True) if options.invert else rule
        self.rule = self.facts.rule

    @property
    def cfg(self) -> CfgNode:
        """The config, frozen. A model in ONNX has none."""
        return self.backend.cfg  # type: ignore[attr-defined]

    @property
    def model(self) -> Any:
        """The network, a torch module that takes Detectron2's input dicts. A model in ONNX has none."""
        return self.backend.model  # type: ignore[attr-defined]

    @property
    def precision(self) -> str:
        """In which the network computes, "float32" or "bfloat16"."""
        return self.backend.precision

    def __call__(self, image: NDArray[Any] | str | os.PathLike[str]) -> Prediction:
        """Predict one image. Issues a Python warning if the model was not made for such images or objects of that
        size, or if a cap on proposals or detections was reached.

        Args:
            image: (H, W) grey or (H, W, 3) RGB (an alpha channel is dropped) of any depth, or a file.

        Raises:
            InputError: the file cannot be read; the argument is not an array, or not an image; values are not finite;
                see ``network_size``.
        """
        _check_image(image)
        if isinstance(image, (str, os.PathLike)):
            name, read = os.fspath(image), read_microscopy_image(Path(image))
        else:
            name, read = "the image", MicroscopyImage(np.asarray(image))
        pixels = read.pixels
        rgb = self.normalise(pixels)
        try:
            predictor = self.for_pixels(read.pixel_size)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        (prediction,) = predictor.predict([rgb])
        for line in self.warnings_of(pixels, rgb, prediction):
            warnings.warn(f"{name}: {line}", stacklevel=2)
        return prediction

    def warnings_of(self, pixels: NDArray[Any], rgb: NDArray[np.uint8], prediction: Prediction) -> list[str]:
        """One line for each reason why the prediction of an image may be unreliable, and what to do.

        Args:
            pixels: of the file; ``rgb``: the same, normalised.
        """
        lines = (
            self.doubt_of(pixels, rgb),
            self.doubt_about_size(prediction.label_map),
            caps.warning(prediction.capped),
        )
        return [line for line in lines if line]

    def doubt(self, rgb: NDArray[np.uint8]) -> str:
        """One line that says why the model does not suit a normalised image and what to do; "" if it may suit."""
        return UNLIKE[self.facts.images](rgb, self.normalisation.invert)

    def doubt_of(self, pixels: NDArray[Any], rgb: NDArray[np.uint8]) -> str:
        """Like ``doubt``, but also says if the normalisation removed the contrast of the pixels of a file."""
        return lost_contrast(pixels, rgb, normalisation_of(pixels, self.normalisation)) or self.doubt(rgb)

    def doubt_about_size(self, label_map: NDArray[np.int32]) -> str:
        """One line that says that the objects found are far from the size that the model knows; "" if they are not, or
        if images are resized."""
        resized = self.own_scale or self.matched or self.scale != 1 or self.facts.min_size or self.facts.square
        return "" if resized else doubt_about_size(label_map, self.facts.diameter)

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which an image passes through the network, for the diameter or the size of pixels that
        was given.

        Raises:
            InputError: the enlarged image has more than MAX_ENLARGED pixels, or an object of that diameter does not
                fit into the image.
        """
        if self.scale == 1:
            return height, width
        if self.matched:
            return self._matched_size(height, width)
        diameter = self.facts.diameter / self.scale
        if diameter > max(height, width):
            raise InputError(
                f"no object of diameter {diameter:g} fits into {height} x {width} pixels; give a smaller diameter"
            )
        enlarged = height * self.scale, width * self.scale
        if self.scale > 1 and enlarged[0] * enlarged[1] > MAX_ENLARGED:
            raise InputError(
                f"at diameter {diameter:g} the network would see its {height} x {width} pixels as {enlarged[0]:.0f} x "
                f"{enlarged[1]:.0f}, more than {MAX_ENLARGED:,}; give a larger diameter or cut the image"
            )
        return max(round(enlarged[0]), 1), max(round(enlarged[1]), 1)

    def _matched_size(self, height: int, width: int) -> tuple[int, int]:
        seen = max(round(height * self.scale), 1), max(round(width * self.scale), 1)
        least = self.facts.diameter or self.facts.stride
        fault = "too small for an object" if max(seen) < least else ""
        if self.scale > 1 and seen[0] * seen[1] > MAX_ENLARGED:
            fault = f"more than {MAX_ENLARGED:,}"
        if fault:
            raise InputError(
                f"{self.matched}: the network would see its {height} x {width} pixels as {seen[0]} x {seen[1]}, "
                f"{fault}; check the size of its pixels (--pixel-size), or leave --match-pixel-size out"
            )
        return seen

    def at_scale(self, scale: float) -> Predictor:
        """The same model, which sees images enlarged by this factor."""
        other = copy.copy(self)
        other.scale, other.own_scale, other.matching = scale, False, False
        other.__dict__.pop("identity", None)
        return other

    def for_pixels(self, size: tuple[float, float] | None) -> Predictor:
        """The model as it sees an image whose pixels have this size: with ``match_pixel_size``, enlarged so that they
        have that of training; otherwise this predictor.

        Args:
            size: height and width of a pixel in micrometres; None if it is not known.

        Raises:
            InputError: it is not known, or pixels are not square.
        """
        if not self.matching:
            return self
        other = self.at_scale(self.facts.scale_for_pixels(size))
        other.matched = (
            f"{self.facts.pixel_size * other.scale:.4g} um per pixel, resized {other.scale:.3g} times to the model's "
            f"{self.facts.pixel_size:.4g} um"
        )
        return other

    def normalise(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB as the network sees it. Raises InputError like ``to_rgb8``."""
        return to_rgb8(pixels, self.normalisation)

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Predict normalised images, (H, W, 3) uint8 RGB. Images of the same size run as one batch.

        Raises:
            InputError: an image is not such an array; see ``network_size``; with ``match_pixel_size``, the size of the
                pixels was not given (``for_pixels``).
        """
        if self.matching:
            raise InputError("match_pixel_size: give the size of a pixel, as in predictor.for_pixels((0.5, 0.5))")
        for image in images:
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
                raise InputError(f"{kind_of(image)}: predict takes (H, W, 3) uint8 arrays, as normalise() makes them")
        if self.own_scale:
            return self._predict_at_own_scale(images)
        found: dict[int, Prediction] = {}
        for group in _of_equal_size(images):
            size = None if self.scale == 1 else self.network_size(*images[group[0]].shape[:2])
            detected = self.backend.detect([images[i] for i in group], size, self.rule.score_threshold)
            for i, each in zip(group, detected, strict=True):
                label_map, kept = label_map_and_indices(each.instances, self.rule)
                found[i] = Prediction(label_map, each.capped, self.backend.chosen(each.instances, kept))
        return [found[i] for i in range(len(images))]

    def _predict_at_own_scale(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Predict each image a second time, at the scale that the objects of a first pass ask for. The first pass
        stands if the second would need an image that is too large (``network_size``)."""
        own_size = self.at_scale(1.0)
        found = own_size.predict(images)
        for i, image in enumerate(images):
            scale = own_scale(found[i].label_map, self.facts.diameter)
            if scale == 1:
                continue
            scaled = self.at_scale(scale)
            try:
                scaled.network_size(*image.shape[:2])
            except InputError:
                continue
            found[i] = scaled.predict([image])[0]
        return found

    def predict_large(
        self,
        image: Sliceable | str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        name: str | None = None,
        options: ImageOptions | None = None,
        progress: Progress = lambda done, total: None,
        **others: Any,
    ) -> LargePrediction:
        """Predict an image in overlapping tiles and write the results. The memory needed does not grow with the image.

        To resume after an interruption, call it again: finished tiles are kept in OUT/NAME.tiles until the results are
        complete.

        Args:
            image: a file (TIFF is read in parts), or any object (H, W) or (H, W, C) that slices like an array, such as
                a memory map, zarr or dask array.
            out: folder for the results.
            name: of the results, a path below ``out`` without a file extension; None uses the name of the file, or
                "image".
            options: all options in one object, instead of ``others``.
            progress: called with the number of predicted tiles and of all; an exception that it raises ends the run
                (see :data:`pffnet_d2.inference.large.Progress`).
            others: ``tile`` (1024 unless given), ``overlap``, ``formats`` (among label-tiff, overlay, geojson, csv; an
                overlay is reduced until its longer side has at most 2048 pixels), ``plane``, ``channels``,
                ``pixel_size`` and ``batch``; see :class:`~pffnet_d2.inference.options.ImageOptions`.

        Raises:
            InputError: see :func:`pffnet_d2.inference.large.predict_large`; the config resizes images before
                prediction; the device has too little memory for a tile.
        """
        _check_image(image)
        if options is None:
            options = ImageOptions(**{"tile": 1024, **others})
        elif others:
            raise TypeError("give either options or the other arguments")
        self.check_tiles(options)
        if name is None:
            name = (Path(image).stem if isinstance(image, (str, os.PathLike)) else "") or "image"
        _check_name(name, out)
        return predict_large(self.tile_model(), image, Path(out), name, options, progress)

    def tile_model(self) -> TileModel:
        """The model as tiles of large images are predicted with it."""
        return TileModel(
            self._predict_tiles,
            self.identity,
            self.facts.stride,
            self.normalisation,
            self.doubt,
            self._resized,
            self.matched,
            self.precision,
            self._tile_model_for if self.matching else None,
        )

    def _tile_model_for(self, size: tuple[float, float] | None, tile: int) -> TileModel:
        matched = self.for_pixels(size)
        matched.network_size(tile, tile)
        return matched.tile_model()

    def check_tiles(self, options: ImageOptions) -> None:
        """Raises InputError if this model cannot predict in tiles of this size and overlap."""
        if options.tile is None:
            raise InputError("tile None: give a whole number")
        if self.own_scale:
            raise InputError("diameter auto measures objects in whole images; with tiles give the diameter in pixels")
        if self.facts.min_size:
            raise InputError(
                f"INPUT.MIN_SIZE_TEST {self.facts.min_size} would resize every tile on its own; "
                "set it to 0 (--opts INPUT.MIN_SIZE_TEST 0) and give images at the scale of training"
            )
        check_tiles(options.tile, options.overlap, self.facts.stride)

    def _resized(self, height: int, width: int) -> str:
        """One line that warns that tiles of this size are resized to a square; "" if they are not."""
        side = self.facts.square
        if not side or max(height, width) == side:
            return ""
        return (
            f"INPUT.SQUARE.TEST {side} resizes every tile of {width} x {height} pixels, so the network sees objects "
            f"{side / max(height, width):.2g} times as large; choose --tile as large as the images of training"
        )

    def _predict_tiles(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        try:
            return self.predict(images)
        except DeviceMemoryError:
            raise InputError(
                f"{self.backend.device} has too little memory for {len(images)} tiles of "
                f"{images[0].shape[0]} x {images[0].shape[1]}; use a smaller --tile or --batch"
            ) from None

    @cached_property
    def identity(self) -> str:
        """Differs between models whose results may differ. It does not depend on where their files are."""
        network = self.backend.identity(self.scale)
        by_image = AUTO if self.own_scale else "matches pixels" if self.matching else ""
        return f"{network} {by_image}".rstrip()


def _loaded(options: ModelOptions) -> Backend:
    """The model of the options. Only the libraries that it needs are imported."""
    if options.onnx_file is not None:
        from pffnet_d2.inference.onnx_backend import OnnxBackend

        return OnnxBackend(options.onnx_file, options)
    if problem := env.problem():
        raise ImportError(f"pffnet_d2.Predictor: {problem}")
    from pffnet_d2.inference.torch_backend import TorchBackend

    return TorchBackend(options)


def _of_equal_size(images: Sequence[NDArray[Any]]) -> Iterator[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    yield from groups.values()


def _check_image(image: Any) -> None:
    """Raises InputError unless the image is a path or an array of real numbers, in memory or read when sliced."""
    if isinstance(image, (str, os.PathLike)):
        return
    try:
        kind = np.dtype(image.dtype).kind
        if isinstance(image, np.generic) or not hasattr(image, "shape"):
            raise TypeError
    except (AttributeError, TypeError):
        raise InputError(
            f"the image is {kind_of(image)}: give a numpy array, (H, W) or (H, W, 3), or the path of a file"
        ) from None
    if kind not in "buif":
        raise InputError(f"an image of {image.dtype} values: give whole or floating numbers")


def _check_name(name: Any, out: str | os.PathLike[str]) -> None:
    """Raises InputError for an invalid name of results, or one outside the output folder."""
    if not isinstance(name, str) or not PurePath(name).name or ".." in PurePath(name).parts or "\0" in name:
        raise InputError(f"name {name!r}: give a path below {os.fspath(out)}, without ..")
    if PurePath(name).is_absolute():
        raise InputError(f"name {name!r}: give a path below {os.fspath(out)}, not an absolute one")
