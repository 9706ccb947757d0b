"""The square that a network was trained on (INPUT.SQUARE): at prediction, one resize for data sets and for models."""

from __future__ import annotations

from detectron2.data import transforms as T


def resize_to_square(side: int, *, stretch: bool) -> T.Augmentation:
    """Detectron2's bilinear resize of an (H, W, C) image.

    Args:
        side: in pixels, above 0.
        stretch: make both sides ``side`` pixels long. Without, only the longer one; the shape of the image is kept.
    """
    if stretch:
        return T.Resize((side, side))
    return T.ResizeShortestEdge(side, side, "choice")  # the limit on the longer side is the one that binds
