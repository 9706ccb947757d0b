"""Two synthetic images to try the plugin on (File > Open Sample > PFFNet)."""

from __future__ import annotations

from typing import Any

from pffnet_d2.data.synthetic import synthetic_image

LayerData = tuple[Any, dict[str, Any], str]
"""Data, arguments and kind of a layer, as npe2 takes them."""

_SIDE = 384  # pixels


def fluorescence() -> list[LayerData]:
    """Bright nuclei on a dark background, (H, W) uint8."""
    image, _ = synthetic_image(4, 0, size=(_SIDE, _SIDE), style="fluorescence")
    return [(image[:, :, 1], {"name": "nuclei"}, "image")]


def histology() -> list[LayerData]:
    """Stained tissue, (H, W, 3) uint8 RGB, and labels to fine-tune on."""
    image, labels = synthetic_image(4, 1, size=(_SIDE, _SIDE), style="histology")
    return [(image, {"name": "tissue", "rgb": True}, "image"), (labels, {"name": "tissue labels"}, "labels")]
