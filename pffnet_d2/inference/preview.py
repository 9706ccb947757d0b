"""One image with its overlay at three thresholds side by side, to choose a threshold and a diameter by looking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.microscopy import read_selection
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.inference.predictor import Predictor
from pffnet_d2.inference.sources import Source

STEP = 0.2  # between the thresholds
BAND = 16  # pixels above each panel, for its caption
GAP = 4  # white pixels between panels


def thresholds_around(beta: float) -> list[float]:
    """Three thresholds of the class score: one lower, ``beta``, one higher, all inside 0 to 1."""
    return [round(beta - min(STEP, beta / 2), 3), beta, round(beta + min(STEP, (1 - beta) / 2), 3)]


def write_preview(path: Path, source: Source, options: PredictOptions) -> list[tuple[float, int]]:
    """Predict an image and draw it with the outlines at three thresholds.

    Args:
        path: of the PNG.
        source: the image.
        options: of the prediction.

    Returns:
        The thresholds and the numbers of objects.

    Raises:
        InputError: the image cannot be read, the model cannot be used, or the picture cannot be written.
    """
    from pffnet_d2.visualization.overlay import PANEL, overlay, write_png

    own = source.options(options)
    predictor = Predictor(options=own)
    read = read_selection(source.path, own.selection())
    try:
        predictor = predictor.for_pixels(own.scale_of(read.pixel_size))
        rgb = predictor.normalise(read.pixels)
        thresholds = thresholds_around(predictor.rule.score_threshold)
        maps = label_maps(predictor, rgb, thresholds)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error
    counts = [(beta, int(labels.max(initial=0))) for beta, labels in zip(thresholds, maps, strict=True)]
    factor = max(PANEL // max(rgb.shape[:2]), 1)  # small images are enlarged, so that outlines can be seen
    rgb = rgb.repeat(factor, 0).repeat(factor, 1)
    maps = [labels.repeat(factor, 0).repeat(factor, 1) for labels in maps]
    captions = ["image", *(f"--threshold {beta:g}: {count} objects" for beta, count in counts)]
    panels = [rgb, *(overlay(rgb, labels) for labels in maps)]
    write_png(path, side_by_side(panels, captions))
    return counts


def label_maps(predictor: Predictor, rgb: NDArray[np.uint8], thresholds: Sequence[float]) -> list[NDArray[np.int32]]:
    """The label map of a normalised image at each threshold, exactly as prediction with that threshold makes it."""
    rule = predictor.rule
    maps = []
    try:
        for beta in thresholds:
            predictor.rule = replace(rule, score_threshold=beta)
            maps.append(predictor.predict([rgb])[0].label_map)
    finally:
        predictor.rule = rule
    return maps


def side_by_side(panels: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> NDArray[np.uint8]:
    """Pictures (H, W, 3) of one size next to each other, each below its caption."""
    height, width = panels[0].shape[:2]
    sheet = np.full((BAND + height, len(panels) * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, panel in enumerate(panels):
        sheet[BAND:, i * (width + GAP) :][:, :width] = panel
    picture = Image.fromarray(sheet)
    draw = ImageDraw.Draw(picture)
    for i, caption in enumerate(captions):
        draw.text((i * (width + GAP) + 2, 2), caption, fill="black")
    return np.asarray(picture)
