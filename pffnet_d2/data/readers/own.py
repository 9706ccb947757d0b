"""A user's own images with truth in one of three forms, found by looking at the folder:

- label images:      images/<id>.png|tif|jpg|bmp and labels/<id>.png|tif (or masks/), one channel or a palette of 8, 16
                     or 32 bit, 0 background, each object its own id;
- a mask an object:  images/<id>.* and masks/<id>/<any>.*, or <id>/images/<id>.* and <id>/masks/<any>.* as in DSB2018;
- COCO:              one json with images and annotations (run lengths or polygons), at the top or named by the option
                     ``coco``; the images where its file_name says, from the json's folder or the images folder.

Below images/ there may be folders (plates, patients); labels/ then has the same. Folders or zips.

Splits, by the options: ``fractions`` of the images, drawn by ``seed``, those of a ``group`` kept together; or
``lists``, a folder with <split>.txt, an image name a line; or, without either, the folders of FOLDER where they are
called train and val or test, each with one of the layouts above.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from pffnet_d2.data.readers.coco_json import CocoImage, read_coco
from pffnet_d2.data.readers.labels import components, label_map, parts_of_one_id
from pffnet_d2.data.readers.masks import one_mask_per_object
from pffnet_d2.data.readers.record import IMAGE_TYPES, Record
from pffnet_d2.data.readers.source import SourceFile, list_files
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS, AUTO, BY_DEPTH, Normalisation
from pffnet_d2.imaging.read import decode_label_image, read_bytes
from pffnet_d2.masks.coco import masks_to_label_map
from pffnet_d2.masks.instance_mask import InstanceMask

logger = logging.getLogger(__name__)

SPLITS: tuple[str, ...] = ()  # what the options make them
OPTIONS: dict[str, tuple[Any, str]] = {
    "fractions": ("train=0.8,val=0.2", "parts of the images by split; they sum to 1"),
    "group": ("", "keep together what shares a folder (group=folder) or what a regular expression finds in the path"),
    "report_group": ("", "column of an image in reports: folder or a regular expression, as for group"),
    "lists": ("", "folder with <split>.txt, an image a line, instead of fractions"),
    "seed": (0, "of the division by fractions (--seed)"),
    "images": ("images", "folder of the images"),
    "labels": ("", "folder of the truth (labels or masks unless given)"),
    "label_suffix": ("", "what the name of a label image has after the image's, as in cell1_masks.png"),
    "coco": ("", "the COCO json, where there are several"),
    "truth": ("auto", "label images hold ids, or only 0 and 1: then components makes each 8-connected one an object"),
    "fill_holes": (False, "fill holes in masks of one object"),
    "category": ("object", "what the objects are"),
    "image_type": ("", f"kind of the images: {', '.join(IMAGE_TYPES)}"),
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

IMAGE_ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
SPLIT_FOLDERS = ("train", "val", "test")
Key = tuple[str, ...]  # folders below images/, then the name without ending


@dataclass(frozen=True)
class _Item:
    """An image with its truth."""

    key: Key
    read_image: Callable[[], npt.NDArray[Any]]
    read_label_map: Callable[[], npt.NDArray[np.int32]]
    read_masks: Callable[[], list[InstanceMask]] | None = None

    @property
    def image_id(self) -> str:
        return "_".join(self.key)


def normalisation(
    *,
    normalisation: str = AUTO.name,
    low: float = AUTO.low,
    high: float = AUTO.high,
    minimum_range: float = AUTO.minimum_range,
    **_: Any,
) -> Normalisation:
    """The normalisation that the options choose. Raises InputError for one that does not exist."""
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
    """The splits that the options make of the images under ``root``."""
    return tuple(_divide(root, **options))


def records(
    root: Path, split: str, *, group: str = "", report_group: str = "", image_type: str = "", **options: Any
) -> Iterator[Record]:
    """The images of a split in the order of their paths.

    Raises:
        InputError: no images, an image without truth or truth without an image, two images of one name, a json that is
            not COCO, options that do not fit. Reading a record: a truncated file; a picture of labels instead of
            labels; labels that are no whole numbers or negative.
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
) -> dict[str, list[_Item]]:
    files = _relative(root, list_files(root))
    tops = {path[0] for path in files}
    if _is_divided(tops) and not (fractions or lists):
        return {
            split: _items(root / split, {path[1:]: file for path, file in files.items() if path[0] == split}, **form)
            for split in SPLIT_FOLDERS
            if split in tops
        }
    items = _items(root, files, **form)
    if lists:
        return _by_lists(root, items, root / lists)
    return _by_fractions(items, _parse_fractions(fractions or OPTIONS["fractions"][0]), group, seed)


def count_undivided(root: Path, **form: Any) -> int:
    """How many images wait to be divided: all, or none where folders train/ and val/ or test/ divide them.

    Raises:
        InputError: as :func:`records`.
    """
    files = _relative(root, list_files(root))
    return 0 if _is_divided({path[0] for path in files}) else len(_items(root, files, **form))


def _is_divided(tops: set[str]) -> bool:
    return "train" in tops and bool(tops & {"val", "test"})


def _relative(root: Path, files: list[SourceFile]) -> dict[Key, SourceFile]:
    """Files by their path below ``root``: a zip as the folder it extracts to, and folders above all of the files left
    out."""
    known = {*SPLIT_FOLDERS, "images", "labels", "masks"}
    paths: dict[Key, SourceFile] = {}
    for file in files:
        parts = file.parts[len(root.parts) :]
        bare = [part.removesuffix(".zip") for part in parts]
        path = tuple(part for i, part in enumerate(bare) if part == parts[i] or part != bare[i + 1])
        if path in paths:
            raise InputError(f"{file}: is there twice, also as {paths[path]}; remove one")
        paths[path] = file
    while len({path[0] for path in paths}) == 1:
        top = next(iter(paths))[0]
        if top in known or any(
            len(path) == 1 or (path[1] == "images" and file.stem == top) for path, file in paths.items()
        ):
            break
        paths = {path[1:]: file for path, file in paths.items()}
    return paths


def _items(
    root: Path,
    files: dict[Key, SourceFile],
    *,
    images: str = "images",
    labels: str = "",
    label_suffix: str = "",
    coco: str = "",
    truth: str = "auto",
    fill_holes: bool = False,
    **_: Any,
) -> list[_Item]:
    """The images in one of the layouts."""
    if truth not in ("auto", "ids", "components"):
        raise InputError(f"option truth={truth}: give auto, ids or components")
    image_folder = PurePosixPath(images).parts
    label_folder = PurePosixPath(labels).parts if labels else ("labels",)
    if not labels and not any(path[:1] == ("labels",) for path in files):
        label_folder = ("masks",)
    jsons = [path for path in files if path[-1].lower().endswith(".json")]
    if coco or (jsons and not any(path[: len(label_folder)] == label_folder for path in files)):
        chosen = PurePosixPath(coco).parts if coco else jsons[0]
        if chosen not in files or (not coco and len(jsons) > 1):
            raise InputError(
                f"{root}: {f'no {coco}' if coco else f'{len(jsons)} json files'} there; "
                "name the COCO json with --option coco=PATH"
            )
        items = _coco_items(files, chosen, image_folder)
    else:
        found = _files_of(files, image_folder, label_folder, label_suffix)
        items = [
            _Item(key, partial(_read, image), _truth_reader(masks, truth, fill_holes)) for key, image, masks in found
        ]
    if not items:
        raise InputError(f"{root}: holds no images; give images/ and labels/ (see docs/data.md)")
    twice = [name for name, n in Counter(item.image_id for item in items).items() if n > 1]
    if twice:
        raise InputError(f"{root}: two images are called {twice[0]}; rename one")
    return sorted(items, key=lambda item: item.key)


def _files_of(
    files: dict[Key, SourceFile], image_folder: Key, label_folder: Key, label_suffix: str
) -> list[tuple[Key, SourceFile, list[SourceFile] | SourceFile]]:
    """Key, image, and label image or masks of one object each, of every image."""
    images: dict[Key, SourceFile] = {}
    labels: dict[Key, SourceFile] = {}
    masks: dict[Key, list[SourceFile]] = defaultdict(list)
    a_folder_each = not any(path[: len(image_folder)] == image_folder for path in files)
    others = []
    for path, file in files.items():
        *folders, _ = path
        stem = file.stem
        is_label = bool(label_suffix) and stem.endswith(label_suffix)
        if a_folder_each:  # <id>/images/<id>.png, <id>/masks/<any>.png
            if len(path) >= 3 and folders[-1] == "images" and stem == folders[-2] and file.suffix in IMAGE_ENDINGS:
                images[tuple(folders[:-1])] = file
            elif len(path) >= 3 and folders[-1] == "masks" and file.suffix in IMAGE_ENDINGS:
                masks[tuple(folders[:-1])].append(file)
            continue
        if path[: len(label_folder)] == label_folder and (is_label or label_folder != image_folder):
            below = tuple(folders[len(label_folder) :])
            key = (*below, stem.removesuffix(label_suffix))
            if file.suffix not in IMAGE_ENDINGS:
                others.append(file)
                continue
            if key in labels:
                raise InputError(f"{file}: the truth of {'/'.join(key)} is there twice, also {labels[key]}; remove one")
            labels[key] = file
            masks[below].append(file)
        elif path[: len(image_folder)] == image_folder:
            key = (*folders[len(image_folder) :], stem)
            if file.suffix not in IMAGE_ENDINGS:
                others.append(file)
                continue
            if key in images:
                raise InputError(f"{file}: two images are called {'/'.join(key)}, also {images[key]}; rename one")
            images[key] = file
    if others:
        logger.warning("%d files are no images and left out, first %s", len(others), others[0])

    found: list[tuple[Key, SourceFile, list[SourceFile] | SourceFile]] = []
    used: set[SourceFile] = set()
    for key, image in images.items():
        truth = labels.get(key) or masks.get(key)
        if not truth:
            where = "masks/" if a_folder_each else f"{'/'.join(label_folder)}/{'/'.join(key)}{label_suffix}"
            raise InputError(f"{image}: has no truth; neither a label image {where}.png or .tif nor a folder of masks")
        used.update([truth] if isinstance(truth, SourceFile) else truth)
        found.append((key, image, truth))
    for file in [*labels.values(), *(mask for several in masks.values() for mask in several)]:
        if file not in used:
            raise InputError(f"{file}: truth without an image; add the image or remove it")
    return found


def _truth_reader(
    truth: list[SourceFile] | SourceFile, form: str, fill_holes: bool
) -> Callable[[], npt.NDArray[np.int32]]:
    if isinstance(truth, SourceFile):
        return partial(_read_labels, truth, form)
    return partial(one_mask_per_object, truth, 127, fill_holes)


def _read(file: SourceFile) -> npt.NDArray[Any]:
    return file.image()


def _read_labels(file: SourceFile, form: str) -> npt.NDArray[np.int32]:
    """``form``: "ids", "components", or "auto", which refuses what looks like the mask of all objects."""
    ids = label_map(decode_label_image(file.read(), str(file)), str(file))
    if form == "components":
        return components(ids > 0)
    count = parts_of_one_id(ids) if form == "auto" else 0
    if count > 1:
        raise InputError(
            f"{file}: one id in {count} separate parts; say --option truth=components if it is the mask of all "
            "objects, truth=ids if it is one object"
        )
    return ids


def _coco_items(files: dict[Key, SourceFile], path: Key, image_folder: Key) -> list[_Item]:
    file = files[path]
    by_name = defaultdict(list)
    for other in files:
        by_name[other[-1]].append(other)
    items = []
    for image in read_coco(file):
        below = image.path
        tries = [(*base, *below.parts) for base in (path[:-1], image_folder, ())]
        tries += by_name[below.name] if len(by_name[below.name]) == 1 else []
        place = next((other for other in tries if other in files), None)
        if place is None:
            raise InputError(f"{file}: its image {image.file_name} is not there; put the images into images/")
        folders = (part for part in below.parent.parts if part not in ("/", "..") and not part.endswith(":"))
        items.append(
            _Item(
                key=(*folders, below.stem),
                read_image=partial(_read_sized, files[place], image),
                read_label_map=partial(_coco_labels, image),
                read_masks=image.masks,
            )
        )
    return items


def _read_sized(file: SourceFile, image: CocoImage) -> npt.NDArray[Any]:
    pixels = _read(file)
    if pixels.shape[:2] != (image.height, image.width):
        raise InputError(
            f"{file}: {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width) where {image.json_name} says "
            f"{image.height} x {image.width}; give the image that was annotated"
        )
    return pixels


def _coco_labels(image: CocoImage) -> npt.NDArray[np.int32]:
    return masks_to_label_map(image.masks(), image.height, image.width)


def _group(key: Key, option: str, pattern: str) -> str:
    """What the pattern finds in the image's path: its first group, or all of the match."""
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
        raise InputError(f"{where}: {name!r} is no name of a split; use letters, digits, _ and -")


def _by_fractions(items: list[_Item], fractions: dict[str, float], pattern: str, seed: int) -> dict[str, list[_Item]]:
    """Groups, in an order drawn from ``seed``, go each to the split that lacks the most images, the last of them to
    splits without any."""
    if seed < 0:
        raise InputError(f"option seed={seed}: give a whole number from 0 on")
    groups: dict[tuple[str, str], list[_Item]] = defaultdict(list)
    for item in items:
        group = _group(item.key, "group", pattern)
        groups[(group, "") if group else ("", item.image_id)].append(item)
    keys = sorted(groups)
    parts: dict[str, list[_Item]] = {name: [] for name in fractions}
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


def _by_lists(root: Path, items: list[_Item], folder: Path) -> dict[str, list[_Item]]:
    texts = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not texts:
        raise InputError(f"{folder}: holds no <split>.txt; write one a split, an image name a line")
    known: dict[str, _Item] = {}
    for item in items:
        known |= {item.image_id: item, "/".join(item.key): item}
    parts: dict[str, list[_Item]] = {}
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
