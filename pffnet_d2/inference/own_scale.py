"""Prediction at the scale that the objects of each image ask for: ``--diameter auto``.

A first pass finds objects at the image's own size. Their mean diameter decides at which scale a second pass sees the
image. Measured in docs/predict.md (``benchmarks/diameter.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError

if TYPE_CHECKING:
    from pffnet_d2.inference.predictor import Prediction, Predictor

AUTO = "auto"
# Between these ratios of diameters the first pass stands: the model was trained on objects of half to double size, and
# on fields whose nuclei measure 0.98 times the model's diameter the second pass gains 0.005 AJI.
_CLOSE = 1.25
# Beyond half and double size, which training does not show, a single pass is doubted; the mean of fewer objects says
# little.
_FAR, _ENOUGH = 2.0, 10


def predict_at_own_scale(predictor: Predictor, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
    """Predict normalised images, (H, W, 3) uint8 RGB, each at the scale of its own objects.

    An image keeps its first pass if it has no objects, if they are close to the diameter that the model knows, or if
    the second pass would need an image that is too large (``Predictor.network_size``).
    """
    own_size = predictor.at_scale(1.0)
    found = own_size.predict(images)
    for i, image in enumerate(images):
        diameter = mean_diameter(found[i].label_map)
        scale = predictor.facts.diameter / diameter if diameter else 1.0
        if 1 / _CLOSE <= scale <= _CLOSE:
            continue
        scaled = predictor.at_scale(scale)
        try:
            scaled.network_size(*image.shape[:2])
        except InputError:
            continue
        found[i] = scaled.predict([image])[0]
    return found


def doubt_about_size(label_map: NDArray[np.int32], known: float) -> str:
    """One line that says that the objects found at the image's own size are far smaller or larger than those that the
    model knows, and what to do; "" if they are not, or are too few to say.

    Args:
        label_map: (H, W), 0 background.
        known: mean diameter in training, pixels; 0: unknown.
    """
    found = _diameters(label_map)
    if not known or len(found) < _ENOUGH or 1 / _FAR <= found.mean() / known <= _FAR:
        return ""
    far = "less than half" if found.mean() < known else "more than twice"
    return (
        f"the objects found measure {far} of the {known:g} pixels that the model knows; --diameter auto looks again at "
        "their own scale"
    )


def mean_diameter(label_map: NDArray[np.int32]) -> float:
    """The mean diameter of the objects in pixels, 2 sqrt(area / pi); 0 if there are none."""
    found = _diameters(label_map)
    return float(found.mean()) if len(found) else 0.0


def _diameters(label_map: NDArray[np.int32]) -> NDArray[np.float64]:
    areas = np.bincount(label_map.ravel())[1:]
    return 2 * np.sqrt(areas[areas > 0] / np.pi)
