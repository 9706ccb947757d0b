"""CPM17, called Cell17 in papers on nuclei: haematoxylin and eosin of glioblastoma, lower grade glioma, head and neck
and lung cancer at 20x and 40x, 32 training and 32 test images of 500 x 500 to 600 x 600 pixels, 7,570 nuclei.

Download page: MICCAI 2017 digital pathology challenge (its page is gone); the HoVer-Net authors share a repack, linked
from https://github.com/vqdang/hover_net.

Licence: not stated.

Citation: Vu et al., "Methods for Segmentation and Classification of Digital Microscopy Tissue Images", Frontiers in
Bioengineering and Biotechnology 7:53, 2019.

Layout, in folders or zips of any depth below train and test: Images/image_<00 to 31>.png with Labels/image_<..>.mat
(variable inst_map), or image<01 to 32>.png with image<..>_mask.txt (``width height``, then one id per line, row by
row). Ids begin with the split, because the numbers of both splits are the same. There is no validation split; Cell
R-CNN V2 uses one training image of each of the four diseases, without naming them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pffnet_d2.data.readers.cpm import folder_records, folder_splits
from pffnet_d2.data.readers.record import Record
from pffnet_d2.imaging.normalisation import AS_IS

IMAGES = {"train": 32, "test": 32}
SPLITS: tuple[str, ...] = tuple(IMAGES)
CATEGORY = "nucleus"
NORMALISATION = AS_IS


def splits(root: Path) -> tuple[str, ...]:
    """The splits whose folder is under ``root``."""
    return folder_splits(root, "cpm17", SPLITS)


def records(root: Path, split: str) -> Iterator[Record]:
    """The images of a split in the order of their numbers; see ``cpm.folder_records``."""
    return folder_records(root, "cpm17", split, IMAGES)
