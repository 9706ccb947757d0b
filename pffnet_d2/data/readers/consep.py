"""CoNSeP: haematoxylin and eosin of colorectal adenocarcinoma, 27 training and 14 test images of 1000 x 1000 pixels at
40x, 24,319 nuclei.

Download page: https://warwick.ac.uk/fac/cross_fac/tia/data/hovernet/ (consep_dataset.zip).

Licence: see the download page; mirrors state Apache-2.0 or non-commercial use.

Citation: Graham et al., "HoVer-Net: Simultaneous segmentation and classification of nuclei in multi-tissue histology
images", Medical Image Analysis 58, 2019.

Layout, in folders or zips of any depth: {Train,Test}/Images/<train or test>_<number>.png with Labels/<..>.mat. The
label map is the variable inst_map; the types of the nuclei beside it are not used, all objects are of one category.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pffnet_d2.data.readers.cpm import folder_records, folder_splits
from pffnet_d2.data.readers.record import Record
from pffnet_d2.imaging.normalisation import AS_IS

IMAGES = {"train": 27, "test": 14}
SPLITS: tuple[str, ...] = tuple(IMAGES)
CATEGORY = "nucleus"
NORMALISATION = AS_IS


def splits(root: Path) -> tuple[str, ...]:
    """The splits whose folder is under ``root``."""
    return folder_splits(root, "consep", SPLITS)


def records(root: Path, split: str) -> Iterator[Record]:
    """The images of a split in the order of their numbers; see ``cpm.folder_records``."""
    return folder_records(root, "consep", split, IMAGES)
