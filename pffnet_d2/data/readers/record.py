"""What every reader returns: an image with its label map, both read only when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pffnet_d2.imaging.normalisation import Normalisation
from pffnet_d2.masks.instance_mask import InstanceMask

IMAGE_TYPES = ("fluorescence", "histology", "brightfield", "plant")


@dataclass(frozen=True)
class Record:
    """One image of a split.

    Attributes:
        image_id: the publisher's name without suffix, unique in a split. The prepared files are named after it.
        read_image: returns (H, W), (H, W, 3) or (H, W, 4) in the publisher's own depth.
        read_label_map: returns (H, W) int32, 0 background, ids 1..n contiguous; ``overlap`` says what is on top. None
            where the truth is not published, which is then so for all images of a split.
        split_group: what must stay in one split or fold (a patient, plate or plant); "" where there is none.
        report_group: the column of the papers' tables that the image belongs to (a subset, a type of image), or a
            function that decides it from the image; "" where there is none. See also REPORT_GROUPS below.
        image_type: one of IMAGE_TYPES, or a function that decides it from the image; "" where it is unknown.
        read_masks: where objects overlap, returns every object whole. The annotations are then made from these instead
            of the label map, and the semantic truth is their union.
        overlap: which object is on top, one of ``coco.OVERLAPS``.
    """

    image_id: str
    read_image: Callable[[], npt.NDArray[Any]]
    read_label_map: Callable[[], npt.NDArray[np.int32]] | None
    split_group: str = ""
    report_group: str | Callable[[npt.NDArray[Any]], str] = ""
    image_type: str | Callable[[npt.NDArray[Any]], str] = ""
    read_masks: Callable[[], list[InstanceMask]] | None = None
    overlap: str = "smaller"


class Reader(Protocol):
    """What a module in this folder offers. It may also have (see ``readers.schemes`` and ``readers.options``):

    - ``SCHEMES: dict[str, tuple[str, ...]]``: split schemes by name with their splits. The first is the default, with
      the splits SPLITS; the name of another one is passed to ``splits`` and ``records`` as the keyword ``scheme``.
    - ``OPTIONS: dict[str, tuple[default, help]]``: what ``pffnet prepare NAME --option key=value`` accepts. A value has
      the type of the default (bool, int, float or str). Options that were given are passed to ``splits`` and
      ``records`` as keywords.
    - ``REPORT_GROUPS: dict[str, str]``: the report group of all images of a split, where a split is a column of the
      papers' tables. Folds mix the splits and have no such groups.
    - ``normalisation(**options) -> Normalisation``: in place of NORMALISATION, where options decide it.

    What the user should know, such as how many files of a published list are missing where that is allowed, is logged
    as a warning.
    """

    SPLITS: tuple[str, ...]
    CATEGORY: str  # of every object: "nucleus", "leaf", ...
    NORMALISATION: Normalisation

    def splits(self, root: Path, **options: Any) -> tuple[str, ...]:
        """The splits for which there are files under ``root``."""

    def records(self, root: Path, split: str, **options: Any) -> Iterator[Record]:
        """The images of a split in the publisher's order. Raises InputError that names what is missing or wrong."""
