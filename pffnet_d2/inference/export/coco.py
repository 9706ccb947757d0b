"""``coco``: the objects of one image as a COCO data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.inference.export.base import Add, Exporter, Part, Scores, SourceImage, score_rows
from pffnet_d2.masks.coco import CATEGORY_ID, label_map_to_annotations


class Coco(Exporter):
    """See :func:`write_coco_image`."""

    name = "coco"
    ending = ".json"
    about = "COCO run lengths"

    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        return _annotations(path, image.file_name, image.shape, image.class_name)


def write_coco_image(
    path: Path, label_map: NDArray[np.int32], scores: Scores | None = None, *, file_name: str, category: str = "object"
) -> None:
    """Write the objects of one image as a COCO data set: run lengths, area, bounding box and scores of each.

    The file can be used as truth, to correct and train on (``images``, ``annotations``, ``categories``). Its
    ``annotations`` alone are a list of results.

    Args:
        path: the file.
        label_map: (H, W) integers, 0 background.
        scores: columns of n values, one per object.
        file_name: of the image, without folders.
        category: name of the only category.

    Raises:
        InputError: the file cannot be written.
    """
    with _annotations(path, file_name, (label_map.shape[0], label_map.shape[1]), category) as add:
        add(Part(label_map, scores or {}))


@contextmanager
def _annotations(path: Path, file_name: str, shape: tuple[int, int], category: str = "object") -> Iterator[Add]:
    head = {
        "info": {"description": "predicted by pffnet_d2"},
        "images": [{"id": 1, "file_name": file_name, "height": shape[0], "width": shape[1]}],
        "categories": [{"id": CATEGORY_ID, "name": category, "supercategory": category}],
    }

    def add(part: Part) -> None:
        rows = score_rows(part.scores)
        for i, annotation in enumerate(label_map_to_annotations(part.labels)):
            file.write((",\n" if i else "\n") + json.dumps(annotation | rows(i)))

    with whole_file(path, encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        yield add
        file.write("\n]}\n")
