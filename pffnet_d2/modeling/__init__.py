"""The networks. Importing this package registers them with Detectron2."""

from . import (  # noqa: F401  (imported for their registration)
    backbone,
    backbone_lite,
    box_head,
    box_refinement,
    fcn8s,
    fusion_head,
    mask_head,
    mask_quality_head,
    meta_arch,
    object_guided,
    roi_heads,
    rpn,
    semantic_head,
)
