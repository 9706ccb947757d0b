"""Whether an image looks as a model expects: it has contrast and, for a model of fluorescence images, bright objects on
a dark background, in grey.

Two statistics of the 8-bit image that the network sees decide. Thresholds and error rates: docs/predict.md; both lie in
gaps of DSB2018, BBBC039, Kumar and TNBC: the median is at most 48 in their 468 fluorescence images, stretched, and at
least 81 in the 132 others; the mean colourfulness is 0 in the former and at least 15 in the 123 of stained tissue.
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
    """Why an image is none of fluorescence and what to do, in one line; "" where it may be one.

    Args:
        rgb: (H, W, 3), normalised.
        inverted: whether dark and bright changed places in it (``Normalisation.invert``).
    """
    brightness, colourfulness = statistics(rgb)
    if brightness > BRIGHT and inverted:
        return (
            "bright background once inverted; the model was made for fluorescence, bright objects on a dark one, and "
            "its result means little: leave out --invert (in Python invert=True)"
        )
    if colourfulness > COLOURFUL and brightness > BRIGHT:
        return (
            "coloured on a bright background, as stained tissue is; the model was made for fluorescence and its result "
            "means little: use a model of such images (--model, or --config and --weights)"
        )
    if brightness > BRIGHT:
        return (
            "bright background, as in brightfield or inverted contrast; the model was made for fluorescence and its "
            "result means little: add --invert (in Python invert=True) if the objects are plain dark ones, or use a "
            "model of such images"
        )
    if colourfulness > COLOURFUL:
        return "coloured; the model was made for grey fluorescence: take the channel of the nuclei, as --channels 2"
    return ""


def lost_contrast(pixels: NDArray[Any], rgb: NDArray[np.uint8], normalisation: Normalisation) -> str:
    """Why a normalisation makes a picture of one grey value of an image that has several, and what to do, in one line;
    "" where it does not.

    Args:
        pixels: the values of the file, of any shape.
        rgb: what the network sees of them.
        normalisation: by which it does, as ``normalisation_of`` gives it.
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
