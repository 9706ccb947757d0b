"""Checking that prepared data sets are sound: every image, json and semantic map is read and compared.

Errors make a split wrong: missing, damaged or surplus files, sizes and ids that do not agree, masks that leave the
image, boxes, areas and semantic maps that do not agree with the masks, and an image in two splits of one division.
Notes are worth knowing: copies within a split or in another data set, more objects than the model can return, images
that DSB2018 shares with BBBC039.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tqdm import tqdm

from pffnet_d2.atomic_write import check_folder
from pffnet_d2.data.prepared import PreparedSplit, SplitContents, find_splits, not_prepared
from pffnet_d2.data.readers.dsb2018 import bbbc039_fields
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import decode_image, read_bytes, read_image
from pffnet_d2.masks.coco import CATEGORY_ID, annotations_to_masks, paint
from pffnet_d2.visualization.overlay import colours, overlay, write_png

SHOWN_ERRORS = 20  # a split; the rest is counted
SHEET_IMAGES = 24
SHEET_COLUMNS = 4
PANEL = 256  # pixels, uncompressed: the centre of larger images
TINT = 0.35  # of an object's colour over the image


@dataclass
class _CheckedImage:
    """What was found in an image."""

    errors: list[str] = field(default_factory=list)
    digest: str = ""
    areas: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    hidden: int = 0  # pixels covered by another object, counted once for each object below the top one
    pixels: int = 0
    total: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # of R, G, B
    squares: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))


@dataclass
class _CheckedSplit:
    """What was found in a split."""

    files: PreparedSplit
    contents: SplitContents = field(default_factory=lambda: SplitContents({}, [], {}, []))
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digests: dict[str, list[str]] = field(default_factory=dict)  # file names by digest

    @property
    def division(self) -> tuple[str, str, str]:
        """Data set, split scheme and fold: splits that agree in them must not share images."""
        folder = self.files.folder
        fold = re.search(r"fold\d+of\d+", folder.name)
        return folder.parent.name, str(self.contents.info.get("scheme", "")), fold[0] if fold else ""


def check_datasets(root: Path, *, detections: int = 100, sheets: Path | None = None, workers: int | None = None) -> int:
    """Check every prepared split under ``root`` and print a report.

    Args:
        root: the folder of all data sets, of one, or of one split.
        detections: TEST.DETECTIONS_PER_IMAGE of the model; images with more objects are counted in a note.
        sheets: folder for <name>_<split>.png, up to 24 images each with its truth in colours; None draws none.
        workers: threads; None takes one per processor, at most 8.

    Returns:
        The number of errors.

    Raises:
        InputError: there is no prepared split under ``root``.
    """
    found = find_splits(root)
    if not found:
        raise InputError(f"{root}: holds no prepared data set (NAME/SPLIT/instances.json); run `pffnet prepare` first")
    if sheets is not None:
        check_folder(sheets)
    splits = [_check_split(PreparedSplit(each.folder.resolve()), detections, workers) for each in found]
    _compare(splits)
    _name_bbbc039_fields(splits)
    for split in splits:
        for error in split.errors[:SHOWN_ERRORS]:
            print(f"error: {error}")
        if len(split.errors) > SHOWN_ERRORS:
            print(f"error: {split.files.folder}: {len(split.errors) - SHOWN_ERRORS} more errors")
        for note in split.notes:
            print(f"note: {split.files.title}: {note}")
        if sheets is not None and split.contents.images:
            path = sheets / f"{split.files.title.replace(' ', '_')}.png"
            if _write_sheet(split, path):
                print(f"{split.files.title}: drawn in {path}")
    errors = sum(len(split.errors) for split in splits)
    print(f"{len(splits)} splits, {f'{errors} errors' if errors else 'no errors'}")
    return errors


def _check_split(files: PreparedSplit, detections: int, workers: int | None) -> _CheckedSplit:
    split = _CheckedSplit(files)
    try:
        contents = files.read()
        _check_contents(contents, files.json_file)
    except InputError as error:
        split.errors.append(str(error))
        return split
    split.contents, entries = contents, contents.images
    labelled = bool(contents.info.get("labelled", True))
    for folder in files.folders(labelled):
        there = set(os.listdir(folder)) if folder.is_dir() else set()
        for name in sorted(there - {entry["file_name"] for entry in entries}):
            split.errors.append(f"{folder / name}: is not in instances.json; remove it or prepare again")
    work = partial(_check_image, split, labelled)
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        found = list(tqdm(pool.map(work, entries), total=len(entries), desc=files.title, unit="image", disable=None))
    digests = defaultdict(list)
    for entry, image in zip(entries, found, strict=True):
        split.errors.extend(image.errors)
        if image.digest:
            digests[image.digest].append(entry["file_name"])
    split.digests = dict(digests)
    copies = [names for names in digests.values() if len(names) > 1]
    if copies:
        split.notes.append(f"{sum(map(len, copies)) - len(copies)} images are copies of others, {copies[0]} first")
    _print_statistics(split, found, labelled, detections)
    return split


def _check_contents(contents: SplitContents, json_file: Path) -> None:
    """What only this check insists on. Raises InputError."""
    if not contents.info or [category.get("id") for category in contents.categories] != [CATEGORY_ID]:
        raise not_prepared(json_file)
    if not contents.images:
        raise InputError(f"{json_file}: has no images; prepare it again")


def _check_image(split: _CheckedSplit, labelled: bool, entry: dict[str, Any]) -> _CheckedImage:
    found = _CheckedImage()
    size = (entry["height"], entry["width"])
    path = split.files.images / entry["file_name"]
    try:
        image = decode_image(read_bytes(path), str(path))
        if image.dtype != np.uint8 or image.shape != (*size, 3):
            raise InputError(f"{path}: {image.dtype} of shape {image.shape} where 8-bit RGB of {size} belongs")
        found.digest = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
        histograms = [np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]
        found.pixels = size[0] * size[1]
        found.total = np.array([h @ np.arange(256.0) for h in histograms])
        found.squares = np.array([h @ np.arange(256.0) ** 2 for h in histograms])
    except InputError as error:
        found.errors.append(str(error))
    if labelled:
        try:
            found.errors.extend(_check_truth(split, entry, found))
        except InputError as error:
            found.errors.append(f"{split.files.json_file}, {entry['file_name']}: {error}")
    return found


def _check_truth(split: _CheckedSplit, entry: dict[str, Any], found: _CheckedImage) -> list[str]:
    """The faults of an image's annotations and semantic map; areas and hidden pixels go into ``found``."""
    where = f"{split.files.json_file}, {entry['file_name']}"
    height, width = entry["height"], entry["width"]
    annotations = split.contents.annotations[entry["id"]]
    painted, found.areas = paint(annotations, height, width)
    errors = [
        f"{where}: annotation {annotation['id']} has no pixels; prepare it again"
        for annotation, area in zip(annotations, found.areas, strict=True)
        if not area
    ]
    seen = [annotation for annotation, area in zip(annotations, found.areas, strict=True) if area]
    for annotation, (y0, x0, mask) in zip(seen, annotations_to_masks(seen, height, width), strict=True):
        expected = {
            "bbox": [x0, y0, mask.shape[1], mask.shape[0]],
            "area": int(mask.sum()),
            "category_id": CATEGORY_ID,
            "iscrowd": 0,
        }
        for key, value in expected.items():
            if annotation.get(key) != value:
                errors.append(
                    f"{where}: annotation {annotation['id']} has {key} {annotation.get(key)}, its mask {value}; "
                    "prepare it again"
                )
    found.hidden = int(found.areas.sum()) - int(np.count_nonzero(painted))
    path = split.files.semantic / entry["file_name"]
    semantic = read_image(path)
    if semantic.shape != (height, width) or semantic.dtype != np.uint8 or semantic.max(initial=0) > 1:
        return [*errors, f"{path}: is not an 8-bit map of 0 and 1 of {height} x {width} pixels; prepare it again"]
    wrong = int(np.count_nonzero((semantic > 0) != (painted > 0)))
    if wrong:
        errors.append(f"{path}: differs from the union of the objects in {wrong} pixels; prepare it again")
    return errors


def _print_statistics(split: _CheckedSplit, found: Sequence[_CheckedImage], labelled: bool, detections: int) -> None:
    """Print what the images and objects are like, and note what deserves attention."""
    title = split.files.title
    pixels = max(sum(image.pixels for image in found), 1)
    mean = sum((image.total for image in found), np.zeros(3)) / pixels
    std = np.sqrt(np.maximum(sum((image.squares for image in found), np.zeros(3)) / pixels - mean**2, 0))
    print(f"{title}: {len(found)} images, RGB mean {_join(mean)}, standard deviation {_join(std)}")
    if not labelled:
        return
    counts = np.array([len(image.areas) for image in found])
    areas = np.concatenate([image.areas for image in found])
    print(f"{title}: {counts.sum():,} objects, {_spread(counts)} an image, {np.sum(counts == 0)} images empty")
    if areas.size:
        print(f"{title}: {_spread(areas)} pixels an object")
    modalities = Counter(entry.get("image_type") or "unknown" for entry in split.contents.images)
    if set(modalities) != {"unknown"}:
        print(f"{title}: {', '.join(f'{n} {modality}' for modality, n in sorted(modalities.items()))}")
    overlapping = [image.hidden for image in found if image.hidden]
    if overlapping:
        split.notes.append(f"objects overlap in {len(overlapping)} images, {sum(overlapping):,} pixels")
    crowded = int(np.sum(counts > detections))
    if crowded:
        split.notes.append(
            f"{crowded} images hold more than {detections} objects; set TEST.DETECTIONS_PER_IMAGE to "
            f"{counts.max()} or more"
        )


def _join(values: npt.NDArray[np.float64]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _spread(values: npt.NDArray[np.int64]) -> str:
    return f"{values.min():,} to {values.max():,} (median {np.median(values):,.0f})"


def _compare(splits: Sequence[_CheckedSplit]) -> None:
    """Look for the same pixels in two splits: an error within a division, a note between data sets of two readers."""
    for one, other in combinations(splits, 2):
        shared = [(one.digests[d][0], other.digests[d][0]) for d in one.digests if d in other.digests]
        if not shared:
            continue
        if one.division == other.division:
            for a, b in shared:
                one.errors.append(f"{one.files.images / a}: is also {other.files.images / b}; leave it out of one")
        elif one.contents.info.get("reader") != other.contents.info.get("reader"):
            one.notes.append(f"{len(shared)} images are also in {other.files.title}, {shared[0][0]} first")


def _name_bbbc039_fields(splits: Sequence[_CheckedSplit]) -> None:
    """Note them by the shipped list: the two data sets are normalised differently, so that pixels differ."""
    fields = bbbc039_fields()
    for split in splits:
        if split.contents.info.get("reader") != "dsb2018":
            continue
        stems = [Path(entry["file_name"]).stem for entry in split.contents.images]
        shared = [fields[stem] for stem in stems if stem in fields]
        if shared:
            parts = Counter(part for _, part in shared)
            split.notes.append(
                f"{len(shared)} images are fields of BBBC039 ({', '.join(f'{n} {part}' for part, n in parts.items())})"
                ": before a test on BBBC039 prepare it with --option exclude_bbbc039=true"
            )
            split.notes.extend(f"BBBC039 {part}: {stem}" for stem, part in sorted(shared, key=lambda f: f[::-1]))


def _write_sheet(split: _CheckedSplit, path: Path) -> bool:
    """Draw images from all over the split, each beside its truth. Returns whether there was one to draw."""
    images = split.contents.images
    chosen = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, SHEET_IMAGES).astype(int))]
    tiles = []
    for entry in chosen:
        try:
            image = read_image(split.files.images / entry["file_name"])
            truth, _ = paint(split.contents.annotations[entry["id"]], *image.shape[:2])
            tiles.append(_tile(image, truth, Path(entry["file_name"]).stem))
        except (InputError, ValueError):  # already reported
            continue
    if not tiles:
        return False
    blank = np.full_like(tiles[0], 255)
    rows = [
        np.concatenate((tiles[i : i + SHEET_COLUMNS] + [blank] * SHEET_COLUMNS)[:SHEET_COLUMNS], axis=1)
        for i in range(0, len(tiles), SHEET_COLUMNS)
    ]
    write_png(path, np.concatenate(rows, axis=0))
    return True


def _tile(image: npt.NDArray[np.uint8], truth: npt.NDArray[np.int32], name: str) -> npt.NDArray[np.uint8]:
    """The centre of the image, its contrast stretched so that dark fields are visible, beside the same with every
    object outlined and tinted, below the name."""
    y0, x0 = (max(0, (length - PANEL) // 2) for length in truth.shape)
    image, truth = image[y0 : y0 + PANEL, x0 : x0 + PANEL], truth[y0 : y0 + PANEL, x0 : x0 + PANEL]
    low, high = np.percentile(image, (0.5, 99.5))
    stretched = np.clip((image - low) * (255 / max(high - low, 32)), 0, 255)
    tint = colours(int(truth.max(initial=0)) + 1)[truth]
    tinted = np.where(truth[..., None] > 0, (1 - TINT) * stretched + TINT * tint, stretched)
    tile = np.full((PANEL + 18, 2 * PANEL + 8, 3), 255, np.uint8)
    height, width = truth.shape
    tile[14 : 14 + height, :width] = stretched.astype(np.uint8)
    tile[14 : 14 + height, PANEL + 4 : PANEL + 4 + width] = overlay(tinted.astype(np.uint8), truth)
    picture = Image.fromarray(tile)
    ImageDraw.Draw(picture).text((2, 1), name[:60], fill=(0, 0, 0))
    return np.array(picture)
