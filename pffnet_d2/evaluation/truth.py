"""The truth that the evaluators compare with, and one result per image from any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from pffnet_d2.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Truth:
    """The annotated images of a data set.

    Attributes:
        images: Detectron2's dict of each image, by its ``image_id``, in the order of the data set.
    """

    def __init__(self, dataset_name: str) -> None:
        """``dataset_name`` is a name in ``DatasetCatalog``."""
        self._dataset_name = dataset_name
        self.images: dict[Any, dict[str, Any]] = {
            entry["image_id"]: entry for entry in DatasetCatalog.get(dataset_name)
        }

    def annotations_of(self, image: Mapping[str, Any], size: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the annotations of an image of which there is a prediction of ``size`` (height, width).

        Raises:
            InputError: the image is not in the data set, has no annotations, or has another size.
        """
        name = image.get("file_name", f"image {image['image_id']}")
        own = self.images.get(image["image_id"])
        if own is None:
            raise InputError(
                f"{name}: {self._dataset_name} has no image {image['image_id']!r}; evaluate with the loader of the "
                "same data set"
            )
        if "annotations" not in own:
            raise InputError(
                f"{name}: {self._dataset_name} has no annotations for it; only annotated images can be scored"
            )
        expected = own["height"], own["width"]
        if tuple(size) != expected:
            raise InputError(
                f"{name}: the prediction has {tuple(size)} pixels, the truth {expected} (height, width); "
                "predict in the size of the original image"
            )
        annotations: list[dict[str, Any]] = own["annotations"]
        return annotations

    def in_order(self, own: dict[Any, T], distributed: bool) -> list[T] | None:
        """Collect the results of all ranks by ``image_id``, in the order of the images. Returns None except on the
        main process."""
        found = own
        if distributed:
            comm.synchronize()
            gathered = comm.gather(own, dst=0)
            if not comm.is_main_process():
                return None
            # An image that two ranks saw counts once.
            found = {image_id: each for part in gathered for image_id, each in part.items()}
        ordered = [found[image_id] for image_id in self.images if image_id in found]
        if len(ordered) < len(self.images):
            logger.warning(f"{self._dataset_name}: {len(ordered)} of {len(self.images)} images were scored")
        return ordered
