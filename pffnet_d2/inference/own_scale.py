"""The scale that the objects of an image ask for: ``--diameter auto``.

A first pass finds objects at the image's own size. Their mean diameter decides at which scale a second pass sees the
image. Measured in docs/predict.md (``benchmarks/diameter.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Between these ratios of diameters the first pass stands: the model was trained on objects of half to double size, and
# on fields whose nuclei measure 0.98 times the model's diameter the second pass gains 0.005 AJI.
_CLOSE = 1.25
# Beyond half and double size, which training does not show, a single pass is doubted; the mean of fewer objects says
# little.
_FAR, _ENOUGH = 2.0, 10


def own_scale(label_map: NDArray[np.int32], known: float) -> float:
    """The scale at which an image's objects, found at its own size, would have the diameter that the model knows.

    Args:
        label_map: (H, W), 0 background.
        known: mean diameter in training, pixels.

    Returns:
        1.0 if there are no objects, or they are close to that diameter already.
    """
    diameter = mean_diameter(label_map)
    scale = known / diameter if diameter else 1.0
    return 1.0 if 1 / _CLOSE <= scale <= _CLOSE else scale


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
