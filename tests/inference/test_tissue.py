"""Which tiles of an image are background."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pffnet_d2.inference.tiling import Tiles
from pffnet_d2.inference.tissue import background_tiles, contrasts

Image = NDArray[np.uint8]


def noise(shape: tuple[int, int], level: int) -> Image:
    grey = np.random.default_rng(0).integers(level, level + 6, shape).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def found(image: Image, tile: int = 128, overlap: int = 16) -> set[int]:
    height, width = image.shape[:2]
    tiles = Tiles((height, width), tile, overlap)
    return set(background_tiles(lambda box: image[box[0] : box[2], box[1] : box[3]], tiles))


def tiles_of(image: Image, y: int, x: int, margin: int) -> set[int]:
    """The tiles that show a pixel, or come within ``margin`` of it."""
    boxes = Tiles(image.shape[:2], 128, 16).boxes()  # type: ignore[arg-type]
    return {
        i
        for i, (y0, x0, y1, x1) in enumerate(boxes)
        if y0 - margin <= y < y1 + margin and x0 - margin <= x < x1 + margin
    }


@pytest.mark.parametrize(("ground", "object_"), [(3, 200), (240, 90)])
def test_a_small_object_keeps_its_tiles(ground: int, object_: int) -> None:
    """Dark and bright backgrounds. Farther than two blocks from the object, tiles are left out."""
    image = noise((1000, 1500), ground)
    image[700:706, 900:906, 1] = object_
    left_out = found(image)
    every = set(range(len(Tiles((1000, 1500), 128, 16).boxes())))
    assert not left_out & tiles_of(image, 703, 903, 0)
    assert every - left_out <= tiles_of(image, 703, 903, 128)
    assert len(left_out) > len(every) * 0.8


def test_an_image_without_clear_background_keeps_all() -> None:
    assert found(noise((500, 700), 20)) == set()
    assert found(np.zeros((500, 700, 3), np.uint8)) == set()
    crowded = noise((512, 768), 5)
    crowded[::16, ::16] = 220
    assert found(crowded) == set()


def test_contrasts_of_blocks() -> None:
    image = np.zeros((70, 130, 3), np.uint8)
    image[69, 129, 2] = 9
    image[0:64, 0:64] = 50
    assert contrasts(lambda box: image[box[0] : box[2], box[1] : box[3]], (70, 130)).tolist() == [[0, 0, 0], [0, 0, 9]]
