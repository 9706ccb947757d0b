"""Shared by the evaluators: the truth of an image, and one result per image from any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, TypeVar

from detectron2.structures import Instances
from detectron2.utils import comm

from pffnet_d2.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def of_all_ranks(own: dict[Any, T], truth: Iterable[Any], dataset_name: str, distributed: bool) -> list[T] | None:
    """Collect the results of all ranks for the images of ``truth``, in that order. Returns None except on the main
    process."""
    found = own
    if distributed:
        comm.synchronize()
        gathered = comm.gather(own, dst=0)
        if not comm.is_main_process():
            return None
        # An image that two ranks saw counts once.
        found = {image_id: each for part in gathered for image_id, each in part.items()}
    images = list(truth)
    ordered = [found[image_id] for image_id in images if image_id in found]
    if len(ordered) < len(images):
        logger.warning(f"{dataset_name}: {len(ordered)} of {len(images)} images were scored")
    return ordered


def truth_of(
    image: dict[str, Any], instances: Instances, truth: dict[Any, dict[str, Any]], dataset_name: str
) -> list[dict[str, Any]]:
    """Return the annotations of the image that instances were found in.

    Raises:
        InputError: the image is not in the data set, has no annotations, or has another size.
    """
    name = image.get("file_name", f"image {image['image_id']}")
    own = truth.get(image["image_id"])
    if own is None:
        raise InputError(
            f"{name}: {dataset_name} has no image {image['image_id']!r}; evaluate with the loader of the same data set"
        )
    if "annotations" not in own:
        raise InputError(f"{name}: {dataset_name} has no annotations for it; only annotated images can be scored")
    size = own["height"], own["width"]
    if tuple(instances.image_size) != size:
        raise InputError(
            f"{name}: the prediction has {tuple(instances.image_size)} pixels, the truth {size} "
            "(height, width); predict in the size of the original image"
        )
    annotations: list[dict[str, Any]] = own["annotations"]
    return annotations
