"""What prediction needs to know of a model besides its network, the same for every form of the model's files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pffnet_d2.config.values import IMAGES
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import BY_DEPTH
from pffnet_d2.masks.compose import LabelMapRule

TABLE = "pffnet_d2"  # the name, in the metadata of an exported file, of a table with the facts of its model
FORMAT = 1  # of that table
_SQUARE = 1.01  # at most this ratio of the sides of a pixel; scanners state sides that differ by less
CAPS = ("MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST", "TEST.DETECTIONS_PER_IMAGE")


@dataclass(frozen=True)
class ModelFacts:
    """The keys of a config that concern images and label maps, not the network.

    Attributes:
        rule: how detections become a label map (MODEL.PFFNET.LABEL_MAP).
        normalisation: MODEL.PFFNET.NORMALISATION, a key of ``BY_DEPTH``.
        images: MODEL.PFFNET.IMAGES; "fluorescence" and "nuclei" warn about other images.
        diameter: mean diameter of the objects in training, pixels; 0: unknown.
        stride: images are padded to multiples of it.
        caps_area: MODEL.PFFNET.CAPS_AREA, pixels.
        caps: the caps on proposals and detections (``CAPS``) of an image of that area.
        min_size, square: INPUT.MIN_SIZE_TEST and INPUT.SQUARE.TEST, pixels; 0: images are not resized.
        pixel_size: side of a pixel in training, micrometres; 0: unknown.
    """

    rule: LabelMapRule
    normalisation: str
    images: str
    diameter: float
    stride: int
    caps_area: int
    caps: Mapping[str, int]
    min_size: int = 0
    square: int = 0
    pixel_size: float = 0.0

    @classmethod
    def from_config(cls, cfg: Any, stride: int) -> ModelFacts:
        return cls(
            rule=LabelMapRule.from_config(cfg),
            normalisation=cfg.MODEL.PFFNET.NORMALISATION,
            images=cfg.MODEL.PFFNET.IMAGES,
            diameter=float(cfg.MODEL.PFFNET.DIAMETER),
            stride=stride,
            caps_area=cfg.MODEL.PFFNET.CAPS_AREA,
            caps=dict(
                zip(
                    CAPS,
                    (
                        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST,
                        cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
                        cfg.TEST.DETECTIONS_PER_IMAGE,
                    ),
                    strict=True,
                )
            ),
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            square=cfg.INPUT.SQUARE.TEST,
            pixel_size=float(cfg.MODEL.PFFNET.PIXEL_SIZE),
        )

    def cap_factor(self, height: int, width: int) -> float:
        """The factor by which to multiply the caps for an image of this size in the network; at least 1."""
        return max(height * width / self.caps_area, 1.0) if self.caps_area > 0 else 1.0

    def scale_for(self, diameter: float | str | None) -> float:
        """The factor by which to enlarge images so that objects have the diameter that the model was trained on; 1 for
        "auto", which each image decides.

        Raises:
            InputError: the config does not state that diameter, or already resizes images.
        """
        if diameter is None:
            return 1.0
        given = diameter if isinstance(diameter, str) else f"{diameter:g}"
        if self.diameter <= 0:
            raise InputError(
                f"diameter {given}: the config does not state the diameter of the objects in training; add it, as "
                "in --opts MODEL.PFFNET.DIAMETER 24.0"
            )
        self._check_not_resized(f"diameter {given}")
        return 1.0 if isinstance(diameter, str) else self.diameter / diameter

    def check_matching(self) -> None:
        """
        Raises:
            InputError: images cannot be matched to the pixel size of training: the config does not state it, or already
                resizes images.
        """
        if self.pixel_size <= 0:
            raise InputError(
                "match-pixel-size: the config does not state the size of a pixel in training; add it in micrometres, "
                "as in --opts MODEL.PFFNET.PIXEL_SIZE 0.5"
            )
        self._check_not_resized("match-pixel-size")

    def scale_for_pixels(self, size: tuple[float, float] | None) -> float:
        """The factor by which to enlarge an image so that its pixels have the size of those in training.

        Args:
            size: height and width of its pixels in micrometres; None if they are unknown.

        Raises:
            InputError: they are unknown, or differ by more than ``_SQUARE``.
        """
        if size is None:
            raise InputError(
                "does not state the size of its pixels, which match-pixel-size needs; give it in micrometres, as in "
                "--pixel-size 0.5"
            )
        if max(size) > _SQUARE * min(size):
            raise InputError(
                f"its pixels of {size[0]:g} x {size[1]:g} um (height x width) are not square; give one size "
                "(--pixel-size), or leave --match-pixel-size out"
            )
        # Files state sizes as ratios of whole numbers, so that equal sizes differ in their last digits.
        return round(math.sqrt(size[0] * size[1]) / self.pixel_size, 6)

    def _check_not_resized(self, option: str) -> None:
        for key, side in {"MIN_SIZE_TEST": self.min_size, "SQUARE.TEST": self.square}.items():
            if side:
                raise InputError(f"{option}: INPUT.{key} resizes images already; set it to 0")

    def info(self) -> dict[str, Any]:
        """The JSON form; :meth:`from_info` reads it back."""
        return {**asdict(self), "rule": self.rule.keys(), "format": FORMAT}

    @classmethod
    def from_info(cls, info: Any) -> ModelFacts:
        """
        Raises:
            InputError: not what ``info`` made, or made by a later release.
        """
        try:
            if info["format"] > FORMAT:
                raise InputError("was written by a later release of pffnet_d2; install that one")
            info = {"pixel_size": 0.0, **info}  # which files of earlier releases lack
            values = {name: info[name] for name in cls.__dataclass_fields__}
            facts = cls(**{**values, "rule": LabelMapRule.from_keys(values["rule"])})
            _ = IMAGES.index(facts.images), BY_DEPTH[facts.normalisation]
            _ = facts.cap_factor(1, 1), {key: int(facts.caps[key]) for key in CAPS}
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("the table of pffnet_d2 in it is damaged; export the model again") from error
        return facts
