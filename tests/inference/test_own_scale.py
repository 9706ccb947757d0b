"""``--diameter auto``: which images get a second pass, and at which scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
from pffnet_d2.errors import InputError
from pffnet_d2.inference.own_scale import doubt_about_size, mean_diameter


class StandIn(Predictor):
    """Knows diameter 20 and finds one square of ``side`` pixels, or nothing for side 0, at whatever scale."""

    facts: Any = SimpleNamespace(diameter=20.0)

    def __init__(self, side: int, scale: float = 1.0, largest: float = 100.0) -> None:
        self.side, self.scale, self.largest, self.own_scale = side, scale, largest, False

    def at_scale(self, scale: float) -> StandIn:
        return StandIn(self.side, scale, self.largest)

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        if self.scale > self.largest:
            raise InputError("too large")
        return height, width

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        if self.own_scale:
            return self._predict_at_own_scale(images)
        found = []
        for image in images:
            labels = np.zeros(image.shape[:2], np.int32)
            labels[: self.side, : self.side] = 1
            found.append(SimpleNamespace(label_map=labels, scale=self.scale))
        return found


IMAGE = np.zeros((100, 100, 3), np.uint8)


@pytest.mark.parametrize(
    ("side", "largest", "expected"),
    [
        (0, 100.0, 1.0),  # nothing was found
        (18, 100.0, 1.0),  # diameter 20.3: close
        (15, 100.0, 1.0),  # 16.9: 1.18 times too small
        (5, 100.0, 20 / (10 / np.pi**0.5)),
        (60, 100.0, 20 / (120 / np.pi**0.5)),
        (5, 2.0, 1.0),  # the enlarged image would be too large
    ],
)
def test_scale_of_the_second_pass(side: int, largest: float, expected: float) -> None:
    standing_in = StandIn(side, largest=largest)
    standing_in.own_scale = True
    (found,) = standing_in.predict([IMAGE])
    assert found.scale == pytest.approx(expected)


def test_mean_diameter() -> None:
    labels = np.zeros((30, 30), np.int32)
    assert mean_diameter(labels) == 0
    labels[:2, :2], labels[10:14, 10:14] = 1, 3
    assert mean_diameter(labels) == pytest.approx((2 * (4 / np.pi) ** 0.5 + 2 * (16 / np.pi) ** 0.5) / 2)


def test_it_equals_the_diameter_given_by_hand(tiny_run: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    plain = Predictor(model=tiny_run, device="cpu")
    diameter = mean_diameter(plain.predict([pixels])[0].label_map)
    assert diameter > 0
    options: Any = {"model": tiny_run, "device": "cpu", "opts": ["MODEL.PFFNET.DIAMETER", str(2 * diameter)]}
    automatic, by_hand = Predictor(diameter="auto", **options), Predictor(diameter=diameter, **options)
    assert by_hand.scale == pytest.approx(2)
    expected = by_hand.predict([pixels])[0].label_map
    np.testing.assert_array_equal(automatic.predict([pixels])[0].label_map, expected)
    assert automatic.scale == 1.0  # unchanged for the next image


def test_the_first_pass_stands_where_the_second_image_would_be_too_large(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    plain = Predictor(model=tiny_run, device="cpu")
    (first,) = plain.predict([pixels])
    twice = str(2 * mean_diameter(first.label_map))
    automatic = Predictor(diameter="auto", model=tiny_run, device="cpu", opts=["MODEL.PFFNET.DIAMETER", twice])
    assert (automatic.predict([pixels])[0].label_map != first.label_map).any()
    monkeypatch.setattr("pffnet_d2.inference.predictor.MAX_ENLARGED", 2 * 64 * 96)
    np.testing.assert_array_equal(automatic.predict([pixels])[0].label_map, first.label_map)


def test_not_in_tiles_and_not_for_unknown_models(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint16))
    run = ["predict", str(tmp_path / "a.tif"), "--model", str(tiny_run), "--device", "cpu", "--diameter", "auto"]
    for more, words in (
        (["--tile", "64"], "diameter auto measures objects in whole images"),
        (["--opts", "MODEL.PFFNET.DIAMETER", "0.0"], "diameter auto: the config does not state the diameter"),
        (["--opts", "INPUT.SQUARE.TEST", "64"], "diameter auto: INPUT.SQUARE.TEST resizes images already"),
    ):
        assert main([*run, "--out", str(tmp_path / "out"), *more]) == 2
        assert words in capsys.readouterr().err
    assert main([*run, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (9.0, ""),
        (18.0, ""),
        (18.2, "less than half of the 18.2 pixels"),
        (4.4, "more than twice"),
        (4.6, ""),
        (0.0, ""),
    ],
)
def test_objects_far_from_the_known_size_are_doubted(known: float, says: str) -> None:
    """Squares of 8 pixels have a diameter of 9.03."""
    labels = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((8, 8))).astype(np.int32)
    line = doubt_about_size(labels, known)
    assert says in line
    assert bool(line) == bool(says)
    assert doubt_about_size(np.where(labels < 10, labels, 0), known) == ""  # nine objects say little


def test_the_doubt_reaches_the_user(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless images are resized already."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels)
    far = ["MODEL.PFFNET.DIAMETER", "150.0"]
    run = ["predict", str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), "--model", str(tiny_run), "--device", "cpu"]
    for more, said in (([], 1), (["--diameter", "90"], 0), (["--diameter", "auto"], 0)):
        assert main([*run, "--out", str(tmp_path / "out"), *more, "--opts", *far]) == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "the objects found measure" in line]
        assert len(told) == said
        assert all(f"2 of 2 images, the first {tmp_path / 'a.tif'}: " in line for line in told)
    with pytest.warns(UserWarning, match="less than half of the 150 pixels that the model knows; --diameter auto"):
        Predictor(model=tiny_run, device="cpu", opts=far)(pixels)
