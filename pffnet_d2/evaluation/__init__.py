"""Metrics of segmentations on label maps, and Detectron2 evaluators that use them."""
