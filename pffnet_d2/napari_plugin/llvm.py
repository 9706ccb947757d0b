"""Keeps torch's compiler apart from the OpenGL driver, with which it would crash in one process."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module

_COMPILER = "triton"  # comes with torch for CUDA, and is imported by torchvision


def import_compiler() -> None:
    """Import triton, if it is installed, so that it uses the LLVM that it contains. Call this before importing torch.

    libtriton exports the symbols of its LLVM. Mesa's OpenGL drivers load another LLVM, whose symbols all libraries of
    the process see. Once napari has opened a window, triton would bind to those, and importing it would end the process
    with a segmentation fault: seen with Mesa 22.3 (LLVM 15) and triton 3.8, and known of TensorFlow's LLVM
    (github.com/tensorflow/tensorflow/issues/124205). With RTLD_DEEPBIND, which Linux has, a library prefers its own.
    """
    if _COMPILER in sys.modules or not hasattr(os, "RTLD_DEEPBIND"):
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        with suppress(ImportError):
            import_module(_COMPILER)
    finally:
        sys.setdlopenflags(flags)
