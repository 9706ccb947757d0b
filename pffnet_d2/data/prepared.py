"""A prepared data set: its files, and the only code that writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pffnet_d2.atomic_write import write_text
from pffnet_d2.masks.coco import CATEGORY_ID


def write_semantic(path: Path, label_map: npt.NDArray[np.int32]) -> None:
    """The semantic truth: an 8-bit PNG, 0 background, 1 any object."""
    Image.fromarray((label_map > 0).astype(np.uint8)).save(path)


def write_instances(
    path: Path,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    info: dict[str, Any],
    category: str,
) -> None:
    """The json of a split with its one category (id 1), written beside its place and moved when whole."""
    data = {
        "info": info,
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": CATEGORY_ID, "name": category, "supercategory": category}],
    }
    write_text(path, json.dumps(data))
