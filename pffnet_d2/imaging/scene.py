"""One image of a microscopy file with all its planes and channels, and the choice of what is read of it.

Each kind of file is opened as a :class:`Scene`. Choosing channels by name, one plane after the other, and projections
are the same for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.axes import channel_axis_of, check_choice, choice, reduce_axes
from pffnet_d2.imaging.tiff import damage_named

ALL = "all"


class Sliceable(Protocol):
    """An image (H, W) or (H, W, C); ``array[y0:y1, x0:x1]`` is a part of it that ``np.asarray`` accepts."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is read of a file.

    Attributes:
        plane: of a stack, the index (from 0) along each axis, as in {"Z": 3, "T": 0}, or a single index if the stack
            has only one axis.
        channels: one channel, read as grey, or three, read as red, green and blue; numbers from 0 or the names in the
            file. None reads grey and RGB(A) files as they are. If the file does not name a channel axis, its only stack
            axis contains the channels.
        scene: of a file with several images: number (from 0) or name.
        project: "max" reads the brightest value along Z, or along the only axis that ``plane`` leaves open.
        level: of a pyramid, the level whose pixels are closest to this size in micrometres; None reads the largest.
    """

    plane: Mapping[str, int] | int | None = None
    channels: Sequence[int | str] | None = None
    scene: int | str | None = None
    project: str | None = None
    level: float | None = None


@dataclass(frozen=True)
class Scene:
    """One image of a file. Nothing of it is read yet.

    Attributes:
        name: of the file, for messages.
        sizes: lengths of the axes longer than 1 other than Y and X: S (samples), C (channels), others (stack).
        rgb: whether the samples of a pixel form one colour and are not channels.
        open_plane: given a plane and channels (numbers), the image (H, W), (H, W, 3) or (H, W, n), which is read when
            it is sliced. Raises InputError if they do not choose one image.
        channel_names: one per channel; empty if the file does not name them.
        pixel_size: height and width in micrometres, if the file states it.
        resolution: XResolution, YResolution, ResolutionUnit of a TIFF.
    """

    name: str
    sizes: dict[str, int]
    rgb: bool
    open_plane: Callable[[Mapping[str, int] | int | None, Sequence[int] | None], Sliceable]
    channel_names: tuple[str, ...] = ()
    pixel_size: tuple[float, float] | None = None
    resolution: tuple[Any, Any, int] | None = None

    def chosen(self, selection: Selection) -> Sliceable:
        """The image that a selection chooses. Raises InputError naming the file if it does not choose one."""
        channels = self._numbers(selection.channels)
        axis = channel_axis_of(self.sizes, channels, self.rgb)
        if channels is None and axis and self.channel_names:
            count = self.sizes[axis]
            raise InputError(
                f"{self.name}: {count} channels ({', '.join(self.channel_names)}); choose one by number or name "
                f"(--channels {self.channel_names[0]})" + (" or three as red, green and blue" if count > 2 else "")
            )
        return self._projected(selection, channels)

    def every_channel(self, selection: Selection) -> Sliceable:
        """All channels, (H, W, n), of the plane that a selection chooses; the samples of an RGB image are its
        channels."""
        axis = channel_axis_of(self.sizes, self._numbers(selection.channels), self.rgb)
        # Without an axis of channels no number is given, because it would choose from a stack.
        image = self._projected(selection, range(self.sizes[axis]) if axis else None)
        return WithChannels(image) if len(image.shape) == 2 else image

    def names_of_channels(self, selection: Selection) -> list[str]:
        """Names of the channels that ``every_channel`` returns: those of the file, else red, green and blue, or
        numbers. Equal names get their number too."""
        axis = channel_axis_of(self.sizes, self._numbers(selection.channels), self.rgb)
        samples = self.sizes.get("S", 1) if self.rgb else 1
        if axis is None:
            return ["red", "green", "blue"] if samples > 2 else [self.channel_names[0] if self.channel_names else "0"]
        names = self.channel_names or tuple(map(str, range(self.sizes[axis])))
        return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]

    def planes(self, selection: Selection) -> list[dict[str, int]]:
        """Every plane of the stack, in the order of its axes; [{}] if there is a single one. With a projection, one
        plane for each that remains."""
        stack = self._stack(self._numbers(selection.channels))
        if selection.project:
            stack.pop(self._projected_axis(stack, {}), None)
        return [
            dict(zip(stack, index, strict=True)) for index in itertools.product(*(range(n) for n in stack.values()))
        ]

    def _stack(self, channels: Sequence[int] | None) -> dict[str, int]:
        axis = channel_axis_of(self.sizes, channels, self.rgb)
        return {a: n for a, n in self.sizes.items() if a != axis and a not in "SYX"}

    def _numbers(self, channels: Sequence[int | str] | None) -> list[int] | None:
        """The numbers of channels that are given by number or name."""
        if channels is None:
            return None
        return [self._number(channel) for channel in channels]

    def _number(self, channel: int | str) -> int:
        names = list(self.channel_names)
        if isinstance(channel, int) and (channel < len(names) or str(channel) not in names):
            return channel  # a number without a channel is refused where the plane is opened
        wanted = str(channel)
        found = [i for i, name in enumerate(names) if name == wanted]
        found = found or [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"{self.name}: {len(found)} channels are called {wanted}; give a number (--channels {found[0]})"
            )
        known = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        hint = f"its channels are {known}" if known else "the file does not name its channels, give numbers from 0"
        raise InputError(f"{self.name}: no channel {wanted!r} (--channels {wanted}): {hint}")

    def _projected(self, selection: Selection, channels: Sequence[int] | None) -> Sliceable:
        if selection.project is None:
            return self.open_plane(selection.plane, channels)
        stack = self._stack(channels)
        if isinstance(selection.plane, int):
            raise InputError(
                f"{self.name}: --plane {selection.plane} and a projection; name the axes that are not projected, as in "
                "--plane T=0"
            )
        plane = {axis.upper(): index for axis, index in (selection.plane or {}).items()}
        axis = self._projected_axis(stack, plane)
        if axis in plane:
            raise InputError(f"{self.name}: {axis} is projected; leave {axis} out of --plane")
        rest = {a: n for a, n in stack.items() if a != axis}
        choice(rest, self.name, plane or None)
        return _MaxProjection(
            [partial(self.open_plane, plane | {axis: index}, channels) for index in range(stack[axis])]
        )

    def _projected_axis(self, stack: Mapping[str, int], plane: Mapping[str, int]) -> str:
        open_axes = [axis for axis in stack if axis not in plane]
        if "Z" in stack:
            return "Z"
        if len(open_axes) == 1:
            return open_axes[0]
        shape = ", ".join(f"{axis} {n}" for axis, n in stack.items())
        there = f"a stack ({shape}) without Z; leave one axis out of --plane" if stack else "a single plane"
        raise InputError(f"{self.name}: nothing to project: it is {there}; leave --project out")


class _MaxProjection:
    """The largest value of several planes at each pixel. The planes are opened for each window, one after the other, so
    that their caches do not add up."""

    def __init__(self, planes: Sequence[Callable[[], Sliceable]]) -> None:
        self._planes = planes
        first = planes[0]()
        self.shape, self.dtype = first.shape, first.dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        largest = np.asarray(self._planes[0]()[key])
        for plane in self._planes[1:]:
            largest = np.maximum(largest, plane()[key])  # not a number stays one, and is refused later
        return largest


class WithChannels:
    """A grey image as an image (H, W, 1)."""

    def __init__(self, grey: Sliceable) -> None:
        self._grey = grey
        self.shape, self.dtype = (*grey.shape, 1), grey.dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return np.asarray(self._grey[key])[..., None]


class ArrayPlane:
    """One plane, with its channels, of an array with named axes that reads what is sliced (memory maps, dask)."""

    def __init__(
        self,
        array: Any,
        axes: str,
        name: str,
        plane: Mapping[str, int] | int | None,
        channels: Sequence[int] | None,
        rgb: bool,
    ) -> None:
        """
        Args:
            array: any number of dimensions, sliceable.
            axes: one letter per dimension.
            name: of the file, for messages.
            plane, channels, rgb: as for ``axes.check_choice``.

        Raises:
            InputError: see ``axes.check_choice``.
        """
        sizes = long_axes(dict(zip(axes, array.shape, strict=True)))
        check_choice(sizes, name, plane, channels, rgb)
        self._array, self._axes, self._name, self._rgb = array, axes, name, rgb
        axis = channel_axis_of(sizes, channels, rgb)
        stack = choice({a: n for a, n in sizes.items() if a not in ("S", axis)}, name, plane)
        # Slices and at most one list, so that numpy keeps the order of the axes.
        self._index: dict[str, Any] = {a: slice(i, i + 1) for a, i in stack.items()}
        self._channels = channels
        if channels is not None and axis:
            self._index[axis] = list(channels)
            self._channels = range(len(channels))
        counts = {a: 1 if a in "YX" or a in stack else n for a, n in zip(axes, array.shape, strict=True)}
        if channels is not None and axis:
            counts[axis] = len(channels)
        probe = self._reduced(np.zeros(list(counts.values()), np.bool_))
        height, width = (array.shape[axes.index(a)] for a in "YX")
        self.shape: tuple[int, ...] = (int(height), int(width), *probe.shape[2:])
        self.dtype = np.dtype(array.dtype).newbyteorder("=")

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        index = self._index | dict(zip("YX", key, strict=True))
        with damage_named(self._name):
            values = np.asarray(self._array[tuple(index.get(axis, slice(None)) for axis in self._axes)])
        return self._reduced(values.astype(self.dtype, copy=False))

    def _reduced(self, values: NDArray[Any]) -> NDArray[Any]:
        return reduce_axes(values, self._axes, self._name, None, self._channels, self._rgb)


def long_axes(sizes: Mapping[str, int]) -> dict[str, int]:
    """The axes longer than 1 other than Y and X."""
    return {axis: int(n) for axis, n in sizes.items() if n > 1 and axis not in "YX"}


def scene_number(scene: int | str | None, names: Sequence[str], name: str, shapes: Sequence[str]) -> int:
    """The number of the chosen image of a file with several images.

    Args:
        scene: a number from 0, or a name; None if the file should have one image.
        names: of the images.
        name: of the file, for messages.
        shapes: of the images, for messages.

    Raises:
        InputError: naming the file: there is no such image, or several and no choice.
    """
    count = len(names)
    if scene is None:
        if count > 1:
            raise InputError(
                f"{name}: contains {count} images ({', '.join(shapes[:4])}); choose one (--scene 0) or all (--scene "
                "all)"
            )
        return 0
    if isinstance(scene, int) and 0 <= scene < count:
        return scene
    found = [i for i, one in enumerate(names) if one == str(scene)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{i} {one}".strip() for i, one in enumerate(names[:8]))
    raise InputError(f"{name}: no image {scene} (--scene {scene}): it has {count}, from 0 to {count - 1} ({listed})")
