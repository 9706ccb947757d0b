"""What the tests of the formats share."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def label_map() -> np.ndarray:
    """A square with a hole, an object in two parts, one at the last corner; 30 x 50 pixels."""
    label_map = np.zeros((30, 50), np.int32)
    label_map[4:12, 5:20] = 1
    label_map[7:9, 8:11] = 0
    label_map[20:25, 2:6] = label_map[20:23, 10:13] = 2
    label_map[28:, 47:] = 3
    return label_map


@pytest.fixture
def scores() -> dict[str, np.ndarray]:
    """Of the three objects."""
    return {
        "score": np.array([0.9, 0.8, 0.123456789]),
        "class_score": np.array([0.95, 0.85, 0.5]),
        "mask_quality": np.array([0.947, 0.941, 0.247]),
    }
