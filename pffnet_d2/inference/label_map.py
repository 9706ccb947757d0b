"""The name under which scripts know the rule that makes label maps: :mod:`pffnet_d2.masks.compose`."""

from pffnet_d2.masks.compose import instances_to_label_map

__all__ = ["instances_to_label_map"]
