"""Segments pixels: an array in, a label map and a table of features out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2 import env
from pffnet_d2.errors import InputError
from pffnet_d2.napari_plugin.progress import Report, Step

if TYPE_CHECKING:
    from pffnet_d2.inference.options import ModelOptions
    from pffnet_d2.inference.predictor import Predictor


@dataclass(frozen=True)
class Settings:
    """What the user chose. The fields have the meaning of those of ``ModelOptions`` and ``ImageOptions``."""

    model: str
    diameter: float | None = None
    threshold: float | None = None  # SCORE_THRESH; None: that of the model
    invert: bool = False
    tile: int | None = None


@dataclass(frozen=True)
class Segmentation:
    """What was found in an image."""

    label_map: NDArray[np.int32]  # (H, W), 0 background, ids 1..n
    features: dict[str, NDArray[Any]]  # columns (n,): ``index``, the label, then those of the csv
    warnings: tuple[str, ...]  # one line each


class Segmenter:
    """Segments images one after the other. Keeps the last model, because loading one takes seconds."""

    def __init__(self) -> None:
        self._loaded: tuple[ModelOptions, Predictor] | None = None

    def __call__(
        self, pixels: Any, settings: Settings, pixel_size: float | None, report: Report = lambda step: None
    ) -> Segmentation:
        """
        Args:
            pixels: (H, W) or (H, W, 3 or 4), an array or what slices like one (dask, zarr).
            settings: the model, and how it sees the image.
            pixel_size: side of a pixel in micrometres; None measures in pixels.
            report: called before the work, and after each tile.

        Raises:
            InputError: the model or the options cannot be used; the pixels are no image or not finite; something that
                prediction needs is not installed.
        """
        env.require("PFFNet")
        report(Step(0, 0))
        if not isinstance(pixels.dtype, np.dtype):  # tensorstore has types of its own
            pixels = np.asarray(pixels)
        if pixels.dtype.kind not in "buif":
            raise InputError(f"an image of {pixels.dtype} values: give whole or floating numbers")
        predictor = self._predictor(settings)
        report(Step(0, 0))
        with TemporaryDirectory(prefix="pffnet_") as folder:
            if settings.tile is None:
                return _as_a_whole(predictor, np.asarray(pixels), pixel_size, Path(folder))
            return _in_tiles(predictor, pixels, pixel_size, settings.tile, Path(folder), report)

    def _predictor(self, settings: Settings) -> Predictor:
        from pffnet_d2.inference.options import ModelOptions
        from pffnet_d2.inference.predictor import Predictor

        thresholds = None if settings.threshold is None else {"SCORE_THRESH": settings.threshold}
        options = ModelOptions(
            model=settings.model, diameter=settings.diameter, thresholds=thresholds, invert=settings.invert
        )
        if self._loaded is None or self._loaded[0] != options:
            self._loaded = options, Predictor(options=options)
        return self._loaded[1]


# The features are read from the file of the format csv, so that they are what `pffnet predict` writes.


def _as_a_whole(predictor: Predictor, pixels: NDArray[Any], pixel_size: float | None, folder: Path) -> Segmentation:
    from pffnet_d2.inference.export import write_csv

    rgb = predictor.normalise(pixels)
    (prediction,) = predictor.predict([rgb])
    table = folder / "image.csv"
    size = None if pixel_size is None else (pixel_size, pixel_size)
    write_csv(table, prediction.label_map, prediction.scores, pixels=pixels, pixel_size=size)
    told = predictor.warnings_of(pixels, rgb, prediction)
    return Segmentation(prediction.label_map, _features(table), tuple(told))


def _in_tiles(
    predictor: Predictor, pixels: Any, pixel_size: float | None, tile: int, folder: Path, report: Report
) -> Segmentation:
    from pffnet_d2.imaging.read import read_label_image
    from pffnet_d2.inference.options import ImageOptions

    options = ImageOptions(tile=tile, formats=("label-tiff", "csv"), pixel_size=pixel_size)
    found = predictor.predict_large(
        pixels, folder, options=options, progress=lambda done, total: report(Step(done, total))
    )
    label_map = read_label_image(found.files["label-tiff"]).astype(np.int32)
    return Segmentation(label_map, _features(found.files["csv"]), tuple(found.warnings()))


def _features(table: Path) -> dict[str, NDArray[Any]]:
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    columns = {name: _column([row[i] for row in rows]) for i, name in enumerate(header)}
    return {"index": columns.pop("label").astype(np.int64), **columns}


def _column(values: Sequence[str]) -> NDArray[Any]:
    """Numbers, or text where not all are numbers."""
    try:
        return np.array(values, dtype=np.float64)
    except ValueError:
        return np.array(values, dtype=str)
