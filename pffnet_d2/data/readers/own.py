"""A user's own images with truth in one of four forms, which is found by looking at the folder:

- label images: images/<id>.png|tif|jpg|bmp and labels/<id>.png|tif (or masks/), one channel or a palette of 8, 16 or
  32 bit, 0 background, each object with its own id;
- one mask per object: images/<id>.* and masks/<id>/<any>.*, or <id>/images/<id>.* and <id>/masks/<any>.* as in DSB2018;
- outlines: images/<id>.* and labels/<id>.geojson as QuPath exports it, or labels/<id>.zip or <id>.roi as the ROI
  Manager of ImageJ saves it;
- COCO: one json with images and annotations (run lengths or polygons), at the top or named by the option ``coco``; its
  file_name leads to the images, from the json's folder or from the images folder.

Results of ``pffnet predict`` may keep their names: labels/<id>_labels.tif and labels/<id>_rois.zip.

There may be folders below images/ (plates, patients); labels/ then has the same ones. All of it may lie in zips.

The options decide the splits: ``fractions`` of the images, drawn by ``seed``, with the images of a ``group`` kept
together; or ``lists``, a folder with <split>.txt, one image name per line. Without either, folders that are called
train and val or test are the splits, each with one of the layouts above.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pffnet_d2.data.readers.custom_layouts import (
    IMAGE_ENDINGS,
    SPLIT_FOLDERS,
    CustomImage,
    Key,
    find_images,
    relative_paths,
)
from pffnet_d2.data.readers.record import IMAGE_TYPES, Record
from pffnet_d2.data.readers.source import list_files
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS, AUTO, BY_DEPTH, Normalisation
from pffnet_d2.imaging.read import read_bytes

logger = logging.getLogger(__name__)

SPLITS: tuple[str, ...] = ()  # they follow from the options
OPTIONS: dict[str, tuple[Any, str]] = {
    "fractions": ("train=0.8,val=0.2", "parts of the images by split; they sum to 1"),
    "group": ("", "keep together what shares a folder (group=folder) or what a regular expression finds in the path"),
    "report_group": ("", "column of an image in reports: folder or a regular expression, as for group"),
    "lists": ("", "folder with <split>.txt, one image per line, instead of fractions"),
    "seed": (0, "of the division by fractions (--seed)"),
    "images": ("images", "folder of the images"),
    "labels": ("", "folder of the truth (labels or masks unless given)"),
    "label_suffix": ("", "what the name of a label image has after the image's, as in cell1_masks.png"),
    "coco": ("", "the COCO json, where there are several"),
    "truth": ("auto", "label images hold ids, or only 0 and 1: then components makes each 8-connected one an object"),
    "outline": ("", "of QuPath's cells, which have two: cell or nucleus"),
    "fill_holes": (False, "fill holes in masks of one object"),
    "category": ("object", "what the objects are"),
    "image_type": ("", f"type of the images: {', '.join(IMAGE_TYPES)}"),
    "normalisation": (
        "auto",
        "as_is, percentile, auto (8 bit as it is, deeper by percentile) or stretch",
    ),
    "low": (AUTO.low, "percentile that becomes black"),
    "high": (AUTO.high, "percentile that becomes white"),
    "minimum_range": (AUTO.minimum_range, "grey values that at least lie between black and white, for empty fields"),
}
CATEGORY = "object"
NORMALISATION = AUTO


def normalisation(
    *,
    normalisation: str = AUTO.name,
    low: float = AUTO.low,
    high: float = AUTO.high,
    minimum_range: float = AUTO.minimum_range,
    **_: Any,
) -> Normalisation:
    """The normalisation that the options choose. Raises InputError for an unknown one and for impossible numbers."""
    if normalisation == AS_IS.name:
        return AS_IS
    if normalisation not in (*BY_DEPTH, "percentile"):
        raise InputError(f"option normalisation={normalisation}: give {', '.join(BY_DEPTH)}, as_is or percentile")
    if not 0 <= low < high <= 100:
        raise InputError(f"options low={low:g}, high={high:g}: give 0 <= low < high <= 100")
    if not 0 <= minimum_range < math.inf:
        raise InputError(f"option minimum_range={minimum_range:g}: give grey values from 0 on")
    return Normalisation(normalisation, low, high, minimum_range)


def splits(root: Path, **options: Any) -> tuple[str, ...]:
    """The splits into which the options divide the images under ``root``."""
    return tuple(_divide(root, **options))


def records(
    root: Path, split: str, *, group: str = "", report_group: str = "", image_type: str = "", **options: Any
) -> Iterator[Record]:
    """The images of a split in the order of their paths.

    Raises:
        InputError: there are no images; an image has no truth, or truth no image; two images have one name; a json is
            not COCO; options do not fit. Reading a record: a file is truncated; a label image is in colours, or its
            labels are negative or not whole numbers.
    """
    if image_type and image_type not in IMAGE_TYPES:
        raise InputError(f"option image_type={image_type}: choose one of {', '.join(IMAGE_TYPES)}")
    parts = _divide(root, group=group, **options)
    if split not in parts:
        raise InputError(f"unknown split {split!r}; the options make {', '.join(parts)}")
    for item in parts[split]:
        yield Record(
            image_id=item.image_id,
            read_image=item.read_image,
            read_label_map=item.read_label_map,
            split_group=_group(item.key, "group", group),
            report_group=_group(item.key, "report_group", report_group),
            image_type=image_type,
            read_masks=item.read_masks,
        )


def _divide(
    root: Path, *, fractions: str = "", group: str = "", lists: str = "", seed: int = 0, **form: Any
) -> dict[str, list[CustomImage]]:
    files = relative_paths(root, list_files(root))
    tops = {path[0] for path in files}
    if _is_divided(tops) and not (fractions or lists):
        return {
            split: find_images(
                root / split, {path[1:]: file for path, file in files.items() if path[0] == split}, **form
            )
            for split in SPLIT_FOLDERS
            if split in tops
        }
    items = find_images(root, files, **form)
    if lists:
        return _by_lists(root, items, root / lists)
    return _by_fractions(items, _parse_fractions(fractions or OPTIONS["fractions"][0]), group, seed)


def count_undivided(root: Path, **form: Any) -> int:
    """The number of images that still have to be divided: all, or 0 where folders train/ and val/ or test/ divide them.

    Raises:
        InputError: as ``records``.
    """
    files = relative_paths(root, list_files(root))
    return 0 if _is_divided({path[0] for path in files}) else len(find_images(root, files, **form))


def _is_divided(tops: set[str]) -> bool:
    return "train" in tops and bool(tops & {"val", "test"})


def _group(key: Key, option: str, pattern: str) -> str:
    """What the pattern finds in the image's path: its first group, or the whole match. Raises InputError naming the
    option where that is nothing."""
    if not pattern:
        return ""
    if pattern == "folder":
        return "/".join(key[:-1])
    try:
        match = re.search(pattern, "/".join(key))
    except re.error as error:
        raise InputError(f"option {option}={pattern}: no regular expression ({error}); write one, or folder") from error
    if not match:
        raise InputError(f"option {option}={pattern}: finds nothing in {'/'.join(key)}; widen it")
    return str(match[1] if match.re.groups else match[0])


def _parse_fractions(text: str) -> dict[str, float]:
    try:
        parts = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise InputError(f"option fractions={text}: write train=0.8,val=0.2") from error
    for name in parts:
        _check_split_name(name, f"option fractions={text}")
    if not all(0 < value <= 1 for value in parts.values()) or abs(sum(parts.values()) - 1) > 1e-6:
        raise InputError(f"option fractions={text}: give numbers above 0 that sum to 1")
    return parts


def _check_split_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise InputError(f"{where}: {name!r} is not a valid name of a split; use letters, digits, _ and -")


def _by_fractions(
    items: list[CustomImage], fractions: dict[str, float], pattern: str, seed: int
) -> dict[str, list[CustomImage]]:
    """Divide by fractions: each group, in an order drawn from ``seed``, goes to the split that lacks the most images.
    The last groups go to splits that are still empty."""
    if seed < 0:
        raise InputError(f"option seed={seed}: give a whole number from 0 on")
    groups: dict[tuple[str, str], list[CustomImage]] = defaultdict(list)
    for item in items:
        group = _group(item.key, "group", pattern)
        groups[(group, "") if group else ("", item.image_id)].append(item)
    keys = sorted(groups)
    parts: dict[str, list[CustomImage]] = {name: [] for name in fractions}
    for left, k in zip(range(len(keys), 0, -1), np.random.default_rng(seed).permutation(len(keys)), strict=True):
        empty = [name for name, own in parts.items() if not own]
        choice = empty if left <= len(empty) else list(parts)
        lacking = max(choice, key=lambda name: fractions[name] * len(items) - len(parts[name]))
        parts[lacking].extend(groups[keys[k]])
    for own in parts.values():
        if not own:
            raise InputError(
                f"option fractions: {len(keys)} images or groups are too few for {len(parts)} splits; "
                "add images or give fewer splits"
            )
        own.sort(key=lambda item: item.key)
    return parts


def _by_lists(root: Path, items: list[CustomImage], folder: Path) -> dict[str, list[CustomImage]]:
    texts = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not texts:
        raise InputError(f"{folder}: holds no <split>.txt; write one a split, an image name a line")
    known: dict[str, CustomImage] = {}
    for item in items:
        known |= {item.image_id: item, "/".join(item.key): item}
    parts: dict[str, list[CustomImage]] = {}
    where: dict[str, str] = {}
    for text in sorted(texts, key=lambda path: (*SPLIT_FOLDERS, path.stem).index(path.stem)):
        _check_split_name(text.stem, str(text))
        own = parts.setdefault(text.stem, [])
        for line in filter(None, map(str.strip, read_bytes(text).decode("utf-8", "replace").splitlines())):
            suffix = PurePosixPath(line).suffix
            found = known.get(line) or (
                known.get(str(PurePosixPath(line)).removesuffix(suffix)) if suffix.lower() in IMAGE_ENDINGS else None
            )
            if found is None:
                raise InputError(f"{text}: there is no image {line!r} under {root}; correct the list")
            if found.image_id in where:
                raise InputError(f"{text}: {line} is in {where[found.image_id]} already; list an image once")
            where[found.image_id] = text.name
            own.append(found)
        if not own:
            raise InputError(f"{text}: lists no image; remove it or fill it")
    if len(where) < len(items):
        logger.warning("%s: %d of %d images are in no list and left out", folder, len(items) - len(where), len(items))
    return parts
