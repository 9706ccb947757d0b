"""ObjectGuided, [OG]: Yi et al., "Object-guided instance segmentation with auxiliary feature refinement for biological
images", IEEE TMI 40, 2021.

Where the paper and its released code (yijingru/ObjGuided-Instance-Segmentation, 7d6ec9d) differ, this package follows
the code, and a key of MODEL.OBJECT_GUIDED selects the paper's form. docs/object_guided.md lists these keys.

Positions inside this package are pixel indices, as in the released code: pixel (or cell) i of a map is at i.
Detectron2's boxes are continuous: there pixel i extends from i to i + 1, and its centre is at i + 1/2. Cell i of a map
of stride s lies at pixel index s * i.
"""

from . import backbone, meta_arch  # noqa: F401  (imported for their registration)
