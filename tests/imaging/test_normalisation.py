"""Grey values of any depth as the 8-bit RGB that the networks see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import (
    AS_IS,
    AUTO,
    PERCENTILE_16_BIT,
    STRETCH,
    Normalisation,
    describe,
    is_stained,
    normalisation_of,
    parse_normalisation,
    to_rgb8,
)


def test_percentile_by_hand() -> None:
    # 1001 evenly spaced values: percentile 0.1 is the second (102), 99.9 the last but one (2098), 1996 apart
    image = np.arange(100, 2102, 2, dtype=np.uint16)[None, :]
    out = to_rgb8(image, PERCENTILE_16_BIT)
    assert out.shape == (1, 1001, 3)
    assert out.dtype == np.uint8
    assert (out == out[:, :, :1]).all()
    assert out[0, [0, 1, 499, 999, 1000], 0].tolist() == [0, 0, 127, 255, 255]  # (1098 - 102) * 255 / 1996 = 127.24
    assert (np.diff(out[0, :, 0].astype(int)) >= 0).all()
    assert len(np.unique(out)) == 256


def test_minimum_range_keeps_noise_dark() -> None:
    rng = np.random.default_rng(0)
    empty = rng.integers(120, 173, (64, 64)).astype(np.uint16)
    assert to_rgb8(empty, PERCENTILE_16_BIT).max() <= 26  # 52 of 512 grey values
    assert to_rgb8(empty, Normalisation("percentile", 0.1, 99.9)).max() == 255
    assert to_rgb8(np.full((4, 4), 4095, np.uint16), PERCENTILE_16_BIT).max() == 0


def test_percentiles_keep_the_ratio_of_channels() -> None:
    image = np.zeros((10, 10, 3), np.uint16)
    image[..., 0], image[..., 1] = 4000, 2000
    out = to_rgb8(image, Normalisation("percentile", 0, 100))
    assert out[0, 0].tolist() == [255, 128, 0]


def test_eight_bit_stays() -> None:
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (5, 7, 4)).astype(np.uint8)
    np.testing.assert_array_equal(to_rgb8(rgba, AS_IS), rgba[..., :3])
    np.testing.assert_array_equal(to_rgb8(rgba[..., :2], AS_IS), rgba[..., [0, 0, 0]])
    np.testing.assert_array_equal(to_rgb8(rgba[..., 0] > 100, AS_IS)[..., 2], np.where(rgba[..., 0] > 100, 255, 0))
    assert to_rgb8(rgba, AS_IS).flags.writeable


@pytest.mark.parametrize("given", [AUTO, STRETCH, Normalisation("percentile", 1, 98, 30)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32, np.bool_])
def test_an_inverted_image_becomes_what_its_inverse_does(given: Normalisation, dtype: type) -> None:
    """Dark objects are then bright ones, and an image of nothing but noise on bright ground stays dark."""
    if dtype == np.bool_ and given.name == "percentile":
        return
    dark = np.random.default_rng(0).integers(0, 2 if dtype == np.bool_ else 200, (40, 50)).astype(dtype)
    bright = -dark if dtype == np.float32 else ~dark
    swapped = replace(given, low=100 - given.high, high=100 - given.low, invert=True)
    np.testing.assert_array_equal(to_rgb8(bright, swapped), to_rgb8(dark, given))
    noise = np.random.default_rng(0).integers(60000, 60020, (40, 50)).astype(np.uint16)
    assert to_rgb8(noise, replace(AUTO, invert=True)).max() <= 10


def test_how_an_inverted_normalisation_is_kept() -> None:
    inverted = replace(STRETCH, invert=True)
    assert Normalisation(**inverted.info()) == inverted
    assert "invert" not in STRETCH.info()


def test_normalisation_of_a_depth() -> None:
    assert normalisation_of(np.zeros((2, 2), np.uint8)) == AS_IS
    assert normalisation_of(np.zeros((2, 2), np.uint16)) == PERCENTILE_16_BIT
    assert normalisation_of(np.zeros((2, 2), np.uint16), STRETCH) == PERCENTILE_16_BIT
    assert normalisation_of(np.zeros((2, 2), np.uint8), AS_IS) == AS_IS
    dark = np.full((2, 2), 10, np.uint8)
    dark[0, 0] = 22  # half of the least range above the rest
    assert to_rgb8(dark, STRETCH)[:, :, 0].tolist() == [[128, 0], [0, 0]]
    half = np.linspace(0, 1, 101, dtype=np.float32)[None]
    assert abs(int(to_rgb8(half, normalisation_of(half))[0, 50, 0]) - 128) <= 1
    assert Normalisation(**PERCENTILE_16_BIT.info()) == PERCENTILE_16_BIT


@pytest.mark.parametrize(
    ("image", "normalisation", "words"),
    [
        (np.zeros((4, 4), np.uint16), AS_IS, "8 bit"),
        (np.full((4, 4), np.nan), Normalisation("percentile", 0, 100), "finite"),
        (np.zeros((2, 4, 4, 3), np.uint8), AS_IS, "shape"),
        (np.zeros((4, 4, 5), np.uint8), AS_IS, "shape"),
        (np.zeros((0, 4), np.uint8), AS_IS, "shape"),
        (np.zeros((4, 4), np.uint8), Normalisation("gamma"), "gamma"),
    ],
)
def test_refused(image: np.ndarray, normalisation: Normalisation, words: str) -> None:
    with pytest.raises(InputError, match=words):
        to_rgb8(image, normalisation)


def test_auto_is_what_prediction_does() -> None:
    rng = np.random.default_rng(0)
    shallow = rng.integers(0, 255, (9, 8, 3), np.uint8)
    np.testing.assert_array_equal(to_rgb8(shallow, AUTO), shallow)
    for deep in (rng.integers(0, 4000, (30, 40), np.uint16), rng.integers(0, 90, (30, 40)) + 0.5):
        np.testing.assert_array_equal(to_rgb8(deep, AUTO), to_rgb8(deep, normalisation_of(deep)))
    assert to_rgb8(np.arange(100, dtype=np.uint16)[None], AUTO).max() < 60  # 99 grey values of at least 512
    assert to_rgb8(np.arange(100, dtype=np.float32)[None], AUTO).max() == 255


def test_parse_normalisation() -> None:
    assert parse_normalisation("auto") is None
    assert parse_normalisation("as-is") == Normalisation("as_is")
    assert parse_normalisation("percentile") == Normalisation("percentile", 0.1, 99.9)
    assert parse_normalisation("percentile:1,99,50") == Normalisation("percentile", 1, 99, 50)
    wrong = ["gamma", "percentile:5", "percentile:9,1", "percentile:1,2,3,4", "percentile:a,b", "percentile:0,101"]
    wrong += ["percentile:1,99,inf", "percentile:nan,99", "percentile:²,99", "percentile:1,99,1_0", "percentile:1,99,"]
    for text in wrong:
        with pytest.raises(InputError, match="use auto, as-is or percentile"):
            parse_normalisation(text)
    assert describe(PERCENTILE_16_BIT) == "percentiles 0.1 to 99.9, at least 512 grey values apart, to 0..255"


def tissue(background: int, nuclei: tuple[int, int, int]) -> np.ndarray:
    """(40, 50, 3), pink of this brightness with nuclei in a fifth of it."""
    image = np.full((40, 50, 3), (background, background - 20, background - 5), np.uint8)
    image[:, :10] = nuclei
    return image


def test_stained_tissue_is_not_stretched() -> None:
    """Grey and dark coloured images are. Stretched by hand: 90 and 200 are the two percentiles."""
    stained = tissue(200, (120, 90, 150))
    assert is_stained(stained)
    np.testing.assert_array_equal(to_rgb8(stained, STRETCH), stained)
    np.testing.assert_array_equal(to_rgb8(stained, replace(STRETCH, invert=True)), 255 - stained)
    assert to_rgb8(stained, Normalisation("percentile")).max() == 255
    grey = np.repeat(stained[:, :, :1], 3, axis=2)
    assert not is_stained(grey)
    assert np.unique(to_rgb8(grey, STRETCH)).tolist() == [0, 255]
    dark = tissue(60, (20, 10, 120))
    assert not is_stained(dark)
    assert to_rgb8(dark, STRETCH).max() == 255


def test_deeper_images_of_stained_tissue_are_stretched() -> None:
    stained = tissue(200, (120, 90, 150)).astype(np.uint16)
    assert to_rgb8(stained, replace(STRETCH, minimum_range=0.0)).max() == 255
