"""The augmentations the papers name, as Detectron2 augmentations, chosen by name in INPUT.PFFNET.AUGMENTATIONS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

from pffnet_d2.errors import InputError


class Rotate90Transform(Transform):
    """Turns by ``quarters`` times 90 degrees, counter-clockwise as one looks at the image; exact, nothing is
    interpolated.

    Args:
        quarters: 0..3.
        height, width: of the image before, in pixels.
    """

    def __init__(self, quarters: int, height: int, width: int) -> None:
        super().__init__()
        self.quarters, self.height, self.width = quarters % 4, height, width

    def apply_image(self, img: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(H, W) or (H, W, C) of any dtype."""
        return np.rot90(img, self.quarters)

    def apply_segmentation(self, segmentation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.rot90(segmentation, self.quarters)

    def apply_coords(self, coords: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(N, 2) points x, y in pixels, the centre of the first pixel at (0.5, 0.5)."""
        x, y = coords[:, 0], coords[:, 1]
        turned = ((x, y), (y, self.width - x), (self.width - x, self.height - y), (self.height - y, x))[self.quarters]
        return np.stack(turned, axis=1)

    def inverse(self) -> Rotate90Transform:
        turned = self.quarters % 2 == 1
        height, width = (self.width, self.height) if turned else (self.height, self.width)
        return Rotate90Transform(-self.quarters, height, width)


class RandomRotate90(T.Augmentation):
    """A rotation by 0, 90, 180 or 270 degrees, each as likely."""

    def get_transform(self, image: npt.NDArray[Any]) -> Rotate90Transform:
        return Rotate90Transform(int(self._rand_range(4)), image.shape[0], image.shape[1])


AUGMENTATIONS: dict[str, Callable[[], list[T.Augmentation]]] = {
    "flip": lambda: [
        T.RandomFlip(0.5, horizontal=True, vertical=False),
        T.RandomFlip(0.5, horizontal=False, vertical=True),
    ],
    "rotate90": lambda: [RandomRotate90()],
}


def build_augmentations(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """What happens to an image, in order: crop (INPUT.CROP, training), resize (INPUT.MIN_SIZE_TRAIN / _TEST; 0 leaves
    the size), then INPUT.PFFNET.AUGMENTATIONS (training). INPUT.RANDOM_FLIP is not read: "flip" stands for it.

    Raises:
        InputError: an unknown name.
    """
    if not is_train:
        shortest = cfg.INPUT.MIN_SIZE_TEST
        return [T.ResizeShortestEdge(shortest, cfg.INPUT.MAX_SIZE_TEST, "choice")] if shortest else []
    chain: list[T.Augmentation] = []
    if cfg.INPUT.CROP.ENABLED:
        chain.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    if any(cfg.INPUT.MIN_SIZE_TRAIN):
        chain.append(
            T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
        )
    for name in cfg.INPUT.PFFNET.AUGMENTATIONS:
        if name not in AUGMENTATIONS:
            raise InputError(
                f"INPUT.PFFNET.AUGMENTATIONS: unknown augmentation {name!r}; choose from {', '.join(AUGMENTATIONS)}"
            )
        chain.extend(AUGMENTATIONS[name]())
    return chain
