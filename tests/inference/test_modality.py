"""Bright, coloured, or neither: by hand, and on every real image at hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pffnet_d2.config.values import IMAGES
from pffnet_d2.data import readers
from pffnet_d2.imaging.normalisation import PERCENTILE_16_BIT, STRETCH, Normalisation, normalisation_of, to_rgb8
from pffnet_d2.inference.modality import UNLIKE, lost_contrast, statistics, unlike_fluorescence, unlike_nuclei


def field(background: tuple[int, int, int], objects: tuple[int, int, int], part: float = 0.3) -> np.ndarray:
    """(20, 50, 3) of a background with its first columns of another colour."""
    image = np.full((20, 50, 3), background, np.uint8)
    image[:, : round(50 * part)] = objects
    return image


def test_statistics_by_hand() -> None:
    brightness, colourfulness = statistics(field((30, 60, 90), (200, 200, 200), 0.4))
    assert brightness == 60  # of (30 + 60 + 90) / 3 in three fifths and 200 in the others
    assert colourfulness == pytest.approx(0.6 * 60)


def check_what_is_said(said: str, words: str) -> None:
    assert bool(said) == bool(words)
    assert "\n" not in said
    assert re.search(words, said)


@pytest.mark.parametrize(
    ("background", "objects", "words"),
    [
        ((8, 8, 8), (120, 120, 120), ""),
        ((63, 63, 63), (250, 250, 250), ""),
        ((0, 0, 0), (0, 0, 0), ""),
        ((230, 230, 230), (80, 80, 80), "bright background"),
        ((230, 215, 228), (120, 70, 150), "coloured on a bright background"),
        ((2, 2, 2), (10, 10, 220), "coloured; .*choose the nuclei's channel"),
    ],
)
def test_what_is_said(background: tuple[int, int, int], objects: tuple[int, int, int], words: str) -> None:
    check_what_is_said(unlike_fluorescence(field(background, objects)), words)


def test_an_inverted_image_is_told_from_itself() -> None:
    image = field((12, 12, 12), (200, 200, 200))
    assert not unlike_fluorescence(image)
    assert "add --invert" in unlike_fluorescence(255 - image)
    assert "leave out --invert" in unlike_fluorescence(255 - image, inverted=True)
    assert not unlike_fluorescence(image, inverted=True)


@pytest.mark.parametrize(
    ("background", "objects", "words"),
    [
        ((8, 8, 8), (120, 120, 120), ""),
        ((0, 0, 0), (0, 0, 0), ""),
        ((230, 230, 230), (80, 80, 80), ""),
        ((230, 215, 228), (120, 70, 150), ""),
        ((82, 70, 90), (60, 20, 90), ""),
        ((128, 128, 128), (90, 90, 90), "phase contrast"),
        ((2, 2, 2), (10, 10, 220), "coloured on a dark background; .*choose the nuclei's channel"),
    ],
)
def test_what_is_said_to_a_model_of_all_nuclei(
    background: tuple[int, int, int], objects: tuple[int, int, int], words: str
) -> None:
    check_what_is_said(unlike_nuclei(field(background, objects)), words)


def test_every_kind_of_model_has_its_check() -> None:
    """A value of MODEL.PFFNET.IMAGES that configs accept and prediction does not know would be a traceback."""
    dark = field((8, 8, 8), (120, 120, 120))
    assert set(UNLIKE) == set(IMAGES)
    assert not any(unlike(dark, False) for unlike in UNLIKE.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("bbbc039", {"fluorescence": 200}),
        ("dsb2018", {"fluorescence": 546, "histology": 108, "brightfield": 16}),
        ("kumar", {"histology": 30}),
        ("tnbc", {"histology": 50}),
    ],
)
def test_error_rates_on_real_images(pffnet_data: Callable[[str], Path], name: str, kinds: dict[str, int]) -> None:
    """No false warning, nothing missed, also inverted, in as many of the publisher's images as are at hand."""
    root = pffnet_data(name)
    seen: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for split in readers.READERS[name].splits(root):
        for record in readers.READERS[name].records(root, split):
            pixels = record.read_image()
            rgb = to_rgb8(pixels, STRETCH)
            kind = record.image_type if isinstance(record.image_type, str) else record.image_type(pixels)
            seen[kind] += 1
            wrong[kind] += bool(unlike_fluorescence(rgb)) != (kind != "fluorescence")
            wrong[f"{kind}, model of all nuclei"] += bool(unlike_nuclei(rgb))
            wrong["inverted"] += kind == "fluorescence" and not unlike_fluorescence(255 - rgb)
    print(name, dict(seen), "wrong", dict(wrong))
    assert set(seen) <= set(kinds)
    assert all(0 < n <= kinds[kind] for kind, n in seen.items())
    assert not +wrong


@pytest.mark.parametrize("invert", [False, True])
def test_a_range_so_wide_that_nothing_is_seen(invert: bool) -> None:
    """A picture of one grey value, of an image that has several; an image of one value is what it is."""
    pixels = np.arange(1000, 1400, dtype=np.uint16).reshape(20, 20)

    def said(pixels: np.ndarray, low: float, high: float, at_least: float) -> str:
        rule = Normalisation("percentile", low, high, at_least, invert)
        return lost_contrast(pixels, to_rgb8(pixels, rule), normalisation_of(pixels, rule))

    assert "range of 1e+12 grey values is so wide" in said(pixels, 0, 100, 1e12)
    assert "give a smaller range" in said(pixels, 0, 100, 1e12)
    assert said(pixels, 0, 100, 1e4) == ""
    assert said(pixels, 0.1, 99.9, 0) == ""
    assert said(np.full((20, 20), 7, np.uint16), 0, 100, 1e12) == ""
    noise = pixels % 10
    assert lost_contrast(noise, to_rgb8(noise, PERCENTILE_16_BIT), PERCENTILE_16_BIT) == ""
