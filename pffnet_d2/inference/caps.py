"""Caps on the proposals and detections per image: they grow with the image area, and the user hears of those reached.

The caps of a config are meant for an image of MODEL.PFFNET.CAPS_AREA pixels, which is enough for the training images.
An image of nine times that area contains about nine times as many objects, so prediction multiplies the caps by the
ratio of the areas. Measured on nine fields of BBBC039 side by side (1560 x 2088 pixels, a PFFNet on ResNet-18, one
CPU core), where predicting the fields one by one finds 1,658 objects:

- caps not scaled: 500 objects;
- caps scaled: 1,624 objects (F1 0.980; the rest are cut by the borders of the fields) in 12 s;
- tiles of 1024 pixels: 1,616 objects (F1 0.978) in 17 s;
- tiles of 512 pixels: 1,619 objects (F1 0.975) in 30 s.

Scaled caps are therefore faster and more accurate than automatic tiling.
"""

from __future__ import annotations

from collections.abc import Sequence


def warning(reached: Sequence[str]) -> str:
    """One line that names the caps that were reached and says what to do; "" if no cap was reached."""
    if not reached:
        return ""
    doubled = [f"{key} {2 * int(value)}" for key, _, value in (cap.partition(" ") for cap in reached)]
    return (
        f"objects may be missing: {' and '.join(reached)} {'was' if len(reached) == 1 else 'were'} "
        f"reached; raise with --opts {' '.join(doubled)}"
    )
