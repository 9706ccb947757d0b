"""Scores of invented methods, and label images in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pffnet_d2.evaluation.scores import METRICS, Row


@pytest.fixture
def rows() -> Callable[..., list[Row]]:
    """``rows({"a": 0.5, "b": 0.7}, group="x")``: one row per image, in which all metrics have the same value."""

    def make(values: dict[str, float], group: str = "") -> list[Row]:
        return [
            {"image": image, "group": group, "truths": 1.0, "predictions": 1.0, **dict.fromkeys(METRICS, value)}
            for image, value in values.items()
        ]

    return make


@pytest.fixture
def write_labels() -> Callable[[Path, np.ndarray], None]:
    """Write an array as a label image in the format of the path's suffix."""

    def write(path: Path, labels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(labels).save(path)
        else:
            tifffile.imwrite(path, labels)

    return write
