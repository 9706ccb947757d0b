"""The augmentations the papers name, as Detectron2 augmentations, chosen by name in INPUT.PFFNET.AUGMENTATIONS.

Geometry: "flip", "hflip" (left and right only), "rotate90", "scale" (and INPUT.CROP, INPUT.SQUARE). Grey values, the
truth untouched: "gaussian_blur", "median_blur", "gaussian_noise" [P], "emboss", "sharpen", "channel_shuffle" [V2],
"jitter", "contrast", and "brightness" (the DSB2018 coursework; Detectron2's: every image, grey values times 0.8 to
1.2). The papers made their variants beforehand and tell neither strengths nor how many; here each other change of grey
values happens to an image with probability ``CHANCE``, and its docstring says how strongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.square import resize_to_square


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


class RandomScale(T.Augmentation):
    """Enlarges or shrinks both sides by a factor between ``low`` and ``high``, halving as likely as doubling."""

    def __init__(self, low: float = 0.5, high: float = 2.0) -> None:
        super().__init__()
        self.low, self.high = low, high

    def get_transform(self, image: npt.NDArray[Any]) -> Transform:
        factor = float(np.exp(self._rand_range(np.log(self.low), np.log(self.high))))
        height, width = image.shape[:2]
        return T.ResizeTransform(height, width, max(round(height * factor), 1), max(round(width * factor), 1))


class ViewTransform(T.ExtentTransform):
    """Upstream's, which reads label maps by linear interpolation (it takes its NEAREST, 0, for no choice), and whose
    arrays cannot be written to."""

    def apply_image(self, img: npt.NDArray[Any], interp: int | None = None) -> npt.NDArray[Any]:
        return np.array(super().apply_image(img, interp))

    def apply_segmentation(self, segmentation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(H, W) or (H, W, 4) uint8."""
        nearest = T.ExtentTransform(self.src_rect, self.output_size, interp=Image.Resampling.NEAREST, fill=self.fill)
        return np.array(nearest.apply_image(segmentation))


class RandomSquare(T.Augmentation):
    """A square view of the image, brought to ``size`` x ``size`` pixels; what lies outside the image is black and no
    object's.

    Its side is one of ``scales`` times the image's longer side. Its centre keeps 128 pixels away from the borders, or
    64, 32 ... where the image is smaller than twice that (ObjectGuided's released code, which confuses width and height
    there).
    """

    def __init__(self, size: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.size, self.scales = size, list(scales)

    def get_transform(self, image: npt.NDArray[Any]) -> ViewTransform:
        height, width = image.shape[:2]
        half = max(height, width) * self.scales[int(self._rand_range(len(self.scales)))] / 2
        x, y = (self._centre(length) for length in (width, height))
        return ViewTransform((x - half, y - half, x + half, y + half), (self.size, self.size))

    def _centre(self, length: int) -> int:
        border = 128
        while length - border <= border:
            border //= 2
        return int(self._rand_range(border, length - border))


Picture = npt.NDArray[np.uint8]  # (H, W, 3)
Floats = npt.NDArray[np.float32]
Change = Callable[[Picture], Picture]
Draw = Callable[[T.Augmentation, Picture], Change]


class GreyValues(T.Augmentation):
    """Changes the image and leaves masks, boxes and semantic map as they are.

    Args:
        draw: called with this augmentation, whose ``_rand_range`` is the source of chance, and the image; returns what
            to do to it, always the same for the same image.
        chance: probability that it happens.
    """

    def __init__(self, draw: Draw, chance: float) -> None:
        super().__init__()
        self.draw, self.chance = draw, chance

    def get_transform(self, image: Picture) -> Transform:
        if self._rand_range() >= self.chance:
            return NoOpTransform()
        change = self.draw(self, image)
        return T.ColorTransform(lambda picture: change(np.ascontiguousarray(picture)))  # a flipped view is none for cv2


def gaussian_blur(augmentation: T.Augmentation, _: Picture) -> Change:
    """Standard deviation 0.5 to 1.5 pixels."""
    deviation = float(augmentation._rand_range(0.5, 1.5))
    return lambda picture: _round(cv2.GaussianBlur(picture, (0, 0), deviation))


def median_blur(augmentation: T.Augmentation, _: Picture) -> Change:
    """Of 3 x 3 or 5 x 5 pixels."""
    side = 3 + 2 * int(augmentation._rand_range(2))
    return lambda picture: _round(cv2.medianBlur(picture, side))


def gaussian_noise(augmentation: T.Augmentation, image: Picture) -> Change:
    """Standard deviation 2 to 10 grey values, drawn for every pixel, the same in all channels of a grey image."""
    deviation, seed = augmentation._rand_range(2, 10), int(augmentation._rand_range(1 << 31))
    shape = (*image.shape[:2], 1 if _is_grey(image) else image.shape[2])

    def change(picture: Picture) -> Picture:
        noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return _round(picture + np.float32(deviation) * noise)

    return change


def emboss(augmentation: T.Augmentation, _: Picture) -> Change:
    """Slopes towards one corner brightened, towards the other darkened, by 0.2 to 0.7 of the difference."""
    strength = np.float32(augmentation._rand_range(0.2, 0.7))
    slope = np.array([[-1, -1, 0], [-1, 0, 1], [0, 1, 1]], np.float32)
    return partial(_filter, strength * slope)


def sharpen(augmentation: T.Augmentation, _: Picture) -> Change:
    """0.1 to 0.4 of the difference to the 8 neighbours added."""
    strength = np.float32(augmentation._rand_range(0.1, 0.4))
    laplace = np.full((3, 3), -1, np.float32)
    laplace[1, 1] = 8
    return partial(_filter, strength * laplace)


def channel_shuffle(augmentation: T.Augmentation, image: Picture) -> Change:
    """The channels in one of the other orders."""
    orders = [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    order = orders[int(augmentation._rand_range(len(orders)))]
    return lambda picture: np.ascontiguousarray(picture[..., order])


def jitter(augmentation: T.Augmentation, image: Picture) -> Change:
    """Stain and brightness: the optical density of each channel, -log((grey value + 1) / 256), times 0.8 to 1.25 (how
    much stain) plus -0.1 to 0.1 (how much light). A grey image stays grey."""
    channels = 1 if _is_grey(image) else image.shape[2]
    stain = np.exp(augmentation._rand_range(-0.223, 0.223, channels))
    light = augmentation._rand_range(-0.1, 0.1, channels)
    density = -np.log((np.arange(256) + 1) / 256)
    table = _round(256 * np.exp(-density[:, None] * stain - light) - 1)
    return lambda picture: table[picture, np.arange(picture.shape[2]) % channels]


def contrast(augmentation: T.Augmentation, image: Picture) -> Change:
    """Of light on a dark ground: 255 (v / 255)^gamma gain, gamma 0.6 to 1.6 and gain 0.4 to 1.2, over 0 to 20 grey
    values of background. The same in all channels."""
    gamma, gain = np.exp(augmentation._rand_range(-0.51, 0.47)), augmentation._rand_range(0.4, 1.2)
    background = augmentation._rand_range(0, 20)
    table = _round(background + gain * 255 * (np.arange(256) / 255) ** gamma)
    return lambda picture: table[picture]


def _is_grey(image: Picture) -> bool:
    return bool((image[..., 1:] == image[..., :1]).all())


def _filter(kernel: Floats, picture: Picture) -> Picture:
    """The picture plus its correlation with the kernel, mirrored at the border."""
    return _round(picture + cv2.filter2D(picture, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101))


def _round(values: npt.NDArray[Any]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


CHANCE = 0.2  # of each change of grey values: with all eight, one image in six stays as it is
GREY_VALUES: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (gaussian_blur, median_blur, gaussian_noise, emboss, sharpen, channel_shuffle, jitter, contrast)
}
AUGMENTATIONS: dict[str, Callable[[], list[T.Augmentation]]] = {
    "flip": lambda: [
        T.RandomFlip(0.5, horizontal=True, vertical=False),
        T.RandomFlip(0.5, horizontal=False, vertical=True),
    ],
    "rotate90": lambda: [RandomRotate90()],
    "scale": lambda: [RandomScale()],
    "hflip": lambda: [T.RandomFlip(0.5, horizontal=True, vertical=False)],
    "brightness": lambda: [T.RandomBrightness(0.8, 1.2)],
    **{name: partial(lambda draw: [GreyValues(draw, CHANCE)], draw) for name, draw in GREY_VALUES.items()},
}


def build_augmentations(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """What happens to an image, in order: crop (INPUT.CROP, training), resize (INPUT.MIN_SIZE_TRAIN / _TEST; 0 leaves
    the size) or instead of both INPUT.SQUARE, then INPUT.PFFNET.AUGMENTATIONS (training); but "scale" comes before the
    crop, which so keeps the size that the network is to see. INPUT.RANDOM_FLIP is not read: "flip" stands for it.

    Raises:
        InputError: an unknown name.
    """
    square = cfg.INPUT.SQUARE
    if not is_train:
        if square.TEST:
            return [resize_to_square(square.TEST, stretch=square.STRETCH)]
        shortest = cfg.INPUT.MIN_SIZE_TEST
        return [T.ResizeShortestEdge(shortest, cfg.INPUT.MAX_SIZE_TEST, "choice")] if shortest else []
    chain: list[T.Augmentation] = []
    if square.TRAIN:
        chain.append(RandomSquare(square.TRAIN, square.SCALES))
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
        if name == "scale":
            chain = [*AUGMENTATIONS[name](), *chain]
        else:
            chain.extend(AUGMENTATIONS[name]())
    return chain
