"""How the compiler is imported. That this prevents the crash is seen in `make napari`: a picture is saved at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pffnet_d2.napari_plugin import llvm

pytestmark = pytest.mark.skipif(not hasattr(os, "RTLD_DEEPBIND"), reason="this system's loader has no RTLD_DEEPBIND")


@pytest.mark.parametrize("fault", ["", "raise ImportError", "raise ZeroDivisionError"])
def test_bound_to_its_own_symbols(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compiler_of_the_test.py").write_text(f"import sys\nsys.seen = sys.getdlopenflags()\n{fault}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(llvm, "_COMPILER", "compiler_of_the_test")
    monkeypatch.setattr(sys, "seen", None, raising=False)
    before = sys.getdlopenflags()
    if "Zero" in fault:
        with pytest.raises(ZeroDivisionError):
            llvm.import_compiler()
    else:
        llvm.import_compiler()
    assert sys.seen == before | os.RTLD_DEEPBIND  # type: ignore[attr-defined]
    assert sys.getdlopenflags() == before
    sys.modules.pop("compiler_of_the_test", None)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "_COMPILER", "no_such_compiler")
    llvm.import_compiler()
