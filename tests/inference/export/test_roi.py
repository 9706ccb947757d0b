"""ROIs, read back by roifile and by hand."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import write_rois


def test_rois_by_an_independent_reading_of_the_bytes(
    tmp_path: Path, label_map: np.ndarray, scores: dict[str, np.ndarray]
) -> None:
    roifile = pytest.importorskip("roifile")
    path = tmp_path / "a.zip"
    for _ in range(2):  # roifile's own writer would append
        write_rois(path, label_map, scores)
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["00001.roi", "00002.roi", "00003.roi"]
    with zipfile.ZipFile(path) as archive:
        data = archive.read("00003.roi")
    # ImageJ's RoiDecoder: magic, type (8 traced) at 6, top left bottom right at 8, count at 16, x then y from 64.
    assert data[:4] == b"Iout"
    assert data[6] == 8
    assert np.frombuffer(data[8:18], ">i2").tolist() == [28, 47, 30, 50, 4]
    assert np.frombuffer(data[64:80], ">i2").tolist() == [0, 3, 3, 0, 0, 0, 2, 2]
    first = roifile.roiread(path)[0]
    assert first.composite
    assert "score: 0.9\n" in first.props


def test_rois_beyond_a_signed_short(tmp_path: Path) -> None:
    pytest.importorskip("roifile")
    label_map = np.zeros((3, 40000), np.int32)
    label_map[1, 39000:39900] = 1
    write_rois(tmp_path / "a.zip", label_map)
    import roifile

    (roi,) = roifile.roiread(tmp_path / "a.zip")
    assert (np.array(roi.coordinates()) % 2**16).min(axis=0).tolist() == [39000, 1]
    with pytest.raises(InputError, match=r"65,535"):
        write_rois(tmp_path / "b.zip", np.zeros((1, 70000), np.int32))
    assert not (tmp_path / "b.zip").exists()
