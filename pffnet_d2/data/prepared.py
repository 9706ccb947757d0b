"""Prepared data sets: where they lie, and the only code that reads or writes them.

ROOT/<data set>/<split>/images/<id>.png     8-bit RGB
                        semantic/<id>.png   8 bit, 0 background, 1 object; where the truth is published
                        instances.json      COCO with run lengths; ``info`` says how the split was made
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pffnet_d2.atomic_write import write_text
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import MAX_PIXELS, read_bytes
from pffnet_d2.masks.coco import CATEGORY_ID, annotations_to_label_map

FORMAT = 3  # of these files; a split of another format is prepared again
INSTANCES = "instances.json"
_HEAD = '{"info": '  # how the json begins


def root() -> Path:
    """The folder of the prepared data sets: $DETECTRON2_DATASETS, as for Detectron2's own, else ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


@dataclass(frozen=True)
class SplitContents:
    """What the json of a prepared split holds.

    Attributes:
        info: how the split was made.
        images: file_name, height, width (pixels) and more of every image, in the order of the file.
        annotations: those of each image, by the image's id.
        categories: COCO's.
    """

    info: dict[str, Any]
    images: list[dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]]
    categories: list[dict[str, Any]]


class LabelledImage(NamedTuple):
    """An image of a split with its truth.

    Attributes:
        name: of its file, without suffix.
        file: 8-bit RGB.
        truth: returns the label map, (H, W).
        group: in reports; "" where there is none.
    """

    name: str
    file: Path
    truth: Callable[[], npt.NDArray[np.int32]]
    group: str


@dataclass(frozen=True)
class PreparedSplit:
    """The files of a split; ``folder`` holds them."""

    folder: Path

    @property
    def title(self) -> str:
        """Data set and split."""
        return f"{self.folder.parent.name} {self.folder.name}"

    @property
    def json_file(self) -> Path:
        return self.folder / INSTANCES

    @property
    def images(self) -> Path:
        """The folder of the images."""
        return self.folder / "images"

    @property
    def semantic(self) -> Path:
        """The folder of the semantic maps, which have the names of the images."""
        return self.folder / "semantic"

    def folders(self, labelled: bool) -> tuple[Path, ...]:
        """The folders that hold one file per image."""
        return (self.images, self.semantic) if labelled else (self.images,)

    def info(self) -> dict[str, Any]:
        """``info`` of the json, of which only the head is read; {} where there is none, or it is not ours."""
        try:
            with self.json_file.open(encoding="utf-8") as file:
                head = file.read(1 << 16)
            info, _ = json.JSONDecoder().raw_decode(head, len(_HEAD)) if head.startswith(_HEAD) else ({}, 0)
        except (OSError, ValueError, RecursionError):
            return {}
        return info if isinstance(info, dict) and "dataset" in info and "reader" in info else {}

    def read(self) -> SplitContents:
        """The content of the json.

        Raises:
            InputError: naming the json: it cannot be read, is damaged, or names an image or annotation twice; an
                annotation is of an image that is not there.
        """
        data = _read_json(self.json_file)
        try:
            images, annotations = data["images"], data["annotations"]
            for what, ids in (
                ("image", [entry["id"] for entry in images]),
                ("image", [entry["file_name"] for entry in images]),
                ("annotation", [annotation["id"] for annotation in annotations]),
            ):
                self._check_unique(what, ids)
            by_image: dict[Any, list[dict[str, Any]]] = {entry["id"]: [] for entry in images}
            for entry in images:
                sides = (entry["height"], entry["width"])
                if not all(type(side) is int and 0 < side <= MAX_PIXELS for side in sides):
                    raise ValueError(entry)
            for annotation in annotations:
                if annotation["image_id"] not in by_image:
                    raise InputError(
                        f"{self.json_file}: annotation {annotation['id']} is of image {annotation['image_id']}, which "
                        "is not there; prepare it again"
                    )
                by_image[annotation["image_id"]].append(annotation)
            if any(not isinstance(entry["file_name"], str) for entry in images):
                raise ValueError(images)
            info = data.get("info", {})
            if not isinstance(info, dict):
                raise ValueError(info)
            return SplitContents(info, images, by_image, data.get("categories", []))
        except InputError:  # is a ValueError too
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise not_prepared(self.json_file) from error

    def labelled_images(self) -> Iterator[LabelledImage]:
        """The images with their truth, in the order of the json.

        Raises:
            InputError: naming the json: as ``read``; two images have one name, suffix aside. Reading a truth: an
                annotation cannot be decoded.
        """
        contents = self.read()
        twice = [name for name, n in Counter(Path(each["file_name"]).stem for each in contents.images).items() if n > 1]
        if twice:
            raise InputError(f"{self.json_file}: two images are called {twice[0]}; rename one and prepare it again")
        for image in contents.images:
            truth = partial(self._truth, contents.annotations[image["id"]], image["height"], image["width"])
            yield LabelledImage(
                Path(image["file_name"]).stem, self.images / image["file_name"], truth, report_group(image)
            )

    def _truth(self, annotations: list[dict[str, Any]], height: int, width: int) -> npt.NDArray[np.int32]:
        try:
            return annotations_to_label_map(annotations, height, width)
        except InputError as error:
            raise InputError(f"{self.json_file}: {error}") from error

    def _check_unique(self, what: str, ids: list[Any]) -> None:
        twice = next((i for i, n in Counter(ids).items() if n > 1), None)
        if twice is not None:
            raise InputError(f"{self.json_file}: {what} {twice} is there twice; prepare it again")

    def is_complete(self, info: dict[str, Any], file_names: Sequence[str]) -> bool:
        """Whether the split was made with this ``info`` of exactly these images, and no file was removed since."""
        try:
            there = _read_json(self.json_file)
        except InputError:
            return False
        if not isinstance(there, dict) or there.get("info") != json.loads(json.dumps(info)):
            return False
        return list(file_names) == [image["file_name"] for image in there["images"]] and all(
            folder.is_dir() and set(file_names) == set(os.listdir(folder)) for folder in self.folders(info["labelled"])
        )


def find_splits(folder: Path, depths: Sequence[int] = (0, 1, 2)) -> list[PreparedSplit]:
    """The splits in a folder: 0 the folder itself, 1 those of a data set, 2 those of all data sets of a root."""
    return [PreparedSplit(file.parent) for depth in depths for file in sorted(folder.glob("*/" * depth + INSTANCES))]


def read_images(json_file: Path) -> list[dict[str, Any]]:
    """Only the images of a split's json. Raises InputError naming it, as ``PreparedSplit.read``."""
    data = _read_json(json_file)
    try:
        images: list[dict[str, Any]] = [{**image, "file_name": str(image["file_name"])} for image in data["images"]]
    except (KeyError, TypeError) as error:
        raise not_prepared(json_file) from error
    return images


def report_group(image: dict[str, Any]) -> str:
    """The group of an image in reports, from its entry in the json; "" where it has none. Entries of an older format
    have a ``group`` instead, which only says what splits keep together."""
    return str(image.get("report_group") or "")


def not_prepared(json_file: Path) -> InputError:
    """The error for a json that is damaged or something else."""
    return InputError(
        f"{json_file}: is not the JSON of a prepared data set, or is damaged; move its folder away and prepare it again"
    )


def _read_json(json_file: Path) -> Any:
    if not json_file.exists():
        raise InputError(f"{json_file}: is not there; give the folder of a split that `pffnet prepare` made")
    try:
        return json.loads(read_bytes(json_file))
    except InputError:  # is a ValueError too
        raise
    except (ValueError, RecursionError) as error:
        raise not_prepared(json_file) from error


def write_image(path: Path, rgb: npt.NDArray[np.uint8]) -> None:
    """An (H, W, 3) image as PNG, at the fastest compression."""
    Image.fromarray(rgb).save(path, compress_level=1)


def write_semantic(path: Path, label_map: npt.NDArray[np.int32]) -> None:
    """The semantic truth: an 8-bit PNG, 0 background, 1 any object."""
    Image.fromarray((label_map > 0).astype(np.uint8)).save(path)


def write_instances(
    path: Path,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    info: dict[str, Any],
    category: str,
) -> None:
    """The json of a split with its one category (id 1), written beside its place and moved when whole."""
    data = {
        "info": info,
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": CATEGORY_ID, "name": category, "supercategory": category}],
    }
    write_text(path, json.dumps(data))
