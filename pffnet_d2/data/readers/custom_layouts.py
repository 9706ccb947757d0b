"""Finding a user's images and their truth in any of the layouts that ``own`` describes."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pffnet_d2.data.readers.coco_json import CocoImage, read_coco
from pffnet_d2.data.readers.labels import components, label_map, parts_of_one_id
from pffnet_d2.data.readers.masks import one_mask_per_object
from pffnet_d2.data.readers.outline_files import CELL_OUTLINES, GEOJSON, ROI, read_outlines
from pffnet_d2.data.readers.source import SourceFile
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import decode_label_image
from pffnet_d2.masks.coco import masks_to_label_map
from pffnet_d2.masks.instance_mask import InstanceMask

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
EMPTY_ZIP = ".zip"
OUTLINE_ENDINGS = (GEOJSON, ROI, EMPTY_ZIP)
# What `pffnet predict` adds to the name of an image: label TIFFs and ROIs, and a picture, which is no truth.
_RESULTS, _PICTURE = ("_labels", "_rois"), "_overlay"
SPLIT_FOLDERS = ("train", "val", "test")
Key = tuple[str, ...]  # folders below images/, then the name without suffix


@dataclass(frozen=True)
class CustomImage:
    """An image with its truth."""

    key: Key
    read_image: Callable[[], npt.NDArray[Any]]
    read_label_map: Callable[[], npt.NDArray[np.int32]]
    read_masks: Callable[[], list[InstanceMask]] | None = None

    @property
    def image_id(self) -> str:
        return "_".join(self.key)


def relative_paths(root: Path, files: list[SourceFile]) -> dict[Key, SourceFile]:
    """Files by their path below ``root``. A zip counts as the folder that it extracts to, and folders that contain all
    files are left out."""
    known = {*SPLIT_FOLDERS, "images", "labels", "masks"}
    paths: dict[Key, SourceFile] = {}
    for file in files:
        parts = file.parts[len(root.parts) :]
        bare = [part.removesuffix(".zip") for part in parts]
        last = len(bare) - 1  # an empty zip is a file
        path = tuple(part for i, part in enumerate(bare) if i == last or part == parts[i] or part != bare[i + 1])
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


class TruthForm(NamedTuple):
    """How files of truth are read: the options ``truth``, ``fill_holes`` and ``outline`` of ``own``."""

    truth: str
    fill_holes: bool
    outline: str


def truth_form(*, truth: str = "auto", fill_holes: bool = False, outline: str = "", **_: Any) -> TruthForm:
    """Choose the form of the truth. Raises InputError for one that does not exist."""
    if truth not in ("auto", "ids", "components"):
        raise InputError(f"option truth={truth}: give auto, ids or components")
    if outline not in ("", *CELL_OUTLINES):
        raise InputError(f"option outline={outline}: give {' or '.join(CELL_OUTLINES)}")
    return TruthForm(truth, fill_holes, outline)


def find_images(
    root: Path,
    files: dict[Key, SourceFile],
    *,
    images: str = "images",
    labels: str = "",
    label_suffix: str = "",
    coco: str = "",
    **form: Any,
) -> list[CustomImage]:
    """The images with their truth, sorted by path.

    Args:
        root: for messages.
        files: by their path below ``root``.
        images, labels, label_suffix, coco: the options of ``own``.
        form: those of ``truth_form``; others are left alone.

    Raises:
        InputError: as ``own.records``.
    """
    read_as = truth_form(**form)
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
        items = _coco_images(files, chosen, image_folder)
    else:
        found = _find_files(files, image_folder, label_folder, label_suffix)
        items = [_image_with_truth(key, image, masks, read_as) for key, image, masks in found]
    if not items:
        raise InputError(f"{root}: holds no images; give images/ and labels/ (see docs/data.md)")
    twice = [name for name, n in Counter(item.image_id for item in items).items() if n > 1]
    if twice:
        raise InputError(f"{root}: two images are called {twice[0]}; rename one")
    return sorted(items, key=lambda item: item.key)


@dataclass(frozen=True)
class _Files:
    """Images and truth by key: a label image, or masks of one object each."""

    images: dict[Key, SourceFile] = field(default_factory=dict)
    labels: dict[Key, SourceFile] = field(default_factory=dict)
    masks: dict[Key, list[SourceFile]] = field(default_factory=lambda: defaultdict(list))

    def add(self, image: SourceFile, key: Key) -> None:
        if key in self.images:
            raise InputError(f"{image}: two images are called {'/'.join(key)}, also {self.images[key]}; rename one")
        self.images[key] = image

    def add_truth(self, file: SourceFile, key: Key) -> None:
        """A label image of the image ``key``, or a mask of the image that the folder of the file is named after."""
        if key in self.labels:
            raise InputError(
                f"{file}: the truth of {'/'.join(key)} is there twice, also {self.labels[key]}; remove one"
            )
        self.labels[key] = file
        self.masks[key[:-1]].append(file)


def _find_files(
    files: dict[Key, SourceFile], image_folder: Key, label_folder: Key, label_suffix: str
) -> list[tuple[Key, SourceFile, list[SourceFile] | SourceFile]]:
    """Key, image, and label image or masks of one object each, of every image.

    Raises:
        InputError: two images of one name, two label images of one image, an image without truth, truth without an
            image.
    """
    folder_per_image = not any(path[: len(image_folder)] == image_folder for path in files)
    if folder_per_image:
        found = _folder_per_image(files)
    else:
        found = _image_and_label_folder(files, image_folder, label_folder, label_suffix)
    pairs: list[tuple[Key, SourceFile, list[SourceFile] | SourceFile]] = []
    used: set[SourceFile] = set()
    for key, image in found.images.items():
        truth = found.labels.get(key) or found.masks.get(key)
        if not truth:
            where = "masks/" if folder_per_image else f"{'/'.join(label_folder)}/{'/'.join(key)}{label_suffix}"
            raise InputError(f"{image}: has no truth; neither a label image {where}.png or .tif nor a folder of masks")
        used.update([truth] if isinstance(truth, SourceFile) else truth)
        pairs.append((key, image, truth))
    for file in [*found.labels.values(), *(mask for several in found.masks.values() for mask in several)]:
        if file not in used:
            raise InputError(f"{file}: truth without an image; add the image or remove it")
    return pairs


def _folder_per_image(files: dict[Key, SourceFile]) -> _Files:
    """<id>/images/<id>.png and <id>/masks/<any>.png. Other files are not looked at."""
    found = _Files()
    for (*folders, _), file in files.items():
        if len(folders) < 2 or file.suffix not in IMAGE_ENDINGS:
            continue
        key = tuple(folders[:-1])
        if folders[-1] == "images" and file.stem == key[-1]:
            found.images[key] = file
        elif folders[-1] == "masks":
            found.masks[key].append(file)
    return found


def _image_and_label_folder(
    files: dict[Key, SourceFile], image_folder: Key, label_folder: Key, label_suffix: str
) -> _Files:
    """images/<id>.png and labels/<id>.png, or labels/<id>/<any>.png; the two folders may be one, where label images
    have a suffix."""
    found = _Files()
    others = []
    truths: list[tuple[SourceFile, Key]] = []
    for path, file in files.items():
        *folders, _ = path
        is_label = bool(label_suffix) and file.stem.endswith(label_suffix)
        in_labels = path[: len(label_folder)] == label_folder and (is_label or label_folder != image_folder)
        if not in_labels and path[: len(image_folder)] != image_folder:
            continue
        if in_labels and file.suffix in (*IMAGE_ENDINGS, *OUTLINE_ENDINGS):
            truths.append((file, (*folders[len(label_folder) :], file.stem.removesuffix(label_suffix))))
        elif not in_labels and file.suffix in IMAGE_ENDINGS:
            found.add(file, (*folders[len(image_folder) :], file.stem))
        else:
            others.append(file)
    for file, key in truths:
        if key[-1].endswith(_PICTURE) and _without(key, _PICTURE) in found.images:
            others.append(file)
        else:
            found.add_truth(file, _without_ending(key, found.images))
    if others:
        logger.warning("%d files are no images and left out, first %s", len(others), others[0])
    return found


def _without_ending(key: Key, images: Container[Key]) -> Key:
    """The key of a truth file without the ending that `pffnet predict` adds to the name of an image, if that leaves the
    key of an image, or a folder of masks or ROIs of one."""
    for ending in ("", *_RESULTS):
        shorter = _without(key, ending)
        folder = _without(key[:-1], ending) if len(key) > 1 else ()
        if shorter in images:
            return shorter
        if folder in images:
            return (*folder, key[-1])
    return key


def _without(key: Key, ending: str) -> Key:
    return (*key[:-1], key[-1].removesuffix(ending))


def _image_with_truth(
    key: Key, image: SourceFile, truth: list[SourceFile] | SourceFile, form: TruthForm
) -> CustomImage:
    files = [truth] if isinstance(truth, SourceFile) else truth
    by_outlines = [file for file in files if file.suffix in OUTLINE_ENDINGS]
    if not by_outlines:
        return CustomImage(key, partial(_read, image), _truth_reader(truth, form.truth, form.fill_holes))
    if len(by_outlines) < len(files):
        raise InputError(f"{files[0]}: the truth of {'/'.join(key)} is masks and outlines; remove one of them")
    # An empty zip has no ROIs: the image has no objects.
    rois = [file for file in files if file.suffix != EMPTY_ZIP]
    read = partial(_read_outlined, image, rois, form.outline)
    return CustomImage(key, partial(_read, image), partial(_outlined_labels, image, read), read)


def _read_outlined(image: SourceFile, files: list[SourceFile], outline: str) -> list[InstanceMask]:
    height, width = _read(image).shape[:2]
    return read_outlines(files, height, width, outline)


def _outlined_labels(image: SourceFile, read: Callable[[], list[InstanceMask]]) -> npt.NDArray[np.int32]:
    height, width = _read(image).shape[:2]
    return masks_to_label_map(read(), height, width)


def _truth_reader(
    truth: list[SourceFile] | SourceFile, form: str, fill_holes: bool
) -> Callable[[], npt.NDArray[np.int32]]:
    if isinstance(truth, SourceFile):
        return partial(_read_labels, truth, form)
    return partial(one_mask_per_object, truth, 127, fill_holes)


def _read(file: SourceFile) -> npt.NDArray[Any]:
    return file.image()


def _read_labels(file: SourceFile, form: str) -> npt.NDArray[np.int32]:
    """The label map of a label image. ``form`` is "ids", "components", or "auto", which raises InputError for an image
    that looks like the mask of all objects."""
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


def _coco_images(files: dict[Key, SourceFile], path: Key, image_folder: Key) -> list[CustomImage]:
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
            CustomImage(
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
