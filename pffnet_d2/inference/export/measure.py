"""What tables say of each object if the user chooses: shape terms, grey values of every channel, rings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.inference.tiling import Box

# Properties of skimage.measure.regionprops_table, with the power of the length unit in each. The orientation is in
# radians, counter-clockwise from the image's rows to the major axis.
SHAPE_TERMS = {
    "area": 2,
    "area_bbox": 2,
    "area_convex": 2,
    "area_filled": 2,
    "axis_major_length": 1,
    "axis_minor_length": 1,
    "eccentricity": 0,
    "equivalent_diameter_area": 1,
    "euler_number": 0,
    "extent": 0,
    "feret_diameter_max": 1,
    "orientation": 0,
    "perimeter": 1,
    "perimeter_crofton": 1,
    "solidity": 0,
}
DEFAULT_SHAPES = (
    "area",
    "perimeter",
    "eccentricity",
    "axis_major_length",
    "axis_minor_length",
    "equivalent_diameter_area",
)
# Grey values of the pixels of an object, in every channel. ``background`` is the median of all pixels of the image that
# belong to no object, and ``corrected_mean`` the mean minus that.
INTENSITY_TERMS = ("mean", "min", "max", "std", "sum", "corrected_mean", "background")
DEFAULT_INTENSITIES = ("mean", "min", "max", "std")
_BY_BACKGROUND = ("corrected_mean", "background")


@dataclass(frozen=True)
class Measures:
    """What is measured.

    Attributes:
        shapes: among SHAPE_TERMS.
        intensities: among INTENSITY_TERMS, of every channel of the file.
        ring: width in pixels of a ring around each object whose mean is measured too; 0 measures none. A ring holds
            the pixels of no object that are nearest to this one.
    """

    shapes: tuple[str, ...] = DEFAULT_SHAPES
    intensities: tuple[str, ...] = DEFAULT_INTENSITIES
    ring: int = 0

    @staticmethod
    def parse(text: str | None, ring: int = 0) -> Measures:
        """The measures of ``--measure`` and ``--ring``; None means the default terms.

        Raises:
            InputError: a term is unknown or given twice.
        """
        if text is None:
            return Measures(ring=ring)
        terms = [term.strip() for term in text.split(",")]
        for term in terms:
            if term not in SHAPE_TERMS and term not in INTENSITY_TERMS:
                known = ",".join([*SHAPE_TERMS, *INTENSITY_TERMS])
                raise InputError(f"--measure {text}: {term!r} is unknown; choose from {known}")
            if terms.count(term) > 1:
                raise InputError(f"--measure {text}: {term} is there twice; give it once")
        shapes = tuple(term for term in terms if term in SHAPE_TERMS)
        return Measures(shapes, tuple(term for term in terms if term in INTENSITY_TERMS), ring)

    @property
    def whole(self) -> str:
        """The first option that can only be measured with the whole label map at hand; "" if there is none."""
        if self.ring:
            return f"--ring {self.ring}"
        term = next((term for term in self.intensities if term in _BY_BACKGROUND), "")
        return f"--measure {term}" if term else ""


@dataclass(frozen=True)
class Measured:
    """The image that is measured, for one table.

    Attributes:
        measures: what is measured.
        image: the content of the column ``image``.
        channels: a window of every channel of the file, (h, w, n).
        names: of the channels.
    """

    measures: Measures
    image: str
    channels: Callable[[Box], NDArray[Any]]
    names: tuple[str, ...]


def shape_columns(
    labels: NDArray[np.int32], shapes: tuple[str, ...], side: float, unit: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Columns of shape terms, one value per object, with their unit in the name.

    Args:
        labels: (h, w), 0 background.
        shapes: among SHAPE_TERMS.
        side: of a pixel, in the unit.
        unit: "px" or "um".
    """
    from skimage.measure import regionprops_table

    with warnings.catch_warnings():
        # An object in a line has no convex hull; its solidity is not a number then.
        warnings.simplefilter("ignore")
        found = regionprops_table(labels, properties=list(shapes))
    for term in shapes:
        power = SHAPE_TERMS[term]
        yield term + ("", f"_{unit}", f"_{unit}2")[power], found[term] * side**power


def intensity_columns(
    labels: NDArray[np.int32], values: NDArray[Any], names: tuple[str, ...], measures: Measures
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Columns of grey values, one value per object, channel by channel: TERM_CHANNEL, then ``ring_mean_CHANNEL``.

    Args:
        labels: (h, w), 0 background.
        values: (h, w, n), in the file's own depth.
        names: n.
        measures: what is measured.
    """
    ids = np.unique(labels[labels > 0])
    ring = _ring(labels, measures.ring) if measures.ring else None
    outside = labels == 0
    for channel, name in enumerate(names):
        grey = values[..., channel].astype(np.float64)
        background = float(np.median(grey[outside])) if outside.any() else float("nan")
        for term in measures.intensities:
            yield f"{term}_{name}", _intensity(term, grey, labels, ids, background)
        if ring is not None:
            yield f"ring_mean_{name}", _over(scipy.ndimage.mean, grey, ring, ids)


def _intensity(
    term: str, grey: NDArray[np.float64], labels: NDArray[np.int32], ids: NDArray[Any], background: float
) -> NDArray[np.float64]:
    if term == "background":
        return np.full(len(ids), background)
    if term == "corrected_mean":
        return _over(scipy.ndimage.mean, grey, labels, ids) - background
    found = {
        "mean": scipy.ndimage.mean,
        "min": scipy.ndimage.minimum,
        "max": scipy.ndimage.maximum,
        "std": scipy.ndimage.standard_deviation,
        "sum": scipy.ndimage.sum_labels,
    }
    return _over(found[term], grey, labels, ids)


def _over(
    statistic: Callable[..., Any], grey: NDArray[np.float64], labels: NDArray[np.int32], ids: NDArray[Any]
) -> NDArray[np.float64]:
    """A statistic of the pixels of each object; not a number for an object without pixels (a ring may be empty)."""
    if not len(ids):
        return np.zeros(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(statistic(grey, labels, ids), dtype=np.float64)


def _ring(labels: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """The rings around objects as a label map: pixels of no object at most ``width`` away from the nearest one."""
    from skimage.segmentation import expand_labels

    grown: NDArray[np.int32] = np.asarray(expand_labels(labels, distance=width))
    return np.where(labels == 0, grown, 0)
