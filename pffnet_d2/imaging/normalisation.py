"""Normalises grey values of any depth to the 8-bit RGB images that the networks see.

The same code runs when a data set is prepared and when a model predicts, and a prepared data set records its
normalisation, so training and prediction see the same grey values.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.numbers import real_number


@dataclass(frozen=True)
class Normalisation:
    """How grey values become 8 bit.

    - "as_is": 8-bit images are not changed.
    - "percentile": the percentile ``low`` of the image becomes 0 and ``high`` becomes 255. Both are taken over all
      channels, so that colours keep their ratio. Percentiles are used instead of extremes so that a few hot pixels do
      not darken the rest. The range is at least ``minimum_range`` grey values, so that an image of pure noise stays
      dark instead of being stretched.
    - "auto": "as_is" for 8-bit images, "percentile" for deeper ones. Images of floats, whose unit is unknown, have no
      minimum range.
    - "stretch": like "auto", but 8-bit images use percentiles too, at least 24 grey values apart, unless they look like
      stained tissue (:func:`is_stained`).

    With ``invert``, dark becomes bright: the two percentiles become 255 and 0. With ``stained_as_is``, 8-bit images
    that look like stained tissue keep their values in "percentile" too.
    """

    name: str
    low: float = 0.0
    high: float = 100.0
    minimum_range: float = 0.0
    invert: bool = False
    stained_as_is: bool = False

    def info(self) -> dict[str, Any]:
        """The JSON form stored in a prepared data set; ``Normalisation(**info)`` reads it back."""
        info = asdict(self)
        for key in ("invert", "stained_as_is"):  # data sets prepared before the keys existed lack them
            if not info[key]:
                del info[key]
        return info


AS_IS = Normalisation("as_is")
# Percentiles of Caicedo et al., Cytometry A 95(9), 2019. The range was measured on the 150 training and validation
# fields of BBBC039 (12 bit): 39 to 52 grey values in the three empty fields, 661 or more in all others (median 1228).
# 512 does not change fields with nuclei and keeps the noise of empty fields below a tenth of the scale.
PERCENTILE_16_BIT = Normalisation("percentile", 0.1, 99.9, 512.0)
# The range was measured on the 318 available fluorescence images of DSB2018: 26 to 252 grey values, median 67.
# Colours of stained tissue are not stretched: a model trained on both has AJI 0.620 on TNBC's validation images as they
# are and 0.579 on the same images stretched (docs/studies/nuclei.md).
PERCENTILE_8_BIT = Normalisation("percentile", 0.1, 99.9, 24.0, stained_as_is=True)
EVERY_VALUE = (0.0, 255.0)  # percentiles that leave 8-bit values as they are
BRIGHT = 64.0  # of 255; docs/predict.md says how this and the next were chosen
COLOURFUL = 4.0  # mean over the pixels of their largest channel minus their smallest, of 255

AUTO = replace(PERCENTILE_16_BIT, name="auto")
STRETCH = replace(PERCENTILE_16_BIT, name="stretch")
BY_DEPTH = {each.name: each for each in (AUTO, STRETCH)}  # the normalisations that depend on the depth of the image


def normalisation_of(image: npt.NDArray[Any], given: Normalisation = AUTO) -> Normalisation:
    """What "auto" or "stretch" means for an image. Any other normalisation is returned unchanged."""
    if given.name not in BY_DEPTH:
        return given
    if image.dtype == np.uint8 and given.name == STRETCH.name:
        return replace(PERCENTILE_8_BIT, invert=given.invert)
    if image.dtype in (np.uint8, np.bool_):
        return replace(AS_IS, invert=given.invert)
    return replace(given, name="percentile", minimum_range=given.minimum_range if image.dtype.kind in "ui" else 0.0)


def is_stained(image: npt.NDArray[np.uint8]) -> bool:
    """Whether an image (H, W, 3) looks like stained tissue: coloured on a bright background."""
    return colourfulness(image) > COLOURFUL and bool(np.median(image) > BRIGHT)


def colourfulness(image: npt.NDArray[np.uint8]) -> float:
    """Mean over the pixels of an image (H, W, 3) of their largest channel minus their smallest, 0 to 255."""
    return float(np.mean(image.max(axis=2) - image.min(axis=2)))


def to_rgb8(
    image: npt.NDArray[Any], normalisation: Normalisation, limits: tuple[float, float] | None = None
) -> npt.NDArray[np.uint8]:
    """(H, W), (H, W, 1 to 4) of any depth to (H, W, 3) uint8 RGB. An alpha channel is dropped, grey is repeated.

    >>> to_rgb8(np.array([[0, 2048, 4095]], dtype=np.uint16), Normalisation("percentile"))[:, :, 0]
    array([[  0, 128, 255]], dtype=uint8)

    Args:
        image: the pixels.
        normalisation: how they become 8 bit.
        limits: the values of the two percentiles, if the image is cut from a larger one whose percentiles apply.

    Raises:
        InputError: the image has another shape or values that are not finite; "as_is" is used for an image that is not
            8 bit.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or 0 in image.shape:
        raise InputError(f"an image of shape {image.shape} is neither grey nor RGB(A); give a single plane")
    image = image[:, :, : 1 if image.shape[2] < 3 else 3]
    normalisation = normalisation_of(image, normalisation)
    if normalisation.name == "percentile":
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise InputError("the image has values that are not finite; replace them first")
        if limits is None and normalisation.stained_as_is and image.shape[2] == 3 and is_stained(image):
            limits = EVERY_VALUE
        low, high = limits or np.percentile(image, (normalisation.low, normalisation.high))
        scale = 255 / max(high - low, normalisation.minimum_range, np.finfo(np.float32).tiny)
        # float32 cannot represent large 32-bit integers exactly.
        real: Any = np.float64 if image.dtype.kind in "ui" and image.dtype.itemsize > 2 else np.float32
        above = real(high) - image.astype(real) if normalisation.invert else image.astype(real) - real(low)
        return _as_rgb(np.clip(np.rint(above * real(scale)), 0, 255).astype(np.uint8))
    if normalisation.name != "as_is":
        raise InputError(f"unknown normalisation {normalisation.name!r}; use as_is, percentile, auto or stretch")
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    elif image.dtype != np.uint8:
        raise InputError(f"a {image.dtype} image is not 8 bit; use the percentile normalisation")
    return _as_rgb(~image if normalisation.invert else image)


def _as_rgb(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy (H, W, 3) of (H, W, 1) or (H, W, 3)."""
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))


def describe(normalisation: Normalisation) -> str:
    """A normalisation in words, for logs."""
    if normalisation.name == "as_is":
        return "8-bit values, inverted" if normalisation.invert else "8-bit values as they are"
    at_least = f", at least {normalisation.minimum_range:g} grey values apart" if normalisation.minimum_range else ""
    to = "255..0 (inverted)" if normalisation.invert else "0..255"
    stained = " (stained tissue as it is)" if normalisation.stained_as_is else ""
    return f"percentiles {normalisation.low:g} to {normalisation.high:g}{at_least}, to {to}{stained}"


def parse_normalisation(text: str) -> Normalisation | None:
    """Parses what a user typed: ``auto`` (returns None, for the normalisation of training), ``as-is``, or
    ``percentile[:LOW,HIGH[,RANGE]]`` in percent and grey values. Raises InputError for any other text."""
    if text == "auto":
        return None
    if text == "as-is":
        return Normalisation("as_is")
    name, _, numbers = text.partition(":")
    try:
        values = [real_number(number) for number in numbers.split(",")] if numbers else [0.1, 99.9]
        low, high = values[:2]
        if name != "percentile" or len(values) > 3 or not 0 <= low < high <= 100 or not 0 <= values[-1] < math.inf:
            raise ValueError
    except ValueError:
        raise InputError(
            f"normalisation {text}: use auto, as-is or percentile:LOW,HIGH,RANGE, such as percentile:0.1,99.9,512"
        ) from None
    return Normalisation("percentile", low, high, values[2] if len(values) == 3 else 0.0)
