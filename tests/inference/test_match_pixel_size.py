"""``--match-pixel-size``: each image is resized by the size of its pixels, as ``--diameter`` would resize it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
from pffnet_d2.errors import InputError
from pffnet_d2.inference.options import PredictOptions
from pffnet_d2.model_zoo.facts import ModelFacts

# The tiny model, which knows diameter 20, made for pixels of 0.5 um.
KNOWN = ["--opts", "MODEL.PFFNET.PIXEL_SIZE", "0.5"]
MATCH = ["--match-pixel-size", *KNOWN]


def write_image(
    path: Path, pixel: tuple[float, float] | None, seed: int = 0, size: tuple[int, int] = (128, 192)
) -> Path:
    """An OME-TIFF of noise with pixels of this height and width in micrometres."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    named = {} if pixel is None else {"PhysicalSizeY": pixel[0], "PhysicalSizeX": pixel[1]}
    tifffile.imwrite(path, pixels, photometric="rgb", ome=True, metadata={"axes": "YXS", **named})
    return path


def predict(run: Path, out: Path, images: list[Path], *more: str) -> int:
    words = ["predict", *map(str, images), "--model", str(run), "--device", "cpu", "--out", str(out)]
    return main([*words, "--format", "label-tiff", *more])


def labels(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize("tiles", [[], ["--tile", "128"]])
def test_it_equals_the_diameter_of_the_same_scale(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiles: list[str]
) -> None:
    image = write_image(tmp_path / "a.ome.tif", (0.25, 0.25))
    assert predict(tiny_run, tmp_path / "matched", [image], *tiles, *MATCH) == 0
    said = capsys.readouterr().out
    assert "pixel size: 0.25 um per pixel, resized 0.5 times to the model's 0.5 um (1 images)" in said
    assert predict(tiny_run, tmp_path / "by_hand", [image], *tiles, "--diameter", "40") == 0
    assert predict(tiny_run, tmp_path / "plain", [image], *tiles) == 0
    assert "pixel size" not in capsys.readouterr().out
    matched, by_hand, plain = (labels(tmp_path / name) for name in ("matched", "by_hand", "plain"))
    assert matched == by_hand
    assert matched != plain


def test_each_image_of_a_batch_has_its_own_scale(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [0.25, 0.5, 0.25, 1.0]
    images = [write_image(tmp_path / f"{i}.ome.tif", (size, size), i) for i, size in enumerate(sizes)]
    assert predict(tiny_run, tmp_path / "together", images, "--batch", "4", *MATCH) == 0
    said = capsys.readouterr().out
    assert "0.25 um per pixel, resized 0.5 times to the model's 0.5 um (2 images)" in said
    assert "1 um per pixel, resized 2 times to the model's 0.5 um (1 images)" in said
    for image in images:
        assert predict(tiny_run, tmp_path / "alone", [image], *MATCH) == 0
    assert labels(tmp_path / "together") == labels(tmp_path / "alone")


def test_the_size_that_is_given_replaces_that_of_the_file(tiny_run: Path, tmp_path: Path) -> None:
    stated, unknown = write_image(tmp_path / "a.ome.tif", (1, 2)), write_image(tmp_path / "b.ome.tif", None)
    assert predict(tiny_run, tmp_path / "out", [stated, unknown], "--pixel-size", "0.25", *MATCH) == 0
    found = [tifffile.imread(tmp_path / "out" / f"{name}_labels.tif") for name in "ab"]
    predictor = Predictor(model=tiny_run, device="cpu", diameter=40)
    expected = predictor.predict([tifffile.imread(stated)])[0].label_map
    for each in found:
        np.testing.assert_array_equal(each, expected)


@pytest.mark.parametrize(
    ("pixel", "more", "words"),
    [
        (None, [], "a.ome.tif: does not state the size of its pixels, which match-pixel-size needs"),
        (None, ["--tile", "64"], "a.ome.tif: does not state the size of its pixels"),
        ((0.5, 0.25), [], "a.ome.tif: its pixels of 0.5 x 0.25 um (height x width) are not square"),
        ((0.05, 0.05), [], "128 x 192 pixels as 13 x 19, too small for an object; check the size of its pixels"),
        ((500.0, 500.0), [], "128 x 192 pixels as 128000 x 192000, more than 33,554,432; check the size"),
        ((500.0, 500.0), ["--tile", "64"], "a.ome.tif: 500 um per pixel, resized 1e+03 times to the model's 0.5 um"),
        ((0.5, 0.5), ["--diameter", "20"], "--match-pixel-size and diameter 20.0: both resize images; give one"),
        ((0.5, 0.5), ["--diameter", "auto"], "--match-pixel-size and diameter auto: both resize images"),
        ((0.5, 0.5), ["--pixel-size", "0"], "--match-pixel-size needs the size of a pixel, and pixel_size 0 ignores"),
        ((0.5, 0.5), ["MODEL.PFFNET.PIXEL_SIZE", "0.0"], "the config does not state the size of a pixel in training"),
        ((0.5, 0.5), ["MODEL.PFFNET.PIXEL_SIZE", "-1.0"], "MODEL.PFFNET.PIXEL_SIZE -1.0: give a number of 0 or more"),
        ((0.5, 0.5), ["INPUT.SQUARE.TEST", "64"], "match-pixel-size: INPUT.SQUARE.TEST resizes images already"),
    ],
)
def test_what_cannot_be_matched(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pixel: tuple[float, float] | None,
    more: list[str],
    words: str,
) -> None:
    image = write_image(tmp_path / "a.ome.tif", pixel)
    options = [*more, *MATCH] if more and more[0].startswith("-") else [*MATCH, *more]
    assert predict(tiny_run, tmp_path / "out", [image], *options) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_an_unmatched_image_does_not_stop_the_others(tiny_run: Path, tmp_path: Path) -> None:
    images = [write_image(tmp_path / f"{i}.ome.tif", size) for i, size in enumerate([None, (0.5, 0.5)])]
    assert predict(tiny_run, tmp_path / "out", images, "--batch", "2", *MATCH) == 1
    assert list(labels(tmp_path / "out")) == ["1_labels.tif"]


def test_in_python(tiny_run: Path, tmp_path: Path) -> None:
    options: Any = {"model": tiny_run, "device": "cpu", "opts": KNOWN[1:]}
    predictor = Predictor(match_pixel_size=True, **options)
    image = write_image(tmp_path / "a.ome.tif", (0.25, 0.25))
    pixels = tifffile.imread(image)
    expected = Predictor(diameter=40, **options)(pixels).label_map
    np.testing.assert_array_equal(predictor(image).label_map, expected)
    at_size = predictor.for_pixels((0.25, 0.25))
    np.testing.assert_array_equal(at_size(pixels).label_map, expected)
    np.testing.assert_array_equal(at_size.predict([pixels])[0].label_map, expected)
    assert len({predictor.identity, at_size.identity, Predictor(**options).identity}) == 3
    with pytest.raises(InputError, match=r"the image: does not state the size of its pixels"):
        predictor(pixels)
    with pytest.raises(InputError, match=r"predictor\.for_pixels\(\(0\.5, 0\.5\)\)"):
        predictor.predict([pixels])
    plain = Predictor(**options)
    assert plain.for_pixels(None) is plain
    with pytest.raises(InputError, match="match_pixel_size and diameter 3"):
        PredictOptions(diameter=3, match_pixel_size=True)


def test_packages_and_exported_models_know_their_pixels(onnx_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    facts = Predictor(model=tiny_run, device="cpu", opts=KNOWN[1:]).facts
    assert facts.pixel_size == 0.5
    assert ModelFacts.from_info(facts.info()) == facts
    earlier = {key: value for key, value in facts.info().items() if key != "pixel_size"}
    assert ModelFacts.from_info(earlier).pixel_size == 0
    weights = str(onnx_run / "model_final.pth")
    words = ["--config", str(onnx_run / "config.yaml"), "--weights", weights, "--out", str(tmp_path / "model"), *KNOWN]
    assert main(["package", *words]) == 0
    assert '"pixel_size": 0.5' in (tmp_path / "model" / "card.json").read_text()
    image = write_image(tmp_path / "a.ome.tif", (0.25, 0.25))
    assert predict(tmp_path / "model", tmp_path / "out", [image], "--match-pixel-size") == 0
