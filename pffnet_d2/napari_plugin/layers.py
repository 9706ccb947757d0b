"""Which pixels of a layer are shown, and where labels for them belong.

Layers and dims are napari's, by the attributes used here, so this module does not import napari. Coordinates of a layer
are those of its full resolution, channels of an RGB image aside. A pixel i extends from i - 1/2 to i + 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError

# Relative difference up to which the sides of a pixel count as equal, as for measurements in csv_table.
_SQUARE = 0.01
# Distance in pixels up to which labels count as lying on the pixels of an image.
_ALIGNED = 0.1


@dataclass(frozen=True)
class Window:
    """A window of a plane of a layer: a slice for each of the two axes that are shown, an index for each other axis."""

    index: tuple[int | slice, ...]

    @property
    def origin(self) -> tuple[int, ...]:
        """The coordinates of its first pixel."""
        return tuple(part.start if isinstance(part, slice) else part for part in self.index)

    @property
    def axes(self) -> tuple[int, int]:
        """The two axes that are shown, in the order of the data."""
        first, second = (axis for axis, part in enumerate(self.index) if isinstance(part, slice))
        return first, second

    def of(self, layer: Any) -> Any:
        """The pixels, (h, w) or (h, w, C). Arrays that are read when they are needed (dask) are not read here."""
        return full_resolution(layer)[self.index]

    def with_all_axes(self, label_map: NDArray[Any]) -> NDArray[Any]:
        """A label map (h, w) of the window with the axes of the layer; those that are not shown get length 1."""
        return label_map[tuple(slice(None) if isinstance(part, slice) else None for part in self.index)]


def full_resolution(layer: Any) -> Any:
    """The data of a layer; of an image pyramid, its largest level."""
    return layer.data[0] if layer.multiscale else layer.data


def shown_plane(layer: Any, dims: Any) -> Window:
    """The whole plane of an image layer that the viewer shows.

    Args:
        layer: an image.
        dims: of the viewer.

    Raises:
        InputError: the viewer shows three dimensions, an axis that the layer does not have, or a plane outside of it.
    """
    if dims.ndisplay != 2:
        raise InputError("the viewer shows three dimensions; switch to two (the cube below the layer list)")
    displayed = [axis - (dims.ndim - layer.ndim) for axis in dims.displayed]
    if min(displayed) < 0:
        raise InputError(f"{layer.name}: lacks an axis that the viewer shows; roll the dimensions back")
    point = layer.world_to_data(dims.point)
    index: list[int | slice] = []
    for axis, length in enumerate(full_resolution(layer).shape[: layer.ndim]):
        if axis in displayed:
            index.append(slice(0, length))
            continue
        place = round(float(point[axis]))
        if not 0 <= place < length:
            raise InputError(f"{layer.name}: has no plane where the sliders are; move them into the layer")
        index.append(place)
    return Window(tuple(index))


def visible_part(layer: Any, plane: Window) -> Window:
    """The part of a plane that the camera shows, as large as needed to cover it where the layer is turned.

    Raises:
        InputError: the camera shows none of it.
    """
    factors = layer.downsample_factors[layer.data_level] if layer.multiscale else np.ones(layer.ndim)
    first, last = layer.corner_pixels
    index = list(plane.index)
    for axis in plane.axes:
        length = plane.index[axis].stop  # type: ignore[union-attr]
        if first[axis] == last[axis] and length > 1:  # clipped to the border of the layer
            raise InputError(f"{layer.name}: is not in view; move the camera to it, or choose the whole plane")
        start, stop = int(first[axis] * factors[axis]), int(np.ceil((last[axis] + 1) * factors[axis]))
        index[axis] = slice(max(start, 0), min(stop, length))
    return Window(tuple(index))


def placement(layer: Any, window: Window) -> dict[str, Any]:
    """The arguments with which a Labels layer lies on the window: scale, translation, rotation, shear, affine, units.

    napari computes world = affine(translate + linear(data)), where scale, rotation and shear make up ``linear``.
    """
    kept = {name: getattr(layer, name) for name in ("scale", "rotate", "shear", "affine", "units", "axis_labels")}
    return {**kept, "translate": np.asarray(layer.affine.inverse(layer.data_to_world(window.origin)))}


def pixel_size(layer: Any, window: Window) -> float | None:
    """Side of a pixel in micrometres; None where the layer has no unit of length or pixels are not square."""
    sides = []
    for axis in window.axes:
        unit = layer.units[axis]
        if not unit.is_compatible_with("micrometer"):
            return None
        sides.append(float((abs(float(layer.scale[axis])) * unit).to("micrometer").magnitude))
    height, width = sides
    return height if math.isclose(height, width, rel_tol=_SQUARE) else None


def labelled_planes(image: Any, labels: Any, axes: Sequence[int]) -> Iterator[tuple[Window, NDArray[Any]]]:
    """The planes of a Labels layer that have an object, each with the window of the image that it covers.

    Args:
        image: an image layer.
        labels: a layer of labels for all of it or a part.
        axes: the two axes that make up a plane.

    Yields:
        The window, and a copy of the labels (h, w).

    Raises:
        InputError: the two layers differ in their axes or pixels, labels lie outside of the image, or no plane has an
            object.
    """
    origin = _origin_in(image, labels)
    ids = np.asarray(full_resolution(labels))
    hidden = [axis for axis in range(ids.ndim) if axis not in axes]
    found = False
    for place in np.ndindex(*(ids.shape[axis] for axis in hidden)):
        at: dict[int, int] = dict(zip(hidden, place, strict=True))
        plane = ids[tuple(at.get(axis, slice(None)) for axis in range(ids.ndim))]
        if plane.any():
            found = True
            yield (
                Window(
                    tuple(
                        start + at[axis] if axis in at else slice(start, start + ids.shape[axis])
                        for axis, start in enumerate(origin)
                    )
                ),
                plane.copy(),
            )
    if not found:
        raise InputError(f"{labels.name}: has no labels; draw the objects, or remove the pair")


def _origin_in(image: Any, labels: Any) -> list[int]:
    """The pixel of the image on which the first pixel of the labels lies. Raises InputError like labelled_planes."""
    if labels.ndim != image.ndim:
        raise InputError(
            f"{labels.name}: has {labels.ndim} axes and {image.name} has {image.ndim}; give labels of the same axes"
        )
    shape = np.array(full_resolution(labels).shape)
    first = np.asarray(image.world_to_data(labels.data_to_world(np.zeros(labels.ndim))))
    last = np.asarray(image.world_to_data(labels.data_to_world(shape - 1)))
    origin = np.rint(first)
    if max(abs(first - origin).max(), abs(last - origin - (shape - 1)).max()) > _ALIGNED:
        raise InputError(
            f"{labels.name}: its pixels do not lie on those of {image.name}; give labels that were made for this image"
        )
    if (origin < 0).any() or (origin + shape > full_resolution(image).shape[: image.ndim]).any():
        raise InputError(f"{labels.name}: reaches beyond {image.name}; give labels that were made for this image")
    return [int(start) for start in origin]
