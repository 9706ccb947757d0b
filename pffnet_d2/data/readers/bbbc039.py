"""BBBC039v1: 200 fields of U2OS nuclei in a chemical screen, Hoechst, 520 x 696 pixels, 16-bit TIFF, 23,615 annotated
nuclei.

Download page: https://bbbc.broadinstitute.org/BBBC039 (images.zip, masks.zip, metadata.zip).

Licence: CC0 1.0.

Citation: Caicedo et al., "Evaluation of Deep Learning Strategies for Nucleus Segmentation in Fluorescence Images",
Cytometry A 95(9), 2019; image set BBBC039v1 of the Broad Bioimage Benchmark Collection (Ljosa et al., Nature Methods 9,
2012).

Layout: images/<stem>.tif, masks/<stem>.png, metadata/{training,validation,test}.txt with one line ``<stem>.png`` per
field. Folders or the three zips, with doubled folders and __MACOSX entries. Splits can be read without the files of the
others.

Traps. Images hold 12 bits in 16: readers that clip or convert to 8 bits destroy them. The red channel of a mask (0..3)
is a colouring in which neighbours differ, neither ids nor interior and boundary. An object is an 8-connected component
of one value: 11,999 / 5,896 / 5,720 objects in the three splits. Three fields (F13_s7, L01_s2: training; L10_s6:
validation) are empty; they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage

from pffnet_d2.data.readers.record import Record
from pffnet_d2.data.readers.source import SourceFile, find_part
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import PERCENTILE_16_BIT

SPLITS: tuple[str, ...] = ("train", "val", "test")
LISTS = {"train": "training.txt", "val": "validation.txt", "test": "test.txt"}
CATEGORY = "nucleus"
NORMALISATION = PERCENTILE_16_BIT


def splits(root: Path) -> tuple[str, ...]:
    """The splits whose lists are under ``root``."""
    lists = {file.name for file in find_part(root, "metadata")}
    found = tuple(split for split in SPLITS if LISTS[split] in lists)
    if not found:
        raise InputError(
            f"{root}: metadata holds none of {', '.join(LISTS.values())}; download metadata.zip into that folder"
        )
    return found


def records(root: Path, split: str) -> Iterator[Record]:
    """The fields of a split in the order of its list.

    Raises:
        InputError: an unknown split; a list, image or mask that is missing; an image or mask that is in no list.
        Reading a record: a truncated file; a mask of another size than its image or in another form than the
        publisher's.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r} of BBBC039; choose one of {', '.join(SPLITS)}")
    lists = {file.name: file for file in find_part(root, "metadata")}
    if LISTS[split] not in lists:
        raise InputError(f"{root}: metadata/{LISTS[split]} is missing; download metadata.zip into that folder")
    listed = {name: _stems(lists[name]) for name in LISTS.values() if name in lists}
    images, masks = _by_stem(root, "images", ".tif"), _by_stem(root, "masks", ".png")
    for part, files, ending in (("images", images, ".tif"), ("masks", masks, ".png")):
        for stem in listed[LISTS[split]]:
            if stem not in files:
                raise InputError(
                    f"{root}: {part}/{stem}{ending}, listed in {LISTS[split]}, is missing; download {part}.zip again"
                )
        extra = sorted(files.keys() - set().union(*listed.values()))
        if extra:
            raise InputError(
                f"{files[extra[0]]}: in none of the lists {', '.join(listed)}; remove it or complete metadata"
            )
    for stem in listed[LISTS[split]]:
        yield Record(
            image_id=stem,
            read_image=images[stem].image,
            read_label_map=partial(_read_label_map, masks[stem]),
            image_type="fluorescence",
        )


def _stems(file: SourceFile) -> list[str]:
    lines = file.read().decode("utf-8", "replace").splitlines()
    stems = [line.strip().removesuffix(".png") for line in lines if line.strip()]
    for stem in stems:
        if "/" in stem or "\\" in stem or stem.startswith("."):
            raise InputError(f"{file}: {stem!r} is not a file name; download metadata.zip again")
    if len(set(stems)) < len(stems):
        raise InputError(f"{file}: {max(stems, key=stems.count)} is listed twice; download metadata.zip again")
    return stems


def _by_stem(root: Path, part: str, ending: str) -> dict[str, SourceFile]:
    return {file.name.removesuffix(ending): file for file in find_part(root, part) if file.name.endswith(ending)}


def _read_label_map(file: SourceFile) -> npt.NDArray[np.int32]:
    mask = file.image()
    if mask.ndim != 3 or mask.dtype != np.uint8 or mask[:, :, 1:3].any():
        raise InputError(
            f"{file}: not a BBBC039 mask (8-bit RGBA, green and blue 0); use the publisher's masks.zip unchanged"
        )
    return np.asarray(skimage.measure.label(mask[:, :, 0], connectivity=2), np.int32)
