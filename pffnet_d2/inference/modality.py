"""Checks whether an image looks as a model expects: it has contrast and, for a model of fluorescence images, shows
bright grey objects on a dark background.

The check uses two statistics of the 8-bit image that the network sees. docs/predict.md lists thresholds and error
rates. Both thresholds lie in gaps of the statistics of DSB2018, BBBC039, Kumar and TNBC: the median is at most 48 in
their 468 fluorescence images (stretched) and at least 81 in the other 132; the mean colourfulness is 0 in the
fluorescence images and at least 15 in the 123 images of stained tissue.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.imaging.normalisation import Normalisation

BRIGHT = 64.0  # median of the mean of the channels, of 255
COLOURFUL = 4.0  # mean over the pixels of their largest channel minus their smallest, of 255


def statistics(rgb: NDArray[np.uint8]) -> tuple[float, float]:
    """Median brightness and mean colourfulness of an (H, W, 3) image, each 0 to 255."""
    colourfulness = float(np.mean(rgb.max(axis=2) - rgb.min(axis=2)))
    return float(np.median(rgb.mean(axis=2, dtype=np.float32))), colourfulness


def unlike_fluorescence(rgb: NDArray[np.uint8], inverted: bool = False) -> str:
    """One line that says why an image is not a fluorescence image and what to do; "" if it may be one.

    Args:
        rgb: (H, W, 3), normalised.
        inverted: whether its grey values were inverted (``Normalisation.invert``).
    """
    brightness, colourfulness = statistics(rgb)
    if brightness > BRIGHT and inverted:
        return (
            "bright background after inversion; the model was made for fluorescence, bright objects on a dark "
            "background, and its result means little: leave out --invert (in Python invert=True)"
        )
    if colourfulness > COLOURFUL and brightness > BRIGHT:
        return (
            "coloured on a bright background, as stained tissue is; the model was made for fluorescence and its result "
            "means little: use a model made for such images (--model, or --config and --weights)"
        )
    if brightness > BRIGHT:
        return (
            "bright background, as in brightfield or inverted contrast; the model was made for fluorescence and its "
            "result means little: add --invert (in Python invert=True) if the objects are plainly darker than the "
            "background, or use a model made for such images"
        )
    if colourfulness > COLOURFUL:
        return "coloured; the model was made for grey fluorescence: choose the nuclei's channel, such as --channels 2"
    return ""


def lost_contrast(pixels: NDArray[Any], rgb: NDArray[np.uint8], normalisation: Normalisation) -> str:
    """One line that says why the normalisation reduced an image of several grey values to a single one and what to do;
    "" if it did not.

    Args:
        pixels: the values in the file, of any shape.
        rgb: the same values as the network sees them.
        normalisation: the one that was used, as ``normalisation_of`` returns it.
    """
    if rgb.min() < rgb.max() or normalisation.name != "percentile":
        return ""
    span = float(pixels.max()) - float(pixels.min())
    if not 0 < span < normalisation.minimum_range:
        return ""
    return (
        f"the normalisation's range of {normalisation.minimum_range:g} grey values is so wide that the network sees "
        "only one grey value; give a smaller range (--normalisation percentile:LOW,HIGH,RANGE)"
    )
