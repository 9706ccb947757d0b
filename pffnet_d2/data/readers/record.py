"""What every reader hands on: one image with its label map, read only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pffnet_d2.data.images import Normalisation


@dataclass(frozen=True)
class Record:
    """One image of a split.

    Attributes:
        image_id: the publisher's name without ending; file names of the prepared data set are made from it, so it is
            unique in a split.
        read_image: returns (H, W), (H, W, 3) or (H, W, 4) in the publisher's own depth.
        read_label_map: returns (H, W) int32, 0 background, ids 1..n contiguous.
        group: what must not be divided between folds (patient, plate, plant); "" where there is none.
        image_type: kind of image, for reports by kind; "" where the publisher tells none.
    """

    image_id: str
    read_image: Callable[[], npt.NDArray[Any]]
    read_label_map: Callable[[], npt.NDArray[np.int32]]
    group: str = ""
    image_type: str = ""


class Reader(Protocol):
    """What a module in this folder offers."""

    SPLITS: tuple[str, ...]
    NORMALISATION: Normalisation

    def splits(self, root: Path) -> tuple[str, ...]:
        """The splits that the files under ``root`` suffice for."""

    def records(self, root: Path, split: str) -> Iterator[Record]:
        """The images of a split in the publisher's order. Raises InputError naming what is missing or wrong."""
