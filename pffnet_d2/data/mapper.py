"""From a data set's dict to the input of the models: Detectron2's DatasetMapper for many small objects.

Detectron2's own mapper decodes, transforms and stores one full-size mask per object. Here the objects of an image pass
through the transforms as one label map, or as a few where they overlap, and become masks after the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from scipy.ndimage import find_objects

from pffnet_d2.data.augmentation import CopyPaste, build_augmentations
from pffnet_d2.data.copy_paste import Crop, paste_objects
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import normalisation_of, to_rgb8
from pffnet_d2.imaging.read import read_image
from pffnet_d2.masks.coco import paint_layers

Masks = npt.NDArray[np.bool_]


class PFFNetDatasetMapper:
    """Callable that reads an image and its truth and applies the same transforms to both.

    Returns the given dict without ``annotations`` and ``sem_seg_file_name`` and with

    - image: (3, H, W) uint8 tensor in ``image_format``;
    - sem_seg (training): (H, W) int64, 0 background, 1 object, 255 ignored;
    - instances (training): gt_boxes (the extents of the transformed masks, pixels), gt_classes and gt_masks (BitMasks,
      (N, H, W)). Objects that have no pixel left are dropped; an image without objects has N = 0.

    ``height`` and ``width`` remain those of the file. In training, a dict without ``annotations`` gets no instances
    and, without a semantic file, no sem_seg.
    """

    @configurable
    def __init__(
        self, is_train: bool = True, *, augmentations: Sequence[T.Augmentation], image_format: str = "BGR"
    ) -> None:
        """
        Args:
            is_train: whether to return the truth.
            augmentations: applied in this order to image, masks and semantic map together. Those after a ``CopyPaste``
                are applied to the image alone.
            image_format: "BGR" or "RGB".
        """
        if image_format not in ("BGR", "RGB"):
            raise InputError(f"INPUT.FORMAT {image_format!r} is not supported; use BGR or RGB")
        self.is_train = is_train
        chain = list(augmentations)
        place = next((i for i, augmentation in enumerate(chain) if isinstance(augmentation, CopyPaste)), len(chain))
        self.augmentations = T.AugmentationList(chain[:place])
        self.copy_paste = chain[place] if place < len(chain) else None
        self.on_pasted = T.AugmentationList(chain[place + 1 :])
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any], other: dict[str, Any] | None = None) -> dict[str, Any]:
        """
        Args:
            dataset_dict: Detectron2's, of an image.
            other: of the image whose objects "copy_paste" pastes onto it; None: another crop of the same image.

        Raises:
            InputError: a file or an annotation cannot be read, or is of another size than the dict says.
        """
        out = {key: value for key, value in dataset_dict.items() if key not in ("annotations", "sem_seg_file_name")}
        labelled = self.is_train and "annotations" in dataset_dict
        crop, out["height"], out["width"] = self._crop(dataset_dict)
        # The loader seeds NumPy's global generator, from which Detectron2's augmentations draw too.
        if self.copy_paste and labelled and np.random.random() < self.copy_paste.chance:  # noqa: NPY002
            crop = paste_objects(crop, self._crop(other or dataset_dict)[0])
        final = T.AugInput(crop.image)
        self.on_pasted(final)
        out["image"] = torch.from_numpy(np.ascontiguousarray(final.image.transpose(2, 0, 1)))
        if labelled:
            instances = Instances(crop.masks.shape[1:])
            instances.gt_boxes = Boxes(torch.from_numpy(crop.boxes))
            instances.gt_classes = torch.from_numpy(crop.classes)
            instances.gt_masks = BitMasks(torch.from_numpy(crop.masks))
            out["instances"] = instances
        if crop.semantic is not None:
            out["sem_seg"] = torch.from_numpy(crop.semantic.astype(np.int64))
        elif labelled:
            out["sem_seg"] = torch.from_numpy(crop.masks.any(axis=0).astype(np.int64))
        return out

    def _crop(self, dataset_dict: dict[str, Any]) -> tuple[Crop, int, int]:
        """What becomes of an image and its truth up to "copy_paste", and the height and width of the file. No objects
        without ``annotations``, or in prediction."""
        image = read_image(dataset_dict["file_name"])
        height, width = image.shape[:2]
        _check_size(dataset_dict["file_name"], (height, width), dataset_dict)
        rgb = to_rgb8(image, normalisation_of(image))
        semantic_file = dataset_dict.get("sem_seg_file_name") if self.is_train else None
        semantic = None
        if semantic_file:
            semantic = read_image(semantic_file)
            _check_size(semantic_file, semantic.shape, dataset_dict)
        given = T.AugInput(rgb if self.image_format == "RGB" else rgb[:, :, ::-1], sem_seg=semantic)
        transforms = self.augmentations(given)
        annotations = []
        if self.is_train:  # crowds are no objects, as in Detectron2
            annotations = [a for a in dataset_dict.get("annotations", ()) if a.get("iscrowd", 0) == 0]
        if annotations:
            masks, boxes, kept = _transform_masks(annotations, height, width, transforms, dataset_dict["file_name"])
        else:
            masks, boxes, kept = np.zeros((0, *given.image.shape[:2]), np.bool_), np.zeros((0, 4), np.float32), []
        classes = np.array([annotations[i]["category_id"] for i in kept], np.int64)
        return Crop(given.image, given.sem_seg, masks, boxes, classes), height, width


def _transform_masks(
    annotations: list[dict[str, Any]], height: int, width: int, transforms: Any, file_name: str
) -> tuple[Masks, npt.NDArray[np.float32], list[int]]:
    """After the transforms: masks (N, h, w), their extents (N, 4) x0, y0, x1, y1, and which annotations they are."""
    try:
        layers = paint_layers(annotations, height, width)
    except InputError as error:
        raise InputError(f"{file_name}: {error}") from error
    found = []
    for layer in layers:
        # As four bytes per pixel: all transforms move 8-bit channels by nearest neighbour, on the grid of the image.
        turned = transforms.apply_segmentation(layer.view(np.uint8).reshape(height, width, 4))
        turned = np.ascontiguousarray(turned).view(np.int32)[:, :, 0]
        found += [(i, window, turned) for i, window in enumerate(find_objects(turned)) if window is not None]
    found.sort(key=lambda each: each[0])
    masks = np.zeros((len(found), *turned.shape), np.bool_)
    for mask, (i, window, layer) in zip(masks, found, strict=True):
        mask[window] = layer[window] == i + 1
    return masks, _boxes([window for _, window, _ in found]), [i for i, _, _ in found]


def _boxes(windows: list[tuple[slice, slice]]) -> npt.NDArray[np.float32]:
    extents = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in windows]
    return np.array(extents, np.float32).reshape(-1, 4)


def _check_size(file_name: str, shape: tuple[int, ...], dataset_dict: dict[str, Any]) -> None:
    wanted = (dataset_dict.get("height", shape[0]), dataset_dict.get("width", shape[1]))
    if tuple(shape[:2]) != wanted or len(shape) != 2:
        raise InputError(
            f"{file_name}: {shape[0]} x {shape[1]} pixels where the data set says {wanted[0]} x {wanted[1]}; "
            "prepare it again"
        )
