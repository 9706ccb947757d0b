"""Whether a model would see the grey values of a prepared data set again when it predicts the original images."""

from __future__ import annotations

import numpy as np

from pffnet_d2.data.prepared import PreparedSplit, read_images
from pffnet_d2.imaging.normalisation import AS_IS, PERCENTILE_16_BIT, STRETCH, Normalisation, describe, to_rgb8
from pffnet_d2.imaging.read import read_image

LOOKED_AT = 12  # images of a split
ALIKE = 2.0  # mean difference of two images in grey values, of 255


def unlike_prediction(split: PreparedSplit, asked: Normalisation) -> str:
    """Say in one line that the images of a split were normalised otherwise than a model would normalise them, and
    what to do; "" if they were not, or if the split does not say how it was normalised.

    Args:
        split: a prepared split.
        asked: the model's (MODEL.PFFNET.NORMALISATION): "auto" or "stretch".

    Raises:
        InputError: an image of the split cannot be read.
    """
    try:
        made = Normalisation(**split.info()["normalisation"])
    except (KeyError, TypeError):
        return ""
    if made.name == asked.name:
        return ""
    if (made.name, made.low, made.high) == ("percentile", PERCENTILE_16_BIT.low, PERCENTILE_16_BIT.high):
        return ""  # as both treat images of 16 bit
    if made.name == STRETCH.name:
        return (
            "its images were stretched to the full range, but prediction would leave those of 8 bit as they are; set "
            "MODEL.PFFNET.NORMALISATION stretch, or prepare it again without --option normalisation=stretch"
        )
    if made.name == "percentile":
        return (
            f"its images were normalised by {describe(made)}, but prediction would not do so; predict with "
            f"--normalisation percentile:{made.low:g},{made.high:g},{made.minimum_range:g}, or prepare it again"
        )
    if asked.name != STRETCH.name:
        return ""  # "as_is" and "auto" are the same for 8 bit
    names = [image["file_name"] for image in read_images(split.json_file)]
    names = names[:: -(-len(names) // LOOKED_AT) or 1]
    images = [to_rgb8(read_image(split.images / name), AS_IS) for name in names]
    changed = sum(float(np.abs(to_rgb8(image, asked).astype(int) - image).mean()) > ALIKE for image in images)
    if not changed:
        return ""
    return (
        f"its images were not stretched, but prediction would stretch {changed} of the {len(images)} looked at; "
        "prepare it again with --option normalisation=stretch, or set MODEL.PFFNET.NORMALISATION auto"
    )
