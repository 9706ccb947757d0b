"""An image that is never loaded as a whole: windows of it, as stored in the file and as the network sees them."""

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
from pffnet_d2.imaging.ome_zarr import ZarrPlane
from pffnet_d2.imaging.scene import WithChannels
from pffnet_d2.inference.export import SourceImage
from pffnet_d2.inference.export.measure import Measured
from pffnet_d2.inference.options import ImageOptions
from pffnet_d2.inference.tiling import Box
from pffnet_d2.model_zoo.find import sha256


@contextmanager
def opened(
    image: Sliceable | str | os.PathLike[str], options: ImageOptions, normalisation: Normalisation
) -> Iterator[LargeImage]:
    """Opens a file, or an array (H, W) or (H, W, C), inside the block.

    Raises:
        InputError: it cannot be read, or is not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        with open_microscopy_image(Path(image), options.selection(), every_channel=options.measures_channels) as source:
            yield LargeImage(source, Path(image), normalisation)
        return
    shape = tuple(image.shape)
    if not (len(shape) == 2 or (len(shape) == 3 and 1 <= shape[2] <= 4)) or 0 in shape:
        raise InputError(f"an image of shape {shape} is neither grey nor RGB(A); give a single plane")
    channels: Any = image if len(shape) == 3 else WithChannels(image)
    source = MicroscopyImage(image, channels=channels, channel_names=tuple(map(str, range(channels.shape[2]))))  # type: ignore[arg-type]
    yield LargeImage(source, None, normalisation)


class LargeImage:
    """Reads windows y0, x0, y1, x1 of an image. ``limits``, its percentiles, are set once they are known."""

    def __init__(self, source: MicroscopyImage, path: Path | None, normalisation: Normalisation) -> None:
        self.path = path
        self.name = str(path) if path else "the image"
        self.pixels: Sliceable = source.pixels
        self.stamp = self._stamp()
        self.source = source
        self.shape = (int(self.pixels.shape[0]), int(self.pixels.shape[1]))
        probe = self.values((0, 0, 1, 1))
        self.dtype = probe.dtype
        self.normalisation = normalisation_of(probe, normalisation)
        self.limits: tuple[float, float] | None = None

    def values(self, box: Box) -> NDArray[Any]:
        """(h, w) or (h, w, C), as in the file. Raises InputError if a value is not finite or cannot be read."""
        y0, x0, y1, x1 = box
        return window(self.pixels, slice(y0, y1), slice(x0, x1), self.name)

    def rgb(self, box: Box) -> NDArray[np.uint8]:
        """(h, w, 3) uint8, as the network sees it. Raises InputError like ``values``."""
        values = self.values(box)
        try:
            return to_rgb8(values, self.normalisation, self.limits)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error

    def measured_limits(self) -> tuple[float, float] | None:
        """The percentiles of the whole image that its normalisation needs; None if it needs none. Reads the image once
        or several times (see :func:`~pffnet_d2.imaging.lazy.percentiles`)."""
        return limits(self.pixels, self.normalisation, self.name)

    def exported(self, options: ImageOptions, label: str) -> SourceImage:
        """The image as exporters take it. ``label`` names it in tables."""
        return SourceImage(
            self.path.name if self.path else self.name,
            self.shape,
            self.values,
            self.rgb,
            whole=False,
            pixel_size=options.scale_of(self.source.pixel_size),
            resolution=self.source.resolution,
            measured=Measured(options.measure, label, self.channel_values, self.source.channel_names)
            if options.measure
            else None,
            class_name=options.class_name,
        )

    def channel_values(self, box: Box) -> NDArray[Any]:
        """(h, w, n): all channels of the file. Raises InputError like ``values``."""
        assert self.source.channels is not None
        y0, x0, y1, x1 = box
        return window(self.source.channels, slice(y0, y1), slice(x0, x1), self.name)

    def identity(self) -> list[Any]:
        """Size and digest of all bytes of a file, or shape, type and digest of all values of an array.

        Only a digest reliably tells two versions of an image apart: a few changed pixels may lie anywhere, and the
        modification time differs for a copy and may stay the same after an edit. Computing it reads the file once at
        the speed of the disk, which takes seconds where the network takes an hour. While the run lasts, the
        modification time is enough to notice a change (``changed``).
        """
        if self.path is None or self.stamp is None:
            return [list(map(int, self.pixels.shape)), str(self.dtype), digest(self.pixels, self.name)]
        try:
            if isinstance(self.pixels, ZarrPlane):
                return [self.stamp[0], self.pixels.image.digest()]
            return [self.stamp[0], sha256(self.path)]
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror}); check the path") from error

    def changed(self) -> bool:
        """Whether the file was modified after the image was opened."""
        return self._stamp() != self.stamp

    def _stamp(self) -> tuple[int, int] | None:
        """Size of the file in bytes and its modification time in nanoseconds; of an OME-Zarr, the sum and the latest of
        its files."""
        if self.path is None:
            return None
        try:
            if isinstance(self.pixels, ZarrPlane):
                every = [path.stat() for path in self.pixels.image.files()]
                return sum(one.st_size for one in every), max(one.st_mtime_ns for one in every)
            status = self.path.stat()
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror}); check the path") from error
        return status.st_size, status.st_mtime_ns
