"""overlay.py: outlines where objects are, panels in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pffnet_d2.visualization.overlay import GAP, PANEL, colours, overlay, side_by_side, write_png


@pytest.fixture
def label_map() -> np.ndarray:
    """Two touching 4x3 objects. The outline of each is the whole object except its 2 inner pixels."""
    label_map = np.zeros((6, 8), np.int32)
    label_map[1:5, 1:4] = 1
    label_map[1:5, 4:7] = 2
    return label_map


def test_outlines_lie_inside_and_differ_in_colour(label_map: np.ndarray) -> None:
    image = np.full((6, 8, 3), 7, np.uint8)
    drawn = overlay(image, label_map)
    changed = (drawn != 7).any(-1)
    expected = label_map > 0
    expected[2:4, 2] = expected[2:4, 5] = False
    assert np.array_equal(changed, expected)
    assert len({tuple(pixel) for pixel in drawn[changed & (label_map == 1)]}) == 1
    assert not np.array_equal(drawn[1, 1], drawn[1, 6])
    assert (image == 7).all()


def test_grey_images_and_empty_maps() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(overlay(grey, np.zeros((3, 4), np.int32)), np.repeat(grey[..., None], 3, axis=2))


def test_sizes_must_agree(label_map: np.ndarray) -> None:
    with pytest.raises(ValueError, match="differ in size"):
        overlay(np.zeros((6, 9, 3), np.uint8), label_map)


def test_consecutive_colours_are_far_apart() -> None:
    table = colours(200).astype(int)
    assert len({tuple(c) for c in table}) > 150
    for step in (1, 2, 3):
        assert np.abs(table[step:] - table[:-step]).sum(1).min() > 60


def test_panels(label_map: np.ndarray) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    nothing = np.zeros_like(label_map)
    panel = side_by_side(image, label_map, nothing)
    f = PANEL // 8  # small images are enlarged

    def column(start: int, stop: int, gaps: int) -> np.ndarray:
        return panel[:, start * f + gaps * GAP : stop * f + gaps * GAP]

    assert panel.shape == (6 * f, 3 * 8 * f + 2 * GAP, 3)
    assert (column(0, 8, 0) == 0).all()
    enlarged = label_map.repeat(f, 0).repeat(f, 1)
    assert np.array_equal(column(8, 16, 1), overlay(np.zeros((6 * f, 8 * f, 3), np.uint8), enlarged))
    assert (column(16, 24, 2) == 0).all()
    assert (panel[:, 8 * f : 8 * f + GAP] == 255).all()


def test_large_panels_keep_their_size() -> None:
    image, labels = np.zeros((300, 20, 3), np.uint8), np.zeros((300, 20), np.int32)
    assert side_by_side(image, labels, labels).shape == (300, 3 * 20 + 2 * GAP, 3)


def test_write_png(tmp_path: Path, label_map: np.ndarray) -> None:
    picture = overlay(np.zeros((6, 8, 3), np.uint8), label_map)
    write_png(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), picture)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
