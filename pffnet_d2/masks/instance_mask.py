"""The mask of one object in a window of its image. Label maps, annotations and outlines are made from these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class InstanceMask(NamedTuple):
    """The mask of one object in a window of its image.

    Attributes:
        y0, x0: row and column of the window's upper left pixel.
        mask: (h, w) bool, rows y0..y0+h and columns x0..x0+w of the image. Pixels outside the window are unset. The
            array is empty if the mask has no pixels.
    """

    y0: int
    x0: int
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], y0: int = 0, x0: int = 0) -> InstanceMask:
        """Cut the set pixels out of a larger mask (h, w) at (y0, x0), in the smallest window that contains them.

        >>> InstanceMask.of(np.array([[0, 0, 0], [0, 1, 1]], dtype=bool))
        InstanceMask(y0=1, x0=1, mask=array([[ True,  True]]))
        """
        rows = np.flatnonzero(mask.any(axis=1))
        if not len(rows):
            return cls(y0, x0, mask[:0, :0])
        band = mask[rows[0] : rows[-1] + 1]
        columns = np.flatnonzero(band.any(axis=0))
        return cls(y0 + int(rows[0]), x0 + int(columns[0]), band[:, columns[0] : columns[-1] + 1])

    @property
    def area(self) -> int:
        """The number of set pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the window: ``image[self.window]`` has the shape of ``mask``."""
        height, width = self.mask.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)

    def inside(self, height: int, width: int) -> bool:
        """Return whether the window lies inside an image of that size."""
        rows, columns = self.window
        return rows.start >= 0 and columns.start >= 0 and rows.stop <= height and columns.stop <= width


class InstanceMasks:
    """``pred_masks`` for Detectron2's ``Instances`` without an N x H x W stack. The masks are exact and on the CPU."""

    def __init__(self, masks: Iterable[InstanceMask], image_size: tuple[int, int]) -> None:
        self.masks, self.image_size = list(masks), image_size

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, item: Any) -> InstanceMasks:
        """Select masks by a slice, by (n,) indices or by (N,) bools (arrays or tensors on any device)."""
        if hasattr(item, "cpu"):
            item = item.cpu().numpy()
        chosen = np.arange(len(self))[item]
        return InstanceMasks([self.masks[index] for index in chosen.tolist()], self.image_size)

    @property
    def tensor(self) -> Any:
        """The masks as a (N, H, W) bool ``torch.Tensor``."""
        import torch

        return torch.from_numpy(stack(self.masks, self.image_size))


def stack(masks: Sequence[InstanceMask], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Stack masks as (N, H, W) bool, each in the full image."""
    full = np.zeros((len(masks), *image_size), dtype=bool)
    for image, each in zip(full, masks, strict=True):
        image[each.window] = each.mask
    return full
