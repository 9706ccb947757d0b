"""The public import path of the label map rule, which is implemented in :mod:`pffnet_d2.masks.compose`."""

from pffnet_d2.masks.compose import instances_to_label_map

__all__ = ["instances_to_label_map"]
