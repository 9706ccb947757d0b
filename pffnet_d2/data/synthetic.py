"""Procedural images of nuclei with exact label maps, for the demonstration, the tests and the benchmarks.

The label map is drawn first and the image is rendered from it, so that the truth is exact. There are two styles:

- ``fluorescence``: bright nuclei on a dark, uneven, hazy background, photon and read noise; some nuclei are dim, some
  fields are empty;
- ``histology``: haematoxylin-and-eosin-like, rendered in optical density (Beer-Lambert, stain vectors of Macenko et al.
  2009) over fibrous stroma.

Nuclei are ellipses with smooth random outlines. They touch and overlap: a later nucleus lies on top, and one of which
less than ``MIN_VISIBLE`` stays visible is removed, so that every label is a visible object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from pffnet_d2.data.readers.record import Record
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS

STYLES = ("fluorescence", "histology")
NAME = "phantoms"  # of the data set, as users type it
SPLITS: tuple[str, ...] = ("train", "val")
CATEGORY = "nucleus"
NORMALISATION = AS_IS
DEFAULT_COUNT = {"train": 80, "val": 16}
SEEDS = {"train": 1, "val": 2}
MIN_VISIBLE = 0.45  # visible fraction below which a nucleus is removed
MIN_AREA = 12  # pixels; smaller nuclei, cut by the border, are removed
HARMONICS = np.arange(2, 6, dtype=np.float32)  # of the outline; 0 and 1 are size and position

# Optical density per unit of stain in R, G, B: the reference of Macenko et al., ISBI 2009.
HAEMATOXYLIN = np.array([0.5626, 0.7201, 0.4062], np.float32)
EOSIN = np.array([0.2159, 0.8012, 0.5581], np.float32)

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Nucleus:
    """One outline: radius(angle) = 1 + sum_k amplitude_k cos(k angle + phase_k), stretched to (a, b), turned, moved."""

    y: float
    x: float
    a: float
    b: float
    turn: float
    amplitude: Floats
    phase: Floats

    def radius(self, angle: float) -> float:
        """Distance in pixels from the centre to the outline in the direction ``angle`` of the image."""
        own = angle - self.turn
        u, v = np.cos(own) / self.a, np.sin(own) / self.b
        shape = 1 + float(self.amplitude @ np.cos(HARMONICS * np.arctan2(v, u) + self.phase))
        return shape / float(np.hypot(u, v))

    def draw(self, size: tuple[int, int]) -> tuple[slice, slice, Floats] | None:
        """Window (rows, columns) and in it the distance from the centre, 1 on the outline; None if wholly outside."""
        reach = max(self.a, self.b) * (1 + float(self.amplitude.sum())) + 1
        y0, y1 = max(int(self.y - reach), 0), min(int(self.y + reach) + 2, size[0])
        x0, x1 = max(int(self.x - reach), 0), min(int(self.x + reach) + 2, size[1])
        if y0 >= y1 or x0 >= x1:
            return None
        dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(self.y)
        dx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(self.x)
        cos, sin = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        u, v = (dx * cos + dy * sin) / np.float32(self.a), (dy * cos - dx * sin) / np.float32(self.b)
        angle = np.arctan2(v, u)
        outline = np.ones_like(angle)
        for k, amplitude, phase in zip(HARMONICS, self.amplitude, self.phase, strict=True):
            outline += amplitude * np.cos(k * angle + phase)
        return slice(y0, y1), slice(x0, x1), np.asarray(np.hypot(u, v) / outline, np.float32)


Drawn = tuple[slice, slice, Floats]


def synthetic_image(
    seed: int, index: int, *, size: tuple[int, int] = (256, 256), style: str | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Image ``index`` of the infinite series ``seed``.

    Args:
        seed: of the series.
        index: from 0.
        size: height and width in pixels; the number of nuclei grows with the area.
        style: one of ``STYLES``; None draws one.

    Returns:
        The image, (H, W, 3) uint8 RGB, and its label map, (H, W) int32, 0 background, ids 1..n contiguous.

    Raises:
        InputError: an unknown style.
    """
    rng = np.random.default_rng([seed, index])
    drawn_style = STYLES[int(rng.random() < 0.5)]
    style = style or drawn_style
    if style not in STYLES:
        raise InputError(f"unknown style {style!r} of synthetic images; choose one of {', '.join(STYLES)}")
    labels, drawn = _flatten([d for n in _place(rng, size) if (d := n.draw(size)) is not None], size)
    render = _fluorescence if style == "fluorescence" else _histology
    return render(rng, labels, drawn), labels


def records(split: str, count: int | None = None, *, size: tuple[int, int] = (256, 256)) -> Iterator[Record]:
    """The synthetic images of a split: ``count`` of them (80 for train, 16 for val unless given). Splits have different
    seeds. Raises InputError for an unknown split."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r} of {NAME}; choose one of {', '.join(SPLITS)}")
    for index in range(DEFAULT_COUNT[split] if count is None else count):
        yield Record(
            image_id=f"{split}_{index:05d}",
            read_image=partial(_image, SEEDS[split], index, size),
            read_label_map=partial(_label_map, SEEDS[split], index, size),
        )


def _image(seed: int, index: int, size: tuple[int, int]) -> Array:
    return synthetic_image(seed, index, size=size)[0]


def _label_map(seed: int, index: int, size: tuple[int, int]) -> npt.NDArray[np.int32]:
    return synthetic_image(seed, index, size=size)[1]


# ------------------------------------------------------------------------------------------------ geometry


def _place(rng: np.random.Generator, size: tuple[int, int]) -> list[_Nucleus]:
    """The nuclei of one field, which is empty (1 in 25), sparse, ordinary or dense. Some touch an earlier nucleus."""
    height, width = size
    kind = rng.choice(4, p=(0.04, 0.2, 0.46, 0.3))
    fewest, most = ((0, 0), (4, 14), (16, 38), (45, 70))[kind]  # in 256 x 256 pixels
    count = round(rng.uniform(fewest, most) * height * width / 256**2)
    half = rng.uniform(7.0, 10.5) if kind == 3 else rng.uniform(7.5, 15.0)  # mean half axis of the field in pixels
    elongation = rng.uniform(1.1, 1.6)
    roughness = rng.uniform(0.02, 0.075)
    clumping = rng.uniform(0.25, 0.7)
    nuclei: list[_Nucleus] = []
    centres = np.zeros((count, 3))  # y, x, mean half axis
    for i in range(count):
        scale = half * np.exp(rng.normal(0, 0.2))
        stretch = np.sqrt(elongation * np.exp(np.abs(rng.normal(0, 0.15))))
        shape = _Nucleus(
            0.0, 0.0, scale * stretch, scale / stretch, rng.uniform(0, np.pi),
            np.float32(roughness) * np.abs(rng.standard_normal(4, np.float32)) * 2 / HARMONICS,
            rng.uniform(0, 2 * np.pi, 4).astype(np.float32),
        )  # fmt: skip
        for _ in range(12):
            if nuclei and rng.random() < clumping:
                other = nuclei[rng.integers(len(nuclei))]
                angle = rng.uniform(-np.pi, np.pi)
                # 1 is edge to edge, so most touch along a stretch of outline and some overlap
                distance = (other.radius(angle) + shape.radius(angle + np.pi)) * rng.uniform(0.78, 1.0)
                y, x = other.y + distance * np.sin(angle), other.x + distance * np.cos(angle)
            else:
                y, x = rng.uniform(-0.3 * scale, height + 0.3 * scale), rng.uniform(-0.3 * scale, width + 0.3 * scale)
            apart = np.hypot(centres[:i, 0] - y, centres[:i, 1] - x) / (centres[:i, 2] + scale)
            if apart.size == 0 or apart.min() > 0.72:
                break
        else:
            continue  # no room
        centres[i] = y, x, scale
        nuclei.append(_Nucleus(y, x, shape.a, shape.b, shape.turn, shape.amplitude, shape.phase))
    return nuclei


def _flatten(drawn: list[Drawn], size: tuple[int, int]) -> tuple[npt.NDArray[np.int32], list[Drawn]]:
    """The label map, later nuclei on top, and the nuclei that are visible in it. Two passes, as removing some uncovers
    others."""
    for _ in range(2):
        labels = np.zeros(size, np.int32)
        areas = np.zeros(len(drawn) + 1, np.int64)
        for i, (rows, columns, distance) in enumerate(drawn, 1):
            inside = distance < 1
            labels[rows, columns][inside] = i
            areas[i] = inside.sum()
        visible = np.bincount(labels.ravel(), minlength=len(drawn) + 1)
        keep = (visible >= np.maximum(MIN_VISIBLE * areas, MIN_AREA))[1:]
        drawn = [d for d, k in zip(drawn, keep, strict=True) if k]
        if keep.all():
            break
    return labels, drawn


# ------------------------------------------------------------------------------------------------ rendering


def _field(
    rng: np.random.Generator,
    shape: tuple[int, int],
    finest: float,
    coarsest: float,
    fibre: tuple[float, float] | None = None,
) -> Floats:
    """A random texture of mean 0 and standard deviation 1, with wavelengths between ``finest`` and ``coarsest`` pixels
    and more power in the coarse ones. ``fibre`` (angle in radians, factor) stretches it along a direction.
    """
    fy = np.fft.fftfreq(shape[0]).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(shape[1]).astype(np.float32)[None, :]
    if fibre:
        angle, stretch = np.asarray(fibre, np.float32)
        fy, fx = fy * np.cos(angle) - fx * np.sin(angle), fy * np.sin(angle) + fx * np.cos(angle)
        fx = fx * stretch
    square = fy**2 + fx**2
    noise = scipy.fft.rfft2(rng.standard_normal(shape, np.float32))
    noise *= np.exp(-square * np.float32(finest**2)) / (square + np.float32(coarsest**-2))
    noise[0, 0] = 0
    field = scipy.fft.irfft2(noise, s=shape)
    return np.asarray(field / max(float(field.std()), 1e-12), np.float32)


def _layers(
    labels: npt.NDArray[np.int32], drawn: list[Drawn], strength: Floats, profile: Floats, under: float
) -> Floats:
    """Sum over i of strength_i (profile_i0 + profile_i1 distance^2 + profile_i2 rim), covered parts times ``under``."""
    out = np.zeros(labels.shape, np.float32)
    for i, (rows, columns, distance) in enumerate(drawn):
        soft = np.clip((1.04 - distance) * 12, 0, 1)  # edge about a pixel wide
        body = profile[i, 0] + profile[i, 1] * distance**2 + profile[i, 2] * np.exp(-(((distance - 0.9) / 0.12) ** 2))
        window = labels[rows, columns]
        out[rows, columns] += strength[i] * soft * body * np.where((window == i + 1) | (window == 0), 1, under)
    return out


def _spots(
    rng: np.random.Generator, shape: tuple[int, int], drawn: list[Drawn], per_nucleus: float, sigma: float
) -> Floats:
    """Small round spots of height 1 inside nuclei (nucleoli, chromocentres)."""
    out = np.zeros(shape, np.float32)
    for rows, columns, distance in drawn:
        inside = np.argwhere(distance < 0.7)
        if not len(inside):
            continue
        for y, x in inside[rng.integers(len(inside), size=rng.poisson(per_nucleus))]:
            dy = np.arange(distance.shape[0], dtype=np.float32)[:, None] - y
            dx = np.arange(distance.shape[1], dtype=np.float32)[None, :] - x
            np.maximum(out[rows, columns], np.exp(-(dy**2 + dx**2) / (2 * sigma**2)), out=out[rows, columns])
    return out


def _fluorescence(rng: np.random.Generator, labels: npt.NDArray[np.int32], drawn: list[Drawn]) -> npt.NDArray[np.uint8]:
    shape, n = labels.shape, len(drawn)
    brightness = np.exp(rng.normal(0, rng.uniform(0.1, 0.4), n))
    brightness = np.where(
        rng.random(n) < rng.uniform(0, 0.3), brightness * rng.uniform(0.15, 0.35, n), brightness
    )  # dim ones
    dome = rng.uniform(0.0, 0.45, n)
    profile = np.stack([np.ones(n), -dome, np.zeros(n)], 1)
    signal = _layers(labels, drawn, brightness.astype(np.float32), profile.astype(np.float32), under=0.35)
    signal *= np.clip(1 + rng.uniform(0.04, 0.22) * _field(rng, shape, 1.5, 12), 0.2, None)
    signal *= 1 - rng.uniform(0.0, 0.5) * _spots(rng, shape, drawn, 2.0, rng.uniform(1.0, 2.0))
    signal = scipy.ndimage.gaussian_filter(signal, rng.uniform(0.5, 1.5))
    # light from above and below the plane: a faint glow around nuclei, drawn by a coarse blur of every 4th pixel
    coarse = scipy.ndimage.gaussian_filter(signal[::4, ::4], rng.uniform(2, 4))
    glow = coarse.repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]]
    signal += rng.uniform(0.02, 0.18) * scipy.ndimage.gaussian_filter(glow, 2)
    debris = rng.poisson(1.5)
    for y, x in rng.integers(shape, size=(debris, 2)):
        signal[y : y + 2, x : x + 2] += rng.uniform(0.1, 0.4)
    shading = np.clip(1 + rng.uniform(0.05, 0.2) * _field(rng, shape, 150, 400), 0.5, 1.5)
    background = rng.uniform(0.03, 0.2) * np.clip(1 + 0.3 * _field(rng, shape, 40, 200), 0.1, None)
    light = shading * (signal + background)
    photons = np.exp(rng.uniform(np.log(40), np.log(500)))
    light = light + np.sqrt(light / photons) * rng.standard_normal(
        shape, np.float32
    )  # shot noise, Gaussian at these counts
    light = light + rng.uniform(0.005, 0.025) * rng.standard_normal(shape, np.float32)  # read noise
    gain = rng.uniform(60, 170)
    grey = np.clip(np.rint(gain * light + rng.uniform(0, 10)), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _histology(rng: np.random.Generator, labels: npt.NDArray[np.int32], drawn: list[Drawn]) -> npt.NDArray[np.uint8]:
    shape, n = labels.shape, len(drawn)
    # stroma: eosin in wavy fibres, pale gaps, a little haematoxylin everywhere
    fibres = _field(rng, shape, 2.0, 20, fibre=(rng.uniform(0, np.pi), rng.uniform(1, 4)))
    regions = _field(rng, shape, 20, 80)
    eosin = rng.uniform(0.3, 0.55) * np.clip(1 + 0.2 * regions, 0.2, None) + rng.uniform(0.04, 0.09) * fibres
    gaps = 1 / (1 + np.exp(-8 * (_field(rng, shape, 14, 60) - rng.uniform(1.0, 2.2))))
    eosin = np.clip(eosin, 0.03, None) * (1 - 0.85 * gaps)
    haze = rng.uniform(0.03, 0.14) * np.clip(1 + 0.5 * _field(rng, shape, 3, 30), 0, None) * (1 - 0.8 * gaps)

    depth = np.exp(rng.normal(0, rng.uniform(0.12, 0.25), n)) * rng.uniform(0.8, 1.4)
    depth = np.where(
        rng.random(n) < rng.uniform(0, 0.25), depth * 0.5, depth
    )  # pale, hardly darker than their surroundings
    vesicular = (rng.random(n) < rng.uniform(0, 0.7)).astype(np.float32)  # pale inside, dark rim
    profile = np.stack([1 - 0.4 * vesicular, 0.05 + 0.1 * vesicular, 0.12 + 0.35 * vesicular], 1)
    nuclei = _layers(labels, drawn, depth.astype(np.float32), profile.astype(np.float32), under=0.3)
    nuclei *= np.clip(1 + rng.uniform(0.1, 0.28) * _field(rng, shape, 1.2, 6), 0.3, None)
    nuclei *= 1 + rng.uniform(0.1, 0.6) * _spots(rng, shape, drawn, 1.2, rng.uniform(0.9, 1.6))
    sigma = rng.uniform(0.5, 1.0)
    nuclei = scipy.ndimage.gaussian_filter(nuclei, sigma)
    covered = scipy.ndimage.gaussian_filter((labels > 0).astype(np.float32), sigma)

    stains = np.stack([HAEMATOXYLIN, EOSIN]) * (1 + rng.normal(0, 0.05, (2, 3)))
    amounts = np.stack([nuclei + haze, eosin * (1 - 0.6 * covered)], -1)
    light = np.exp(-amounts.astype(np.float32) @ stains.astype(np.float32) * np.float32(rng.uniform(0.9, 1.25)))
    light *= 1 + rng.uniform(0, 0.04) * _field(rng, shape, 150, 400)[:, :, None]
    light += rng.uniform(0.006, 0.02) * rng.standard_normal((*shape, 3), np.float32)
    return np.clip(np.rint(rng.uniform(236, 250) * light), 0, 255).astype(np.uint8)
