"""CPM15: haematoxylin and eosin of brain tumours at 20x (01 to 07) and 40x (08 to 15), 15 images of 392 to 1032 pixels,
2,905 nuclei. No split is published: all are in ``all``, for tests of generalisation.

Download page: MICCAI 2015 digital pathology challenge (its page is gone); the HoVer-Net authors share a repack, linked
from https://github.com/vqdang/hover_net.

Licence: not stated.

Citation: Vu et al., "Methods for Segmentation and Classification of Digital Microscopy Tissue Images", Frontiers in
Bioengineering and Biotechnology 7:53, 2019.

Layout, in folders or zips of any depth: image<01 to 15>.png with image<..>_mask.txt, or the repack's
Images/image_<00 to 14>.png with Labels/image_<..>.mat (variable inst_map).

Traps. A text mask is ``width height``, then one id per line, row by row. In the original download the masks of image04
and image05 are exchanged, which their sizes show.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pffnet_d2.data.readers.cpm import Pairs, check_count, files_of, pair_records, pairs_of
from pffnet_d2.data.readers.labels import image_size, text_size
from pffnet_d2.data.readers.record import Record
from pffnet_d2.data.readers.source import SourceFile
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS

SPLITS: tuple[str, ...] = ("all",)
CATEGORY = "nucleus"
NORMALISATION = AS_IS
IMAGES = 15


def splits(root: Path) -> tuple[str, ...]:
    """``all``; its images are counted when they are read."""
    files_of(root, "cpm15")
    return SPLITS


def records(root: Path, split: str) -> Iterator[Record]:
    """The 15 images.

    Raises:
        InputError: an unknown split; an image or truth that is missing. Reading a record: a damaged file.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r} of cpm15; choose one of {', '.join(SPLITS)}")
    pairs = pairs_of(files_of(root, "cpm15"))
    check_count(pairs, IMAGES, "cpm15", root)
    yield from pair_records(_exchanged(pairs))


def _exchanged(pairs: Pairs) -> Pairs:
    """The masks 04 and 05 of the right images, also where they are exchanged."""
    if not {"image04", "image05"} <= pairs.keys():
        return pairs
    (image_4, mask_4), (image_5, mask_5) = pairs["image04"], pairs["image05"]
    if mask_4.suffix == mask_5.suffix == ".txt" and (_size(image_4), _size(image_5)) == (_mask(mask_5), _mask(mask_4)):
        return {**pairs, "image04": (image_4, mask_5), "image05": (image_5, mask_4)}
    return pairs


def _size(file: SourceFile) -> tuple[int, int]:
    return image_size(file.read(), str(file))


def _mask(file: SourceFile) -> tuple[int, int]:
    return text_size(file.read(), str(file))
