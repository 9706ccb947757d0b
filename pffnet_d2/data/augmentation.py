"""The augmentations that INPUT.PFFNET.AUGMENTATIONS lists by name, as Detectron2 augmentations.

Geometry: "flip", "hflip" (left-right only), "rotate90" and "scale" (as well as INPUT.CROP and INPUT.SQUARE).

Grey values, which leave the truth untouched:

- "gaussian_blur", "median_blur", "gaussian_noise" [P], "emboss", "sharpen", "channel_shuffle" [V2], "jitter" and
  "contrast" each change an image with probability ``CHANCE``. The papers prepared their variants in advance and state
  neither strengths nor numbers; the strengths here are ours and are given in each function's docstring.
- "brightness" (from the DSB2018 coursework; Detectron2's, grey values times 0.8 to 1.2), "stain" and "colour" change
  every image.
- "invert" changes an image with probability INPUT.PFFNET.INVERT_CHANCE.

"copy_paste" pastes objects of another crop (``data/copy_paste.py``), with probability INPUT.PFFNET.COPY_PASTE_CHANCE;
what the list names behind it changes the result as one image.
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
from skimage.color import hed_from_rgb, rgb_from_hed

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


class CopyPaste(T.Augmentation):
    """Tells the mapper when to paste, and with which probability; does nothing itself."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def get_transform(self, image: npt.NDArray[Any]) -> Transform:
        return NoOpTransform()


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


def stain(sigma: float, bgr: bool, augmentation: T.Augmentation, image: Picture) -> Change:
    """Haematoxylin, eosin and DAB, each on its own: its concentration times 1 - sigma to 1 + sigma, plus -sigma to
    sigma. A grey image stays as it is.

    The stains are separated by colour deconvolution (Ruifrok and Johnston, Analytical and Quantitative Cytology and
    Histology 23, 2001) and changed as by Tellez et al. (IEEE TMI 37, 2018; Medical Image Analysis 58, 2019: sigma 0.05
    is their "HED-light", 0.2 their "HED-strong"). A concentration of 1 is an optical density -ln((grey value + 1) /
    256) of about 0.7. Negative concentrations are kept, so that with sigma 0 every colour stays what it is.

    Args:
        sigma: 0..1.
        bgr: whether the channels are blue, green, red rather than red, green, blue.
    """
    factors = augmentation._rand_range(1 - sigma, 1 + sigma, 3)
    offsets = augmentation._rand_range(-sigma, sigma, 3)
    if _is_grey(image):
        return lambda picture: picture
    return partial(_restain, factors, offsets, bgr)


def _restain(factors: Floats, offsets: Floats, bgr: bool, picture: Picture) -> Picture:
    """Concentrations of the three stains times ``factors``, plus ``offsets``."""
    # Separating, changing and mixing again is one linear map of optical densities.
    mixed = np.empty((3, 4))
    mixed[:, :3] = (hed_from_rgb * factors @ rgb_from_hed).T
    mixed[:, 3] = offsets @ rgb_from_hed
    if bgr:
        mixed = mixed[::-1, [2, 1, 0, 3]]
    light = cv2.exp(cv2.transform(cv2.LUT(picture, DENSITY), -mixed))
    return np.asarray(cv2.addWeighted(light, 256, light, 0, -1, dtype=cv2.CV_8U), np.uint8)  # rounds and clips


def colour(augmentation: T.Augmentation, image: Picture) -> Change:
    """Hue turned by -15 to 15 degrees around the axis of greys, saturation times 0.75 to 1.33, and contrast times 0.8
    to 1.25 around the mean of the image. A grey image stays grey."""
    angle = np.deg2rad(augmentation._rand_range(-15, 15))
    saturation = np.exp(augmentation._rand_range(-0.288, 0.288))
    strength = np.exp(augmentation._rand_range(-0.223, 0.223))
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    grey = np.full((3, 3), 1 / 3)
    hue = np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * across
    matrix = np.eye(3) if _is_grey(image) else saturation * hue + grey

    def change(picture: Picture) -> Picture:
        mean = np.full((3, 1), (1 - strength) * picture.mean())
        return np.asarray(cv2.transform(picture, np.hstack([strength * matrix, mean])), np.uint8)  # clips to 0..255

    return change


def invert(augmentation: T.Augmentation, image: Picture) -> Change:
    """255 minus the grey values: fluorescence becomes dark objects on a light ground and the reverse. A colour image
    becomes grey, as it would look in fluorescence: stained nuclei are light on a dark ground."""

    def change(picture: Picture) -> Picture:
        if not _is_grey(image):
            picture = np.asarray(cv2.transform(picture, np.full((3, 3), 1 / 3)), np.uint8)
        return 255 - picture

    return change


def _is_grey(image: Picture) -> bool:
    return bool((image[..., 1:] == image[..., :1]).all())


def _filter(kernel: Floats, picture: Picture) -> Picture:
    """The picture plus its correlation with the kernel, mirrored at the border."""
    return _round(picture + cv2.filter2D(picture, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101))


def _round(values: npt.NDArray[Any]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # optical density of each grey value
CHANCE = 0.2  # of each change in GREY_VALUES: with all eight, one image in six stays as it is
GREY_VALUES: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (gaussian_blur, median_blur, gaussian_noise, emboss, sharpen, channel_shuffle, jitter, contrast)
}
# What each name stands for, given the section INPUT of a config.
AUGMENTATIONS: dict[str, Callable[[Any], list[T.Augmentation]]] = {
    "flip": lambda _: [
        T.RandomFlip(0.5, horizontal=True, vertical=False),
        T.RandomFlip(0.5, horizontal=False, vertical=True),
    ],
    "rotate90": lambda _: [RandomRotate90()],
    "scale": lambda given: [RandomScale(*given.PFFNET.SCALE_RANGE)],
    "hflip": lambda _: [T.RandomFlip(0.5, horizontal=True, vertical=False)],
    "brightness": lambda _: [T.RandomBrightness(0.8, 1.2)],
    **{name: partial(lambda draw, _: [GreyValues(draw, CHANCE)], draw) for name, draw in GREY_VALUES.items()},
    "stain": lambda given: [GreyValues(partial(stain, given.PFFNET.STAIN_SIGMA, given.FORMAT == "BGR"), 1.0)],
    "colour": lambda _: [GreyValues(colour, 1.0)],
    "invert": lambda given: [GreyValues(invert, given.PFFNET.INVERT_CHANCE)],
    "copy_paste": lambda given: [CopyPaste(given.PFFNET.COPY_PASTE_CHANCE)],
}
GEOMETRY = ("flip", "hflip", "rotate90")  # "scale" always comes first


def build_augmentations(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """What happens to an image, in order: crop (INPUT.CROP, training), resize (INPUT.MIN_SIZE_TRAIN / _TEST; 0 leaves
    the size) or instead of both INPUT.SQUARE, then INPUT.PFFNET.AUGMENTATIONS (training); but "scale" comes before the
    crop, which so keeps the size that the network is to see. INPUT.RANDOM_FLIP is not read: "flip" stands for it.

    Raises:
        InputError: an unknown name, "copy_paste" twice, or before one that moves objects.
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
    names = list(cfg.INPUT.PFFNET.AUGMENTATIONS)
    for place, name in enumerate(names):
        if name not in AUGMENTATIONS:
            raise InputError(
                f"INPUT.PFFNET.AUGMENTATIONS: unknown augmentation {name!r}; choose from {', '.join(AUGMENTATIONS)}"
            )
        if "copy_paste" in names[:place] and name in (*GEOMETRY, "copy_paste"):
            raise InputError(
                f"INPUT.PFFNET.AUGMENTATIONS: {name} follows copy_paste; list copy_paste once, after "
                f"{', '.join(GEOMETRY)}"
            )
        if name == "scale":
            chain = [*AUGMENTATIONS[name](cfg.INPUT), *chain]
        else:
            chain.extend(AUGMENTATIONS[name](cfg.INPUT))
    return chain
