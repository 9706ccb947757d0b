"""An image that is never whole in memory: windows of it, as the file holds them and as the network sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.lazy import Sliceable, digest, limits, open_microscopy_image, window
from pffnet_d2.imaging.microscopy import MicroscopyImage
from pffnet_d2.imaging.normalisation import Normalisation, normalisation_of, to_rgb8
from pffnet_d2.inference.export import SourceImage
from pffnet_d2.inference.options import ImageOptions
from pffnet_d2.inference.tiling import Box
from pffnet_d2.model_zoo.find import sha256


@contextmanager
def opened(
    image: Sliceable | str | os.PathLike[str], options: ImageOptions, normalisation: Normalisation
) -> Iterator[LargeImage]:
    """A file, or an array (H, W) or (H, W, C), while the block lasts.

    Raises:
        InputError: it cannot be read, or is no image.
    """
    if isinstance(image, (str, os.PathLike)):
        with open_microscopy_image(Path(image), plane=options.plane, channels=options.channels) as source:
            yield LargeImage(source, Path(image), normalisation)
        return
    shape = tuple(image.shape)
    if not (len(shape) == 2 or (len(shape) == 3 and 1 <= shape[2] <= 4)) or 0 in shape:
        raise InputError(f"an image of shape {shape} is neither grey nor RGB(A); give a single plane")
    yield LargeImage(MicroscopyImage(image), None, normalisation)  # type: ignore[arg-type]


class LargeImage:
    """Windows y0, x0, y1, x1 of an image. Its percentiles, ``limits``, are set once they are known."""

    def __init__(self, source: MicroscopyImage, path: Path | None, normalisation: Normalisation) -> None:
        self.path = path
        self.name = str(path) if path else "the image"
        self.stamp = self._stamp()
        self.pixels: Sliceable = source.pixels
        self.source = source
        self.shape = (int(self.pixels.shape[0]), int(self.pixels.shape[1]))
        probe = self.values((0, 0, 1, 1))
        self.dtype = probe.dtype
        self.normalisation = normalisation_of(probe, normalisation)
        self.limits: tuple[float, float] | None = None

    def values(self, box: Box) -> NDArray[Any]:
        """(h, w) or (h, w, C), as in the file. Raises InputError where a value is not finite or cannot be read."""
        y0, x0, y1, x1 = box
        return window(self.pixels, slice(y0, y1), slice(x0, x1), self.name)

    def rgb(self, box: Box) -> NDArray[np.uint8]:
        """(h, w, 3) uint8, as the network sees it. Raises InputError as ``values``."""
        values = self.values(box)
        try:
            return to_rgb8(values, self.normalisation, self.limits)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error

    def measured_limits(self) -> tuple[float, float] | None:
        """The percentiles of the whole image that its normalisation needs; None where it needs none. Reads it once, or
        more often (:func:`~pffnet_d2.imaging.lazy.percentiles`)."""
        return limits(self.pixels, self.normalisation, self.name)

    def exported(self, options: ImageOptions) -> SourceImage:
        """As exporters take it."""
        return SourceImage(
            self.path.name if self.path else self.name,
            self.shape,
            self.values,
            self.rgb,
            whole=False,
            pixel_size=options.scale_of(self.source.pixel_size),
            resolution=self.source.resolution,
        )

    def identity(self) -> list[Any]:
        """Size and digest of all bytes of a file, or shape, type and digest of all values of an array.

        Nothing less tells two versions of an image apart: a change of a few pixels may lie anywhere, and the time of
        the last change differs for a copy and can be the same after an edit. A digest reads the file once, at the speed
        of the disk: seconds where the network takes an hour. Afterwards the time of the last change is enough to tell
        that the file is still the same (``changed``).
        """
        if self.path is None or self.stamp is None:
            return [list(map(int, self.pixels.shape)), str(self.dtype), digest(self.pixels, self.name)]
        try:
            return [self.stamp[0], sha256(self.path)]
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror}); check the path") from error

    def changed(self) -> bool:
        """Whether the file was written since the image was opened."""
        return self._stamp() != self.stamp

    def _stamp(self) -> tuple[int, int] | None:
        """Size and time of the last change of the file, in nanoseconds."""
        if self.path is None:
            return None
        try:
            status = self.path.stat()
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror}); check the path") from error
        return status.st_size, status.st_mtime_ns
