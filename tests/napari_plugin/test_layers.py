"""Which pixels are meant, and where labels belong, on stand-ins for napari's layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.napari_plugin.layers import Window, labelled_planes, pixel_size, shown_plane, visible_part


@dataclass
class Layer:
    """world = translate + scale * data"""

    data: Any
    rgb: bool = False
    scale: Any = 1.0
    translate: Any = 0.0
    name: str = "cells"
    multiscale: bool = False
    corner_pixels: Any = None
    data_level: int = 0
    units: Any = field(default_factory=list)

    @property
    def ndim(self) -> int:
        data = self.data[0] if self.multiscale else self.data
        return int(data.ndim - self.rgb)

    @property
    def downsample_factors(self) -> NDArray[np.float64]:
        shapes = np.array([level.shape[: self.ndim] for level in self.data], float)
        return np.asarray(shapes[0] / shapes)

    def data_to_world(self, position: Any) -> tuple[float, ...]:
        return tuple(np.asarray(position) * self.scale + self.translate)

    def world_to_data(self, position: Any) -> NDArray[np.float64]:
        return np.asarray((np.asarray(position)[-self.ndim :] - self.translate) / self.scale)


def dims(point: Any, order: Any = None, ndisplay: int = 2) -> Any:
    order = order or range(len(point))
    return SimpleNamespace(ndim=len(point), point=point, ndisplay=ndisplay, displayed=tuple(order)[-ndisplay:])


STACK = np.arange(5 * 6 * 7).reshape(5, 6, 7)


@pytest.mark.parametrize(
    ("layer", "view", "pixels"),
    [
        (Layer(STACK[0]), dims((9.0, 9.0)), STACK[0]),
        (Layer(STACK[0]), dims((3.0, 9.0, 9.0)), STACK[0]),  # a plane below a stack
        (Layer(STACK), dims((2.0, 0.0, 0.0)), STACK[2]),
        (Layer(STACK, scale=(0.5, 1, 1)), dims((2.0, 0.0, 0.0)), STACK[4]),
        (Layer(STACK, translate=(-10, 0, 0)), dims((-9.6, 0.0, 0.0)), STACK[0]),
        (Layer(STACK), dims((0.0, 3.0, 0.0), order=(1, 0, 2)), STACK[:, 3]),
        (Layer(STACK), dims((0.0, 3.0, 0.0), order=(1, 2, 0)), STACK[:, 3]),  # transposed: in the order of the data
        (Layer(np.stack([STACK] * 3, axis=-1), rgb=True), dims((1.0, 0, 0)), np.stack([STACK[1]] * 3, axis=-1)),
        (Layer([STACK, STACK[:, ::2, ::2]], multiscale=True), dims((1.0, 0, 0)), STACK[1]),
    ],
)
def test_the_plane_that_is_shown(layer: Layer, view: Any, pixels: NDArray[Any]) -> None:
    window = shown_plane(layer, view)
    assert (window.of(layer) == pixels).all()
    labels = window.with_all_axes(np.zeros(pixels.shape[:2], np.int32))
    assert labels.ndim == layer.ndim
    data = layer.data[0] if layer.multiscale else layer.data
    place = tuple(slice(start, start + length) for start, length in zip(window.origin, labels.shape, strict=True))
    assert (np.squeeze(data[place]) == pixels).all()


@pytest.mark.parametrize(
    ("layer", "view", "said"),
    [
        (Layer(STACK), dims((0.0, 0.0, 0.0), ndisplay=3), "the viewer shows three dimensions; switch to two"),
        (Layer(STACK), dims((5.0, 0.0, 0.0)), "cells: has no plane where the sliders are"),
        (Layer(STACK), dims((-1.0, 0.0, 0.0)), "cells: has no plane where the sliders are"),
        (Layer(STACK[0]), dims((0.0, 0.0, 0.0), order=(2, 0, 1)), "cells: lacks an axis that the viewer shows"),
    ],
)
def test_no_plane_is_shown(layer: Layer, view: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        shown_plane(layer, view)


def test_what_the_camera_shows() -> None:
    layer = Layer(STACK, corner_pixels=np.array([[0, 1, 2], [0, 4, 6]]))
    window = visible_part(layer, shown_plane(layer, dims((3.0, 0.0, 0.0))))
    assert window == Window((3, slice(1, 5), slice(2, 7)))
    assert window.origin == (3, 1, 2)


def test_what_the_camera_shows_of_a_pyramid() -> None:
    large = np.zeros((100, 203))
    layer = Layer([large, large[::4, ::4]], multiscale=True, data_level=1)
    layer.corner_pixels = np.array([[3, 10], [7, 50]])  # of the level with 25 x 51 pixels
    window = visible_part(layer, shown_plane(layer, dims((0.0, 0.0))))
    assert window.index[0] == slice(12, 32)
    assert window.index[1] == slice(39, 203)  # 203 / 51 per pixel


@pytest.mark.parametrize("corners", [[[0, 0], [0, 0]], [[5, 1], [5, 3]], [[1, 6], [3, 6]]])
def test_the_camera_shows_none_of_it(corners: Any) -> None:
    layer = Layer(STACK[0], corner_pixels=np.array(corners))
    with pytest.raises(InputError, match="cells: is not in view; move the camera"):
        visible_part(layer, shown_plane(layer, dims((0.0, 0.0))))


class Unit:
    """Of length, in micrometres; 0: a pixel."""

    def __init__(self, micrometres: float) -> None:
        self.micrometres = micrometres

    def is_compatible_with(self, other: str) -> bool:
        return self.micrometres > 0

    def __rmul__(self, count: float) -> Any:
        return SimpleNamespace(to=lambda unit: SimpleNamespace(magnitude=count * self.micrometres))


@pytest.mark.parametrize(
    ("scale", "units", "size"),
    [
        ((0.5, 0.5), (1, 1), 0.5),
        ((500, 500), (0.001, 0.001), 0.5),
        ((0.5, -0.5), (1, 1), 0.5),  # mirrored
        ((0.5, 0.6), (1, 1), None),
        ((0.5, 0.5), (0, 0), None),
        ((0.5, 0.5), (1, 0), None),
    ],
)
def test_pixel_size(scale: Any, units: Any, size: float | None) -> None:
    layer = Layer(STACK[0], scale=scale, units=[Unit(u) for u in units])
    assert pixel_size(layer, Window((slice(0, 6), slice(0, 7)))) == (None if size is None else pytest.approx(size))


LABELS = np.zeros((2, 3), np.int64)
LABELS[1, 1:] = 7


def test_labels_of_a_part_of_an_image() -> None:
    image = Layer(STACK[0], scale=0.25, translate=(3, 5))
    labels = Layer(LABELS, scale=0.25, translate=(3 + 0.25 * 2, 5 + 0.25 * 4))
    ((window, plane),) = labelled_planes(image, labels, (0, 1))
    assert window == Window((slice(2, 4), slice(4, 7)))
    assert (window.of(image) == STACK[0, 2:4, 4:7]).all()
    assert (plane == LABELS).all()
    labels.data[1, 1] = 0  # the user goes on painting
    assert plane[1, 1] == 7
    labels.data[1, 1] = 7


def test_only_planes_with_objects() -> None:
    ids = np.zeros((3, 6, 7), np.uint8)
    ids[0, 1, 1], ids[2, 3, 3] = 5, 6
    image, labels = Layer(STACK), Layer(ids, translate=(2, 0, 0))
    found = list(labelled_planes(image, labels, (1, 2)))
    assert [window.index[0] for window, _ in found] == [2, 4]
    assert (found[1][0].of(image) == STACK[4]).all()
    assert found[1][1][3, 3] == 6
    across = [window.index for window, _ in labelled_planes(image, labels, (2, 0))]
    assert across == [(slice(2, 5), y, slice(0, 7)) for y in (1, 3)]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (Layer(LABELS, name="l", translate=(0.4, 0)), "l: its pixels do not lie on those of cells"),
        (Layer(LABELS, name="l", scale=2), "l: its pixels do not lie on those of cells"),
        (Layer(LABELS, name="l", translate=(5, 0)), "l: reaches beyond cells"),
        (Layer(LABELS, name="l", translate=(-1, 0)), "l: reaches beyond cells"),
        (Layer(LABELS[None], name="l"), "l: has 3 axes and cells has 2"),
        (Layer(np.zeros_like(LABELS), name="l"), "l: has no labels; draw the objects"),
    ],
)
def test_labels_that_do_not_belong_to_the_image(labels: Layer, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(labelled_planes(Layer(STACK[0]), labels, (0, 1)))
