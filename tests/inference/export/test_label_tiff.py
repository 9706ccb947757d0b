"""The label map, read back by tifffile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pffnet_d2.inference.export import write_label_tiff


def test_label_tiff_depth_and_resolution(tmp_path: Path, label_map: np.ndarray) -> None:
    write_label_tiff(tmp_path / "a.tif", label_map, pixel_size=(0.5, 0.25))
    write_label_tiff(tmp_path / "b.tif", label_map, resolution=((300, 1), (150, 1), 2))
    many = np.arange(70000, dtype=np.int32).reshape(70, 1000)
    write_label_tiff(tmp_path / "c.tif", many)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0]
        assert page.dtype == np.uint16
        assert page.get_resolution("micrometer") == pytest.approx((4, 2))  # pixels a micrometre, x and y
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tags = tiff.pages[0].tags
        assert (tags["XResolution"].value, tags["YResolution"].value) == ((300, 1), (150, 1))
        assert tags["ResolutionUnit"].value == 2
    assert tifffile.imread(tmp_path / "c.tif").dtype == np.uint32
    assert (tifffile.imread(tmp_path / "c.tif") == many).all()
