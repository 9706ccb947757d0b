"""Whether an image looks as a model of fluorescence images expects: bright objects on a dark background, grey.

Two statistics of the 8-bit image that the network sees decide. Thresholds and error rates: docs/predict.md; both lie in
gaps of DSB2018, BBBC039, Kumar and TNBC: the median is at most 48 in their 468 fluorescence images, stretched, and at
least 81 in the 132 others; the mean colourfulness is 0 in the former and at least 15 in the 123 of stained tissue.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError

BRIGHT = 64.0  # median of the mean of the channels, of 255
COLOURFUL = 4.0  # mean over the pixels of their largest channel minus their smallest, of 255


def check_kind(kind: str) -> None:
    """Raises InputError where MODEL.PFFNET.IMAGES is no kind that can be told from others."""
    if kind not in ("", "fluorescence"):
        raise InputError(f"MODEL.PFFNET.IMAGES {kind!r}: use fluorescence, or '' for images of any kind")


def statistics(rgb: NDArray[np.uint8]) -> tuple[float, float]:
    """Median brightness and mean colourfulness of an (H, W, 3) image, each 0 to 255."""
    colourfulness = float(np.mean(rgb.max(axis=2) - rgb.min(axis=2)))
    return float(np.median(rgb.mean(axis=2, dtype=np.float32))), colourfulness


def unlike_fluorescence(rgb: NDArray[np.uint8]) -> str:
    """Why an image is none of fluorescence and what to do, in one line; "" where it may be one.

    Args:
        rgb: (H, W, 3), normalised.
    """
    brightness, colourfulness = statistics(rgb)
    if colourfulness > COLOURFUL and brightness > BRIGHT:
        return (
            "coloured on a bright background, as stained tissue is; the model was made for fluorescence and its result "
            "means little: use a model of such images (--model, or --config and --weights)"
        )
    if brightness > BRIGHT:
        return (
            "bright background, as in brightfield or inverted contrast; the model was made for fluorescence and its "
            "result means little: invert the image if its objects are plain dark ones, or use a model of such images"
        )
    if colourfulness > COLOURFUL:
        return "coloured; the model was made for grey fluorescence: take the channel of the nuclei, as --channels 2"
    return ""
