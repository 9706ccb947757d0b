"""What every reader hands on: one image with its label map, read only when asked for."""

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
        image_id: the publisher's name without ending; file names of the prepared data set are made from it, so it is
            unique in a split.
        read_image: returns (H, W), (H, W, 3) or (H, W, 4) in the publisher's own depth.
        read_label_map: returns (H, W) int32, 0 background, ids 1..n contiguous; where objects overlap as ``overlap``
            says. None where the publisher keeps the truth to himself: then for all images of a split.
        split_group: what must not be divided between splits and folds (patient, plate, plant); "" where there is none.
        report_group: the column of the papers' tables that the image counts in (a subset, a type of image), or what
            decides it from the image; "" where there is none. See also REPORT_GROUPS below.
        image_type: one of IMAGE_TYPES, or what decides it from the image; "" where nothing tells.
        read_masks: for truth whose objects overlap: every object whole. The annotations are made of them instead of
            the label map, and the semantic truth is their union.
        overlap: which of the regions is on top, one of ``coco.OVERLAPS``.
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
    """What a module in this folder offers. Besides these, where it has them (see ``readers.schemes`` and
    ``readers.options``):

    - ``SCHEMES: dict[str, tuple[str, ...]]``: split schemes by name with their splits; the first is the default, whose
      splits are SPLITS. The name of another one is handed to ``splits`` and ``records`` as the keyword ``scheme``.
    - ``OPTIONS: dict[str, tuple[default, help]]``: what ``pffnet prepare NAME --option key=value`` accepts; a value
      takes the type of the default (bool, int, float or str). Those given are handed to ``splits`` and ``records`` as
      keywords.
    - ``REPORT_GROUPS: dict[str, str]``: the report group of all images of a split, where a split is a column of the
      papers' tables. Folds mix the splits and have no such groups.
    - ``normalisation(**options) -> Normalisation``: where the options decide it, instead of NORMALISATION.

    Facts the user should hear (files of a published list that are absent with leave, say) go to ``logging`` as
    warnings.
    """

    SPLITS: tuple[str, ...]
    CATEGORY: str  # of every object: "nucleus", "leaf", ...
    NORMALISATION: Normalisation

    def splits(self, root: Path, **options: Any) -> tuple[str, ...]:
        """The splits that the files under ``root`` suffice for."""

    def records(self, root: Path, split: str, **options: Any) -> Iterator[Record]:
        """The images of a split in the publisher's order. Raises InputError naming what is missing or wrong."""
