"""From an image to its label map: one object for scripts and for the command line."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray

from pffnet_d2.config import override, read_config
from pffnet_d2.config_values import check_value, check_values
from pffnet_d2.data.augmentation import build_augmentations
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.lazy import Sliceable
from pffnet_d2.imaging.microscopy import parse_normalisation, read_micrograph
from pffnet_d2.imaging.read import BY_DEPTH, Normalisation, to_rgb8
from pffnet_d2.inference import caps
from pffnet_d2.inference.large import LargePrediction, Model, Plan, check_tiles, predict_large
from pffnet_d2.inference.modality import unlike_fluorescence
from pffnet_d2.masks.compose import LabelMapRule, label_map_and_indices
from pffnet_d2.model_zoo.checkpoint import Checkpointer
from pffnet_d2.model_zoo.find import DEFAULT, find_model
from pffnet_d2.modeling.build import build_network
from pffnet_d2.modeling.tta import for_inference

# Scores an Instances may hold, in the order of the columns of exports.
SCORES = {"score": "scores", "class_score": "class_scores", "mask_quality": "mask_quality"}

# Pixels of an enlarged image. On a CPU the compact PFFNet takes some 200 bytes a pixel: 7 GB.
MAX_ENLARGED = 1 << 25


@dataclass(frozen=True)
class Prediction:
    """What was found in one image."""

    label_map: NDArray[np.int32]  # (H, W), 0 background, ids 1..n, 1 the most confident
    capped: tuple[str, ...]  # caps that were reached, so that objects may be missing, as KEY VALUE of the config
    instances: Instances  # n on the CPU, the i-th that of label i + 1; ``pred_masks`` as ROI masks, uncut by others

    @property
    def scores(self) -> dict[str, NDArray[np.float32]]:
        """(n,) columns: score (what orders), class_score and mask_quality where the model has them."""
        fields = {key: name for key, name in SCORES.items() if self.instances.has(name)}
        return {key: self.instances.get(name).numpy().astype(np.float32) for key, name in fields.items()}


class Predictor:
    """A trained model and the rule that makes label maps of what it finds.

        predictor = Predictor()  # the model that comes with the package
        predictor = Predictor(model="output/mine")  # a folder with config.yaml and model_final.pth
        predictor = Predictor("configs/bbbc039/PFFNet_R18_FPN.yaml", "model_final.pth")
        label_map = predictor("plate_A01.tif").label_map

    Images pass through the normalisation of training (MODEL.PFFNET.NORMALISATION) unless
    another is given; ``invert`` shows the network dark objects on a bright ground as bright ones. The caps of the
    config on proposals and detections are multiplied for images larger than those of training
    (MODEL.PFFNET.CAPS_AREA). On a CPU, making one turns denormal numbers off for the process
    (``torch.set_flush_denormal``).
    """

    def __init__(
        self,
        config: CfgNode | str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        diameter: float | None = None,
        device: str | None = None,
        thresholds: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        normalisation: Normalisation | str | None = None,
        invert: bool = False,
        opts: Sequence[str] = (),
    ) -> None:
        """
        Args:
            config: a merged config (not changed), or a yaml file; None takes ``model``.
            weights: a checkpoint; None takes MODEL.WEIGHTS.
            model: instead of config and weights: a folder that training or `pffnet pack` wrote, or the name of a model
                that comes with the package; None takes its only one, "nuclei".
            diameter: mean diameter of the objects in pixels, 2 sqrt(area / pi): images pass through the network
                enlarged or reduced to the diameter that it knows (MODEL.PFFNET.DIAMETER), and results are of the
                original size. None leaves images as they are.
            device: "cpu", "cuda", "cuda:1"; None takes MODEL.DEVICE, which is CUDA where there is one.
            thresholds: keys of MODEL.PFFNET.LABEL_MAP to override, such as {"SCORE_THRESH": 0.4, "MASK_THRESH": 0.5},
                or a yaml file of them, as it is or as `pffnet thresholds` writes it.
            normalisation: for all images, instead of what each one's depth gets; a string as ``--normalisation`` takes
                it, such as "as-is" or "percentile:1,99".
            invert: show the network inverted grey values: for dark objects on a bright ground.
            opts: KEY VALUE pairs that override a config file.

        Raises:
            InputError: a file cannot be read, a key is unknown or its value out of range, the weights do not belong to
                the config, there is no such device; the model's files are missing or damaged, or its diameter is
                unknown; an argument is of another type.
        """
        for name, given in {"weights": weights, "model": model}.items():
            if not isinstance(given, (str, os.PathLike, type(None))):
                raise InputError(f"{name} {_kind(given)}: give the path of a file or folder")
        packed = config is None
        if config is None:
            if weights is not None:
                raise InputError(f"{os.fspath(weights)}: weights without a config; give the one of their training too")
            found = find_model(DEFAULT if model is None else model)
            config, weights = found.config, found.weights
        elif model is not None:
            raise InputError(f"model {os.fspath(model)} and a config: give one of them")
        cfg = _config(config, opts)
        if device is not None:
            cfg.MODEL.DEVICE = str(device)
        elif packed and "MODEL.DEVICE" not in opts:  # where it was trained there may have been another device
            cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(cfg.MODEL.DEVICE)
        if thresholds is not None:
            _override(cfg.MODEL.PFFNET.LABEL_MAP, thresholds)
        if weights is not None:
            cfg.MODEL.WEIGHTS = os.fspath(weights)
        if not cfg.MODEL.WEIGHTS:
            raise InputError("no weights; give those that were trained with this config (--weights FILE)")
        cfg.freeze()
        self.cfg = cfg
        self.scale = _scale(cfg, diameter)
        rule = _normalisation(normalisation) or BY_DEPTH[cfg.MODEL.PFFNET.NORMALISATION]
        self.normalisation = replace(rule, invert=True) if invert else rule
        self.rule = LabelMapRule.from_config(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            # Activations near zero otherwise become denormal numbers, on which CPUs are many times slower.
            torch.set_flush_denormal(True)
        network: Any = build_network(cfg)
        Checkpointer(network).load(cfg.MODEL.WEIGHTS)
        network.eval()
        self._stride = int(getattr(getattr(network, "backbone", None), "size_divisibility", 0) or 1)
        self.model = for_inference(network, cfg)
        self._resize = T.AugmentationList(build_augmentations(cfg, is_train=False))

    def __call__(self, image: NDArray[Any] | str | os.PathLike[str]) -> Prediction:
        """Predict one image; a Python warning says where the model was not made for such images, and where a cap on
        proposals or detections was reached.

        Args:
            image: (H, W) grey or (H, W, 3) RGB (an alpha channel is dropped) of any depth, or a file.

        Raises:
            InputError: the file cannot be read; the array is no image, or is no array; values that are not finite; see
                ``network_size``.
        """
        _check_image(image)
        if isinstance(image, (str, os.PathLike)):
            name, pixels = os.fspath(image), read_micrograph(Path(image)).pixels
        else:
            name, pixels = "the image", np.asarray(image)
        rgb = self.normalise(pixels)
        (prediction,) = self.predict([rgb])
        for line in filter(None, (self.doubt(rgb), caps.warning(prediction.capped))):
            warnings.warn(f"{name}: {line}", stacklevel=2)
        return prediction

    def doubt(self, rgb: NDArray[np.uint8]) -> str:
        """Why the model was not made for a normalised image, and what to do, in one line; "" where it may be."""
        return unlike_fluorescence(rgb, self.normalisation.invert) if self.cfg.MODEL.PFFNET.IMAGES else ""

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which an image passes through the network, for the diameter that was given.

        Raises:
            InputError: beyond MAX_ENLARGED pixels, or no object of that diameter fits into the image.
        """
        if self.scale == 1:
            return height, width
        diameter = self.cfg.MODEL.PFFNET.DIAMETER / self.scale
        if diameter > max(height, width):
            raise InputError(f"no object of diameter {diameter:g} fits into {height} x {width} pixels; give a smaller")
        enlarged = height * self.scale, width * self.scale
        if self.scale > 1 and enlarged[0] * enlarged[1] > MAX_ENLARGED:
            raise InputError(
                f"at diameter {diameter:g} the network would see its {height} x {width} pixels as {enlarged[0]:.0f} x "
                f"{enlarged[1]:.0f}, more than {MAX_ENLARGED:,}; give a larger diameter or cut the image"
            )
        return max(round(enlarged[0]), 1), max(round(enlarged[1]), 1)

    def normalise(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB as the network sees it. Raises InputError as ``to_rgb8``."""
        return to_rgb8(pixels, self.normalisation)

    @torch.no_grad()
    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Predict normalised images, (H, W, 3) uint8 RGB; those of the same size run as one batch.

        Raises:
            InputError: an image is none of those; see ``network_size``.
        """
        for image in images:
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
                raise InputError(f"{_kind(image)}: predict takes (H, W, 3) uint8 arrays, as normalise() makes them")
        found: dict[int, Prediction] = {}
        for group in _of_equal_size(images):
            inputs = [self._input(images[i]) for i in group]
            factor = caps.factor_for(self.cfg, *inputs[0]["image"].shape[-2:])
            with caps.scaled_caps(self.model, self.cfg, factor) as reached:
                outputs = self.model(inputs)
            for place, (i, output) in enumerate(zip(group, outputs, strict=True)):
                instances = output["instances"]
                label_map, kept = label_map_and_indices(instances, self.rule)
                index = torch.tensor(kept, dtype=torch.int64, device=instances.scores.device)
                capped = reached.of_image(place, len(group), instances)
                found[i] = Prediction(label_map, capped, instances[index].to("cpu"))
        return [found[i] for i in range(len(images))]

    def predict_large(
        self,
        image: Sliceable | str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        name: str | None = None,
        tile: int = 1024,
        overlap: int | str = "auto",
        formats: Sequence[str] = ("label-tiff",),
        plane: Mapping[str, int] | int | None = None,
        channels: Sequence[int] | None = None,
        pixel_size: float | None = None,
        batch: int = 1,
    ) -> LargePrediction:
        """Predict an image in overlapping tiles, in memory that does not grow with it, and write what is found.

        Called again after it was interrupted, it goes on: tiles that were finished are kept in OUT/NAME.tiles until the
        results are whole.

        Args:
            image: a file (TIFF is read in parts), or anything (H, W) or (H, W, C) that slices like an array: memory
                maps, zarr, dask.
            out: folder of the results.
            name: of the results, a path below ``out`` without ending; None takes that of the file, or "image".
            tile: side of the tiles in pixels, a multiple of the network's stride.
            overlap: of tiles in pixels, more than the largest object; "auto" measures objects in up to four tiles with
                much contrast (:func:`~pffnet_d2.inference.tiling.overlap_for`).
            formats: of label-tiff, geojson, csv, overlay (reduced to at most 2048 pixels a side).
            plane: of a file, as ``read_micrograph`` takes it.
            channels: of a file, likewise.
            pixel_size: micrometres; 0: none, whatever the file says; None: what it says.
            batch: tiles predicted together.

        Raises:
            InputError: as :func:`pffnet_d2.inference.large.predict_large`; images are resized before prediction; the
                device has too little memory for a tile.
        """
        _check_image(image)
        for key, value in {"tile": tile, "batch": batch, **({} if overlap == "auto" else {"overlap": overlap})}.items():
            if type(value) is not int:
                raise InputError(f"{key} {value!r}: give a whole number{' or auto' if key == 'overlap' else ''}")
        self.check_tiles(tile, overlap)
        if isinstance(formats, str):
            raise InputError(f"formats {formats!r}: give a list, such as ['label-tiff', 'csv']")
        if pixel_size is not None and not (_is_number(pixel_size) and 0 <= pixel_size < float("inf")):
            raise InputError(f"pixel_size {pixel_size!r}: give micrometres a pixel, or 0 to measure in pixels")
        if name is None:
            name = (Path(image).stem if isinstance(image, (str, os.PathLike)) else "") or "image"
        if not isinstance(name, str) or not PurePath(name).name or ".." in PurePath(name).parts or "\0" in name:
            raise InputError(f"name {name!r}: give a path below {os.fspath(out)}, without ..")
        if PurePath(name).is_absolute():
            raise InputError(f"name {name!r}: give a path below {os.fspath(out)}, not an absolute one")
        plan = Plan(Path(out), name, tile, overlap, tuple(formats), plane, channels, pixel_size, batch)
        model = Model(self._predict_tiles, self._identity(), self._stride, self.normalisation, self.doubt)
        return predict_large(model, image, plan)

    def check_tiles(self, tile: int, overlap: int | str) -> None:
        """Raises InputError where this model cannot predict in such tiles."""
        if self.cfg.INPUT.MIN_SIZE_TEST:
            raise InputError(
                f"INPUT.MIN_SIZE_TEST {self.cfg.INPUT.MIN_SIZE_TEST} would resize every tile on its own; "
                "set it to 0 (--opts INPUT.MIN_SIZE_TEST 0) and give images at the scale of training"
            )
        check_tiles(tile, overlap, self._stride)

    def _predict_tiles(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        try:
            return self.predict(images)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise InputError(
                f"{self.cfg.MODEL.DEVICE} has too little memory for {len(images)} tiles of "
                f"{images[0].shape[0]} x {images[0].shape[1]}; use a smaller --tile or --batch"
            ) from None

    def _identity(self) -> str:
        """Differs where weights or configuration do; not where only their places do."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""
        cfg.MODEL.DEVICE = cfg.MODEL.DEVICE.partition(":")[0]
        digest = hashlib.sha256(f"{cfg.dump()} scale {self.scale}".encode())
        for key, value in self.model.state_dict().items():
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _input(self, rgb: NDArray[np.uint8]) -> dict[str, Any]:
        """What the mapper makes of a file."""
        height, width = rgb.shape[:2]
        given = T.AugInput(rgb if self.cfg.INPUT.FORMAT == "RGB" else rgb[:, :, ::-1])
        if self.scale == 1:
            self._resize(given)
        else:  # bilinear; a reduced image is averaged over the pixels that become one
            given.transform(T.ResizeTransform(height, width, *self.network_size(height, width)))
        tensor = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width, "normalised": True}


def _of_equal_size(images: Sequence[NDArray[Any]]) -> Iterator[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    yield from groups.values()


def _scale(cfg: CfgNode, diameter: float | None) -> float:
    """By which images are enlarged so that objects get the diameter the model knows."""
    if diameter is None:
        return 1.0
    if not _is_number(diameter) or not 0 < diameter < float("inf"):
        raise InputError(f"diameter {diameter}: give the mean diameter of the objects in pixels")
    if cfg.MODEL.PFFNET.DIAMETER <= 0:
        raise InputError(
            f"diameter {diameter:g}: the config does not say that of the objects in training; add "
            "--opts MODEL.PFFNET.DIAMETER 24.0, or what their mean diameter was"
        )
    for key, side in {"MIN_SIZE_TEST": cfg.INPUT.MIN_SIZE_TEST, "SQUARE.TEST": cfg.INPUT.SQUARE.TEST}.items():
        if side:
            raise InputError(f"diameter {diameter:g}: INPUT.{key} resizes images already; set it to 0")
    return float(cfg.MODEL.PFFNET.DIAMETER) / diameter


def check_device(device: str) -> None:
    """Raises InputError where torch has no such device."""
    try:
        torch.zeros(1, device=device).cpu()  # a device that only makes believe, such as meta, has nothing to return
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise InputError(f"device {device or repr(device)}: cannot be used here; there is {here}") from error


def _config(config: Any, opts: Sequence[str]) -> CfgNode:
    """A config of its own, checked."""
    if not isinstance(config, CfgNode):
        if not isinstance(config, (str, os.PathLike)):
            raise InputError(
                f"config {_kind(config)}: give the path of a yaml file, or a config of Detectron2's get_cfg()"
            )
        return read_config(os.fspath(config), opts)
    if "PFFNET" not in config.MODEL:
        raise InputError("the config has no MODEL.PFFNET; call pffnet_d2.add_pffnet_config(cfg) before merging files")
    cfg = config.clone()
    cfg.defrost()
    override(cfg, opts)
    check_values(cfg, opts=opts)
    return cfg


def _normalisation(given: Normalisation | str | None) -> Normalisation | None:
    """None where each image's depth decides."""
    if isinstance(given, str):
        return parse_normalisation(given)
    if given is not None and not isinstance(given, Normalisation):
        raise InputError(
            f"normalisation {_kind(given)}: give auto, as-is, percentile:LOW,HIGH,RANGE or a Normalisation"
        )
    return given


def _check_image(image: Any) -> None:
    """Raises InputError for what is neither a path nor an array of real numbers, in memory or read as it is sliced."""
    if isinstance(image, (str, os.PathLike)):
        return
    try:
        kind = np.dtype(image.dtype).kind
        if isinstance(image, np.generic) or not hasattr(image, "shape"):
            raise TypeError
    except (AttributeError, TypeError):
        raise InputError(
            f"the image is {_kind(image)}: give a numpy array, (H, W) or (H, W, 3), or the path of a file"
        ) from None
    if kind not in "buif":
        raise InputError(f"an image of {image.dtype} values: give whole or floating numbers")


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _override(node: CfgNode, thresholds: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Set keys of MODEL.PFFNET.LABEL_MAP, each of the type it has."""
    name = "thresholds"
    if not isinstance(thresholds, Mapping):
        if not isinstance(thresholds, (str, os.PathLike)):
            raise InputError(f"thresholds {_kind(thresholds)}: give a table such as {{'SCORE_THRESH': 0.4}}, or a file")
        name = os.fspath(thresholds)
        try:
            thresholds = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror}); check the path") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{name}: is no yaml; give lines such as SCORE_THRESH: 0.4") from error
        if not isinstance(thresholds, dict):
            raise InputError(f"{name}: holds no keys; give lines such as SCORE_THRESH: 0.4")
        if "MODEL" in thresholds:  # as `pffnet thresholds` writes it, a config of the two keys
            try:
                thresholds = dict(thresholds["MODEL"]["PFFNET"]["LABEL_MAP"])
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"{name}: has no MODEL.PFFNET.LABEL_MAP; give the file of `pffnet thresholds`"
                ) from None
    for key, value in thresholds.items():
        if key not in node:
            raise InputError(f"{name}: unknown key {key}; use {', '.join(sorted(node))}")
        if isinstance(node[key], bool):
            if not isinstance(value, bool):
                raise InputError(f"{name}: {key} {value!r}: give true or false")
            node[key] = value
            continue
        if isinstance(node[key], int) and isinstance(value, float) and value.is_integer():
            value = int(value)
        check_value(f"MODEL.PFFNET.LABEL_MAP.{key}", value, f"{name}: {key}")
        node[key] = type(node[key])(value)
