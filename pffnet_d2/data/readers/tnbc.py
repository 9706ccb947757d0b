"""TNBC: haematoxylin and eosin of triple-negative breast cancer, 50 images of 512 x 512 pixels at 40x from 11 patients
of the Curie Institute, 4,022 nuclei.

Download page: https://zenodo.org/records/2579118 (TNBC_NucleiSegmentation.zip).

Licence: CC BY 4.0.

Citation: Naylor et al., "Segmentation of Nuclei in Histopathology Images by Deep Regression of the Distance Map",
IEEE TMI 38(2), 2019.

Layout: Slide_<patient>/<patient>_<number>.png and GT_<patient>/<patient>_<number>.png, patient 01 to 11; in folders or
zips of any depth. The later TNBC_and_Brain_dataset has patients 12 to 14, brain tumours: they are in no split.

Split scheme ``qu`` (Qu et al., MIDL 2019), by patient: 01-06, 07-08, 09-11, which are 30 / 7 / 13 images. PFFNet's
three folds of all 50 images are not published; `--folds 3` makes three folds, by patient.

Objects. The truth is black and white, and annotators left a gap between nuclei: an object is an 8-connected component
with its holes of single pixels filled. There are 4,028, six of them with fewer than 30 pixels. Objects of fewer than
``min_size`` pixels are dropped: 16 drops four accidental marks of 1 to 4 pixels, 30 leaves the published 4,022. Most
images have an alpha channel without information, which is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import skimage

from pffnet_d2.data.readers.record import Record
from pffnet_d2.data.readers.source import SourceFile, list_files, shipped
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS
from pffnet_d2.imaging.read import decode_image
from pffnet_d2.masks.compose import contiguous

_SHIPPED = shipped("tnbc")
IMAGES: dict[str, int] = _SHIPPED["images_per_patient"]
PATIENTS: dict[str, list[str]] = _SHIPPED["qu"]
SPLITS: tuple[str, ...] = tuple(PATIENTS)
SCHEMES: dict[str, tuple[str, ...]] = {"qu": SPLITS}
CATEGORY = "nucleus"
NORMALISATION = AS_IS
OPTIONS: dict[str, tuple[Any, str]] = {
    "min_size": (16, "pixels of the smallest component kept; 30 gives the published count of 4,022"),
}


def splits(root: Path, *, scheme: str = "qu", min_size: int = 16) -> tuple[str, ...]:
    """The splits all patients of which are under ``root``."""
    patients = {stem[:2] for stem in _by_stem(list_files(root), "Slide")}
    found = tuple(split for split, names in PATIENTS.items() if patients >= set(names))
    if not found:
        raise InputError(
            f"{root}: holds all Slide_<patient> folders of none of the splits {', '.join(SPLITS)}; "
            "put TNBC_NucleiSegmentation.zip there"
        )
    return found


def records(root: Path, split: str, *, scheme: str = "qu", min_size: int = 16) -> Iterator[Record]:
    """The images of a split, patient by patient, with the patient as the group that splits keep whole.

    Raises:
        InputError: an unknown split; a patient of whom images are missing; an image without truth or truth without
        image. Reading a record: a damaged file; truth in colours.
    """
    if scheme not in SCHEMES:
        raise InputError(f"unknown split scheme {scheme!r} of tnbc; choose one of {', '.join(SCHEMES)}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r} of tnbc; choose one of {', '.join(SPLITS)}")
    files = list_files(root)
    images, truths = _by_stem(files, "Slide"), _by_stem(files, "GT")
    stems = sorted((s for s in images if s[:2] in PATIENTS[split]), key=lambda s: (s[:2], int(s[3:])))
    for stem in stems:
        if stem not in truths:
            raise InputError(f"{images[stem]}: GT_{stem[:2]}/{stem}.png is missing; extract the download again")
    for stem, file in sorted(truths.items()):
        if stem[:2] in PATIENTS[split] and stem not in images:
            raise InputError(f"{file}: Slide_{stem[:2]}/{stem}.png is missing; extract the download again")
    for patient in PATIENTS[split]:
        count = sum(stem[:2] == patient for stem in stems)
        if count != IMAGES[patient]:
            raise InputError(
                f"{root}: {count} images of patient {patient} instead of {IMAGES[patient]}; extract the download again"
            )
    for stem in stems:
        yield Record(
            image_id=stem,
            read_image=images[stem].image,
            read_label_map=partial(_read_label_map, truths[stem], min_size),
            split_group=stem[:2],
            image_type="histology",
        )


def _by_stem(files: list[SourceFile], part: str) -> dict[str, SourceFile]:
    """Those of the folders ``<part>_<patient>``."""
    found: dict[str, SourceFile] = {}
    for file in files:
        # A file at the top of the source "." has no folder.
        folder = re.fullmatch(rf"{part}_(\d\d)", "".join(file.parts[-2:-1]))
        if folder and re.fullmatch(rf"{folder[1]}_\d+\.png", file.name):
            if file.stem in found:
                raise InputError(f"{file}: {found[file.stem]} has the same name; remove one of them")
            found[file.stem] = file
    return found


def _read_label_map(file: SourceFile, min_size: int) -> npt.NDArray[np.int32]:
    truth = decode_image(file.read(), str(file), palette=False)
    if truth.ndim != 2 or truth.dtype not in (np.uint8, np.bool_):
        raise InputError(
            f"{file}: not black and white in 8 bits (it may be in colours); use the publisher's GT folders"
        )
    return objects(truth > 0, min_size)


def objects(foreground: npt.NDArray[np.bool_], min_size: int) -> npt.NDArray[np.int32]:
    """The label map, (H, W) int32, of the 8-connected components of at least ``min_size`` pixels, with holes filled."""
    labels = np.asarray(skimage.measure.label(foreground, connectivity=2), np.int32)
    for i, window in enumerate(scipy.ndimage.find_objects(labels), 1):
        inside = labels[window]  # a view; another object inside a hole stays
        inside[scipy.ndimage.binary_fill_holes(inside == i) & (inside == 0)] = i
    small = np.bincount(labels.ravel()) < min_size
    return contiguous(np.where(small[labels], 0, labels))
