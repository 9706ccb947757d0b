"""Resizes images at prediction to the square that a network was trained on (INPUT.SQUARE), for data sets and models."""

from __future__ import annotations

from detectron2.data import transforms as T


def resize_to_square(side: int, *, stretch: bool) -> T.Augmentation:
    """Detectron2's bilinear resize of an (H, W, C) image.

    Args:
        side: in pixels, above 0.
        stretch: make both sides ``side`` pixels long. If False, make the longer side that long and keep the aspect
            ratio.
    """
    if stretch:
        return T.Resize((side, side))
    return T.ResizeShortestEdge(side, side, "choice")  # the limit on the longer side decides
