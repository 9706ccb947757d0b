"""ObjectGuided, [OG]: Yi et al., "Object-guided instance segmentation with auxiliary feature refinement for biological
images", IEEE TMI 40, 2021.

Where its paper and its released code (yijingru/ObjGuided-Instance-Segmentation, 7d6ec9d) differ, the code is followed,
and a key of MODEL.OBJECT_GUIDED gives the paper's form; docs/object_guided.md lists them.

Pixel indices: positions inside this package are those of the released code, pixel (or cell) i of a map at i. Boxes of
Detectron2 are continuous, that pixel between i and i + 1, so its centre is at index + 1/2. Cell i of a map of stride s
lies at pixel index s * i.
"""

from . import backbone, meta_arch  # noqa: F401  (imported for their registration)
