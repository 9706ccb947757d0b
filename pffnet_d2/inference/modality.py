"""Checks whether an image looks as a model expects: it has contrast and is of a kind that the model was made for.

The check uses two statistics of the 8-bit image that the network sees. docs/predict.md lists thresholds and error
rates. All thresholds lie in gaps of the statistics of DSB2018, BBBC039, Kumar and TNBC: the median is at most 48 in
their 468 fluorescence images (stretched), at least 81 in the 123 images of stained tissue and at least 221 in the 9 of
brightfield; the mean colourfulness is at least 15 in stained tissue and 0 in all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.imaging.normalisation import BRIGHT, COLOURFUL, Normalisation, colourfulness

BRIGHTFIELD = 160.0  # median of the mean of the channels, of 255


def statistics(rgb: NDArray[np.uint8]) -> tuple[float, float]:
    """Median brightness and mean colourfulness of an (H, W, 3) image, each 0 to 255."""
    return float(np.median(rgb.mean(axis=2, dtype=np.float32))), colourfulness(rgb)


def unlike_fluorescence(rgb: NDArray[np.uint8], inverted: bool = False) -> str:
    """One line that says why an image is not a fluorescence image and what to do; "" if it may be one.

    Args:
        rgb: (H, W, 3), normalised.
        inverted: whether its grey values were inverted (``Normalisation.invert``).
    """
    brightness, colour = statistics(rgb)
    if brightness > BRIGHT and inverted:
        return (
            "bright background after inversion; the model was made for fluorescence, bright objects on a dark "
            "background, and its result means little: leave out --invert (in Python invert=True)"
        )
    if colour > COLOURFUL and brightness > BRIGHT:
        return (
            "coloured on a bright background, as stained tissue is; the model was made for fluorescence and its result "
            "means little: use a model made for such images (--model nuclei, or one of your own)"
        )
    if brightness > BRIGHT:
        return (
            "bright background, as in brightfield or inverted contrast; the model was made for fluorescence and its "
            "result means little: add --invert (in Python invert=True) if the objects are plainly darker than the "
            "background, or use a model made for such images"
        )
    if colour > COLOURFUL:
        return "coloured; the model was made for grey fluorescence: choose the nuclei's channel, such as --channels 2"
    return ""


def unlike_nuclei(rgb: NDArray[np.uint8], inverted: bool = False) -> str:
    """The same for a model of nuclei in fluorescence, stained tissue and brightfield, which knows inverted images."""
    brightness, colour = statistics(rgb)
    if colour > COLOURFUL and brightness <= BRIGHT:
        return (
            "coloured on a dark background; the model was made for grey fluorescence and stained tissue: choose the "
            "nuclei's channel, such as --channels 2"
        )
    if colour <= COLOURFUL and BRIGHT < brightness < BRIGHTFIELD:
        return (
            "grey with a background of medium brightness, as in phase contrast or electron microscopy; the model was "
            "made for nuclei in fluorescence, stained tissue and brightfield, and its result may mean little: use a "
            "model made for such images"
        )
    return ""


def anything(rgb: NDArray[np.uint8], inverted: bool = False) -> str:
    """Expect nothing of an image."""
    return ""


# By MODEL.PFFNET.IMAGES.
UNLIKE: dict[str, Callable[[NDArray[np.uint8], bool], str]] = {
    "fluorescence": unlike_fluorescence,
    "nuclei": unlike_nuclei,
    "": anything,
}


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
