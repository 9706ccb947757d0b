"""The data set that training is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pffnet_d2.data.prepare import Selection, prepare


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Root of the prepared phantoms, two images a split, which DETECTRON2_DATASETS names."""
    root = tmp_path_factory.mktemp("datasets")
    prepare("phantoms", None, root, Selection(count=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root
