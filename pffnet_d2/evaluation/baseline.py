"""A baseline without learning for reports: Otsu's threshold and a watershed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2gray, rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.segmentation import watershed

from pffnet_d2.data.prepared import PreparedSplit
from pffnet_d2.evaluation.scores import Row, score
from pffnet_d2.imaging.read import read_image

SMOOTHING = 1.0  # sigma, pixels
SEED_DISTANCE = 7  # smallest distance between seeds, pixels
SMALLEST = 30  # smaller objects are noise, pixels


def otsu_watershed(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Find nuclei by Otsu's threshold, and split touching ones by a watershed of the distance transform.

    Colour images are assumed to be H&E, and their haematoxylin is thresholded. In grey images the objects are on the
    side of the threshold that has fewer pixels. Nothing is fitted to a data set.

    Args:
        image: (H, W) or (H, W, 3) uint8.

    Returns:
        (H, W) int32, 0 background, ids 1..n contiguous.
    """
    coloured = image.ndim == 3 and bool((image != image[..., :1]).any())
    grey = rgb2hed(image)[..., 0] if coloured else rgb2gray(image) if image.ndim == 3 else image / 255
    smooth = gaussian(grey, SMOOTHING, preserve_range=True)
    if np.ptp(smooth) == 0:
        return np.zeros(image.shape[:2], np.int32)
    mask = smooth > threshold_otsu(smooth)
    if not coloured and mask.mean() > 0.5:
        mask = ~mask
    mask = ndimage.binary_fill_holes(ndimage.binary_opening(mask))
    distance = gaussian(ndimage.distance_transform_edt(mask), SMOOTHING, preserve_range=True)
    parts, _ = ndimage.label(mask)
    seeds = np.zeros(mask.shape, np.int32)
    peaks = peak_local_max(distance, min_distance=SEED_DISTANCE, labels=parts, exclude_border=False)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, seeds, mask=mask)
    areas = np.bincount(labels.ravel())
    kept = areas >= SMALLEST
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


def score_otsu(folder: Path) -> Iterator[Row]:
    """Yield the scores of :func:`otsu_watershed` on a prepared split (a folder with images/ and instances.json).

    Raises:
        InputError: the folder is not a prepared split.
    """
    for image in PreparedSplit(folder).labelled_images():
        pixels = np.asarray(read_image(image.file), np.uint8)
        yield score(image.name, image.truth(), otsu_watershed(pixels), image.group)
