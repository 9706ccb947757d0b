"""Chooses one plane and its channels from an array with named axes: Y, X, S (samples), C (channels), others (stack)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.errors import InputError


def check_choice(
    sizes: dict[str, int], name: str, plane: Mapping[str, int] | int | None, channels: Sequence[int] | None, rgb: bool
) -> None:
    """Check that plane and channels choose one image from the axes longer than 1; see ``read_microscopy_image``.

    Raises:
        InputError: naming ``name``: they do not; the message says how to choose.
    """
    sizes = {axis: n for axis, n in sizes.items() if axis not in "YX"}
    channel_axis = channel_axis_of(sizes, channels, rgb)
    stack = {axis: n for axis, n in sizes.items() if axis != channel_axis and axis != "S"}
    choice(stack, name, plane)
    count = sizes.get(channel_axis, 1) if channel_axis else (sizes.get("S", 1) if rgb else 1)
    if channels is not None:
        wrong = [c for c in channels if not 0 <= c < count]
        if wrong:
            raise InputError(f"{name}: no channel {wrong[0]}: it has {count}, from 0 to {count - 1}")
    elif channel_axis and count > 1:
        three = " or three as red, green and blue (--channels 0,1,2)" if count > 2 else ""
        raise InputError(f"{name}: {count} channels; choose one (--channels 0){three}")


def channel_axis_of(sizes: Mapping[str, int], channels: Sequence[int] | None, rgb: bool) -> str | None:
    """The axis along which ``channels`` are numbered; None for grey and RGB."""
    if "C" in sizes:
        return "C"
    if "S" in sizes:
        return None if rgb else "S"
    stack = [axis for axis in sizes if axis not in "YX"]
    return stack[0] if channels is not None and len(stack) == 1 else None


def choice(stack: Mapping[str, int], name: str, plane: Mapping[str, int] | int | None) -> dict[str, int]:
    """The chosen index along each axis of a stack.

    Raises:
        InputError: naming ``name``: an index is missing or out of range; an index other than 0 is given for an axis
            that the stack does not have.
    """
    shape = ", ".join(f"{axis} {n}" for axis, n in stack.items())
    if not stack and (plane is None or isinstance(plane, int)):
        if plane:
            raise InputError(f"{name}: no plane {plane}: it is a single plane; leave --plane out")
        return {}
    if plane is None or (isinstance(plane, int) and len(stack) > 1):
        example = "--plane 0" if len(stack) == 1 else "--plane " + ",".join(f"{axis}=0" for axis in stack)
        raise InputError(
            f"{name}: a stack of {math.prod(stack.values())} planes ({shape}); choose one, as in {example}"
        )
    chosen = {next(iter(stack)): plane} if isinstance(plane, int) else {axis.upper(): i for axis, i in plane.items()}
    for axis, n in stack.items():
        if axis not in chosen:
            raise InputError(f"{name}: a stack ({shape}); --plane has no index for {axis}; add one, such as {axis}=0")
        if not 0 <= chosen[axis] < n:
            raise InputError(f"{name}: no plane {axis}={chosen[axis]}: there are {n}, from 0 to {n - 1}")
    for axis, index in chosen.items():
        if axis not in stack and index:
            there = f"a stack ({shape})" if stack else "a single plane"
            remedy = f"choose channels by --channels {index}" if axis == "C" else f"leave {axis} out of --plane"
            raise InputError(f"{name}: no plane {axis}={index}: it is {there}; {remedy}")
    return {axis: chosen[axis] for axis in stack}


def reduce_axes(
    pixels: NDArray[Any],
    axes: str,
    name: str,
    plane: Mapping[str, int] | int | None,
    channels: Sequence[int] | None,
    rgb: bool,
) -> NDArray[Any]:
    """The chosen plane of an array with named axes (see the module): (H, W), (H, W, 3), or (H, W, n) of n channels.

    Raises:
        InputError: naming ``name``: see ``check_choice``.
    """
    keep = [i for i, (axis, n) in enumerate(zip(axes, pixels.shape, strict=True)) if n > 1 or axis in "YX"]
    pixels = pixels.reshape([pixels.shape[i] for i in keep])
    axes = "".join(axes[i] for i in keep)
    sizes = dict(zip(axes, pixels.shape, strict=True))
    check_choice(sizes, name, plane, channels, rgb)
    channel_axis = channel_axis_of({a: n for a, n in sizes.items() if a not in "YX"}, channels, rgb)
    stack = {axis: n for axis, n in sizes.items() if axis not in ("Y", "X", "S", channel_axis)}
    for axis, index in choice(stack, name, plane).items():
        if axis in axes:
            pixels = np.take(pixels, index, axis=axes.index(axis))
            axes = axes.replace(axis, "")
    order = ["Y", "X", *(axis for axis in axes if axis not in "YX")]
    pixels = pixels.transpose([axes.index(axis) for axis in order])
    if channels is not None and pixels.ndim == 3:
        pixels = pixels[:, :, channels[0]] if len(channels) == 1 else pixels[:, :, list(channels)]
    elif channels is not None and len(channels) == 3:  # grey: the checks allow only 0,0,0
        pixels = np.stack([pixels] * 3, axis=2)
    elif pixels.ndim == 3:  # grey with alpha; RGB with alpha
        pixels = pixels[:, :, 0] if pixels.shape[2] == 2 else pixels[:, :, :3]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and (pixels.shape[2] == 3 or channels is not None)):
        raise InputError(f"{name}: its axes {axes} of {pixels.shape} are not understood; save one plane as grey or RGB")
    return np.ascontiguousarray(pixels)
