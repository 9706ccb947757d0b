"""Truth in the form of one mask per object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy

from pffnet_d2.data.readers.source import SourceFile
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import decode_image
from pffnet_d2.masks.coco import masks_to_label_map
from pffnet_d2.masks.instance_mask import InstanceMask


def one_mask_per_object(files: Sequence[SourceFile], threshold: int, fill_holes: bool) -> npt.NDArray[np.int32]:
    """The label map of files that hold one object each: the pixels above ``threshold`` of 255, in masks of 0 and 1
    those of 1. Where objects overlap, the smaller one is on top.

    Raises:
        InputError: a file is not an 8-bit mask, has another size than the others, or is empty.
    """
    masks: list[InstanceMask] = []
    size: tuple[int, ...] = ()
    for file in files:
        mask = decode_image(file.read(), str(file), palette=False)
        if mask.dtype != np.uint8:
            raise InputError(f"{file}: holds {mask.dtype} values, not one object in 8 bit; save it as a mask of 0, 255")
        if mask.ndim == 3:
            mask = mask[..., : 3 if mask.shape[2] >= 3 else 1].max(axis=2)  # without alpha
        size = size or mask.shape
        if mask.shape != size:
            raise InputError(
                f"{file}: {mask.shape[0]} x {mask.shape[1]} pixels where the other masks of the image have "
                f"{size[0]} x {size[1]}; fetch it again"
            )
        masks.append(instance_mask(mask > (threshold if mask.max(initial=0) > 1 else 0), str(file), fill_holes))
    return masks_to_label_map(masks, size[0], size[1])


def instance_mask(mask: npt.NDArray[np.bool_], name: str, fill_holes: bool) -> InstanceMask:
    """The object of an (H, W) mask in the window of its extent. Raises InputError naming ``name`` where there is
    none."""
    found = InstanceMask.of(mask)
    if not found.mask.size:
        raise InputError(f"{name}: holds no object; remove it or fetch it again")
    return found._replace(mask=scipy.ndimage.binary_fill_holes(found.mask)) if fill_holes else found
