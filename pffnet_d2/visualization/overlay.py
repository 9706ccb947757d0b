"""Outlines of objects over images."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage
from PIL import Image

from pffnet_d2.atomic_write import whole_file

GOLDEN_RATIO = 0.618033988749895
LAST_HUE = 0.55  # azure; 0 is red, 1/3 green, 2/3 blue
GAP = 4  # white pixels between panels
PANEL = 512  # pixels; smaller images are enlarged up to this side, so that outlines can be seen


def colours(count: int) -> npt.NDArray[np.uint8]:
    """(count, 3) uint8 RGB from red to azure, without blue and violet, which cannot be seen on stained or dark nuclei.

    Consecutive hues are a golden section of that range apart.
    """
    table = [colorsys.hsv_to_rgb(i * GOLDEN_RATIO % 1 * LAST_HUE, 1.0 - 0.35 * (i % 2), 1.0) for i in range(count)]
    return np.rint(255 * np.array(table).reshape(count, 3)).astype(np.uint8)


def overlay(image: npt.NDArray[np.uint8], label_map: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The image with the outline of every object in its own colour, one pixel wide, inside the object.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        label_map: (H, W) integers, 0 background.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: the image and the label map differ in size.
    """
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"image {image.shape[:2]} and label map {label_map.shape} differ in size")
    drawn = np.array(np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image)
    outline = skimage.segmentation.find_boundaries(label_map, mode="inner", background=0)
    ids = label_map[outline]
    drawn[outline] = colours(int(label_map.max(initial=0)) + 1)[ids]
    return drawn


def side_by_side(
    image: npt.NDArray[np.uint8], truth: npt.NDArray[Any], prediction: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    """Three panels: the image, with the outlines of the truth, and with those of the prediction.

    Returns:
        (f H, 3 f W + gaps, 3) uint8, where f is the largest whole factor at which a panel fits ``PANEL``, at least 1.
    """
    factor = max(PANEL // max(truth.shape), 1)
    image, truth, prediction = (x.repeat(factor, 0).repeat(factor, 1) for x in (image, truth, prediction))
    plain = overlay(image, np.zeros_like(truth))
    gap = np.full((len(plain), GAP, 3), 255, np.uint8)
    return np.concatenate([plain, gap, overlay(image, truth), gap, overlay(image, prediction)], axis=1)


def write_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 as PNG, whole or not at all, and make its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, "wb") as file:
        Image.fromarray(picture).save(file, format="PNG")
