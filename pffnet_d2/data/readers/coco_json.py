"""COCO jsons of users. They are checked before their numbers are used, and every error names the file."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pffnet_d2.data.readers.source import SourceFile
from pffnet_d2.errors import InputError
from pffnet_d2.masks.coco import annotations_to_masks
from pffnet_d2.masks.instance_mask import InstanceMask

logger = logging.getLogger(__name__)

CORRECT = "correct the json"


@dataclass(frozen=True)
class CocoImage:
    """An image of a json with its annotations, without crowds."""

    json_name: str
    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def path(self) -> PurePosixPath:
        """Where its ``file_name`` says."""
        return PurePosixPath(self.file_name.replace("\\", "/"))

    def masks(self) -> list[InstanceMask]:
        """Every object whole, in the order of the annotations. Objects without a pixel are left out with a warning.

        Raises:
            InputError: naming the json, the annotation and the image: a mask cannot be decoded or has another size.
        """
        for annotation in self.annotations:
            where = f"{self.json_name}: annotation {annotation.get('id', '?')} of {self.file_name}"
            _check_segmentation(annotation.get("segmentation"), self.height, self.width, where)
        try:
            found = annotations_to_masks(self.annotations, self.height, self.width, remedy=CORRECT)
        except InputError as error:
            raise InputError(f"{self.json_name}: {self.file_name}: {error}") from error
        hidden = len(self.annotations) - len(found)
        if hidden:
            logger.warning("%s: %d annotations of %s without a pixel", self.json_name, hidden, self.file_name)
        return found


def read_coco(file: SourceFile) -> list[CocoImage]:
    """The images of a json, in its order. All categories become one and crowds are left out, both with a warning.

    Raises:
        InputError: naming the file: it is not a COCO json; a size is not a whole number; ids do not agree.
    """
    name = str(file)
    try:
        data = json.loads(file.read())
        images: dict[Any, CocoImage] = {}
        for entry in data["images"]:
            if entry["id"] in images:
                raise InputError(f"{name}: two images have the same id; number them anew")
            images[entry["id"]] = _image(entry, name)
        crowds = 0
        for annotation in data["annotations"]:
            if annotation["image_id"] not in images:
                raise InputError(
                    f"{name}: annotation {annotation.get('id', '?')} is of image {annotation['image_id']}, which is "
                    "not among its images; add the image or remove the annotation"
                )
            crowd = annotation.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise InputError(f"{name}: annotation {annotation.get('id', '?')} has iscrowd {crowd!r}; give 0 or 1")
            crowds += crowd
            if not crowd:
                images[annotation["image_id"]].annotations.append(annotation)
        categories = {annotation["category_id"] for annotation in data["annotations"]}
    except InputError:  # is a ValueError too
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{name}: is not COCO JSON with images (id, file_name, height, width) and annotations "
            f"(image_id, category_id, segmentation); give one, or name it with --option coco=PATH"
        ) from error
    if crowds:
        logger.warning("%s: %d annotations of crowds are left out", name, crowds)
    if len(categories) > 1:
        logger.warning("%s: its %d categories become one", name, len(categories))
    return list(images.values())


def _image(entry: dict[str, Any], name: str) -> CocoImage:
    file_name = entry["file_name"]
    if not isinstance(file_name, str) or not file_name:
        raise InputError(f"{name}: image {entry['id']} has the file_name {file_name!r}; {CORRECT}")
    size = []
    for key in ("height", "width"):
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not value >= 1:
            raise InputError(f"{name}: {file_name} has the {key} {value!r}, no whole number from 1 on; {CORRECT}")
        size.append(int(value))
    return CocoImage(name, file_name, height=size[0], width=size[1])


def _check_segmentation(segmentation: Any, height: int, width: int, where: str) -> None:
    """Raise an error for what pycocotools would misread, or crash on."""
    if isinstance(segmentation, dict):
        _check_runs(segmentation, height, width, where)
    elif isinstance(segmentation, list) and segmentation:
        for part in segmentation:
            if isinstance(part, dict):
                _check_runs(part, height, width, where)
            else:
                _check_polygon(part, height, width, where)
    else:
        raise InputError(f"{where}: its segmentation is neither run lengths nor polygons; {CORRECT}")


def _check_runs(runs: dict[str, Any], height: int, width: int, where: str) -> None:
    size, counts = runs.get("size"), runs.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, str | list):
        raise InputError(f"{where}: its segmentation is neither run lengths nor polygons; {CORRECT}")
    if size != [height, width]:
        raise InputError(
            f"{where}: its mask is for {size[0]} x {size[1]} pixels (height x width), the image has {height} x "
            f"{width}; {CORRECT}"
        )
    if isinstance(counts, list) and (
        not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width
    ):
        raise InputError(f"{where}: its run lengths do not fill {height} x {width} pixels; {CORRECT}")


def _check_polygon(polygon: Any, height: int, width: int, where: str) -> None:
    numbers = isinstance(polygon, list) and all(isinstance(value, int | float) for value in polygon)
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise InputError(f"{where}: a polygon is not a list of x, y, x, y, ... of three points or more; {CORRECT}")
    points = np.array([float(value) if abs(value) < 1e9 else np.nan for value in polygon]).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise InputError(f"{where}: a polygon has a coordinate that is not a number, or far too large; {CORRECT}")
    if (points < (-width, -height)).any() or (points > (2 * width, 2 * height)).any():
        x, y = points[np.abs(points / (width, height)).max(axis=1).argmax()]
        raise InputError(
            f"{where}: a polygon reaches to row {y:g}, column {x:g}, the image has {height} x {width} pixels; "
            "the two do not belong together"
        )
