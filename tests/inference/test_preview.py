"""The picture with which a person chooses a threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2.cli.main import main
from pffnet_d2.inference.preview import BAND, GAP, side_by_side, thresholds_around
from pffnet_d2.visualization.overlay import overlay


@pytest.mark.parametrize(
    ("beta", "expected"),
    [(0.5, [0.3, 0.5, 0.7]), (0.1, [0.05, 0.1, 0.3]), (0.9, [0.7, 0.9, 0.95]), (0.0, [0.0, 0.0, 0.2])],
)
def test_thresholds(beta: float, expected: list[float]) -> None:
    assert thresholds_around(beta) == expected


def test_panels_stand_side_by_side() -> None:
    panels = [np.full((20, 40, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = side_by_side(panels, ["a", "b", "c"])
    assert sheet.shape == (BAND + 20, 3 * 40 + 2 * GAP, 3)
    for i, panel in enumerate(panels):
        left = i * (40 + GAP)
        np.testing.assert_array_equal(sheet[BAND:, left : left + 40], panel)
        assert (sheet[:BAND, left : left + 40] < 128).any()  # the caption
    assert (sheet[:, 40 : 40 + GAP] == 255).all()


def test_each_panel_shows_what_its_threshold_gives(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 900, (300, 280)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    run = ["predict", str(tmp_path / "a.tif"), "--model", str(tiny_run), "--device", "cpu"]
    out = tmp_path / "out"
    assert main([*run, "--out", str(out), "--threshold", "0.5", "--preview"]) == 0
    assert [path.name for path in out.iterdir()] == ["a_preview.png"]
    sheet = np.asarray(Image.open(out / "a_preview.png"))
    said = capsys.readouterr().out.splitlines()
    for i, beta in enumerate(("0.3", "0.5", "0.7")):
        assert main([*run, "--out", str(tmp_path / beta), "--threshold", beta]) == 0
        labels = tifffile.imread(tmp_path / beta / "a_labels.tif")
        assert said[i] == f"--threshold {beta}: {labels.max()} objects"
        left = (i + 1) * (280 + GAP)
        image = sheet[BAND:, :280]
        np.testing.assert_array_equal(sheet[BAND:, left : left + 280], overlay(image, labels))


def test_a_preview_is_of_one_image(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((64, 64), np.uint16))
    run = ["predict", "--model", str(tiny_run), "--device", "cpu", "--preview", "--out", str(tmp_path / "out")]
    assert main([*run, str(tmp_path)]) == 2
    assert "--preview is of one image, not of 2; name one" in capsys.readouterr().err
    (tmp_path / "bad.tif").write_bytes(b"II*\0 no more")
    assert main([*run, str(tmp_path / "bad.tif")]) == 2
    assert "bad.tif: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
