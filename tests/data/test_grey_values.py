"""A data set whose grey values a model would not see again in prediction is named, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pffnet_d2.data.grey_values import unlike_prediction
from pffnet_d2.data.prepared import PreparedSplit, write_image, write_instances
from pffnet_d2.imaging.normalisation import AS_IS, AUTO, PERCENTILE_16_BIT, STRETCH, Normalisation, to_rgb8

GREY = np.random.default_rng(0).integers(0, 60, (40, 40)).astype(np.uint8)
# Purple on nearly white.
STAINED = np.where(GREY[:, :, None] > 50, np.uint8([120, 60, 140]), np.uint8([235, 215, 230])).astype(np.uint8)


def split(folder: Path, images: list[NDArray[np.uint8]], made: Normalisation | None) -> PreparedSplit:
    at = PreparedSplit(folder / "cells" / "train")
    at.images.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        write_image(at.images / f"{number}.png", to_rgb8(image, AS_IS))
        entries.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 40})
    info = {"dataset": "cells", "reader": "own"} | ({"normalisation": made.info()} if made else {})
    write_instances(at.json_file, entries, [], info, "cell")
    return at


@pytest.mark.parametrize(
    ("image", "made", "asked", "says"),
    [
        (GREY, AS_IS, AUTO, ""),
        (GREY, AUTO, STRETCH, "prediction would stretch 3 of the 3 looked at"),
        (GREY, AS_IS, STRETCH, "prepare it again with --option normalisation=stretch"),
        (STAINED, AS_IS, STRETCH, ""),
        (to_rgb8(GREY, STRETCH), AS_IS, STRETCH, ""),
        (GREY, STRETCH, STRETCH, ""),
        (GREY, STRETCH, AUTO, "set MODEL.PFFNET.NORMALISATION stretch"),
        (GREY, PERCENTILE_16_BIT, AUTO, ""),
        (GREY, PERCENTILE_16_BIT, STRETCH, ""),
        (GREY, Normalisation("percentile", 2, 98, 9), STRETCH, "predict with --normalisation percentile:2,98,9"),
        (GREY, None, STRETCH, ""),
    ],
)
def test_what_is_said(
    tmp_path: Path, image: NDArray[np.uint8], made: Normalisation | None, asked: Normalisation, says: str
) -> None:
    line = unlike_prediction(split(tmp_path, [image] * 3, made), asked)
    assert says in line
    assert bool(says) == bool(line)
    assert "\n" not in line


def test_images_of_a_large_split_are_sampled(tmp_path: Path) -> None:
    assert "12 of the 12" in unlike_prediction(split(tmp_path / "many", [GREY] * 133, AS_IS), STRETCH)
    assert "7 of the 7" in unlike_prediction(split(tmp_path / "few", [GREY] * 13, AS_IS), STRETCH)
    assert unlike_prediction(split(tmp_path / "none", [], AS_IS), STRETCH) == ""


def test_what_a_split_does_not_say_is_not_judged(tmp_path: Path) -> None:
    at = split(tmp_path, [GREY], AS_IS)
    text = at.json_file.read_text()
    for other in ('"normalisation": {"name": "as_is", "of": "another release"}', '"normalisation": "as_is"'):
        start = text.index('"normalisation"')
        at.json_file.write_text(text[:start] + other + text[text.index("}", start) + 1 :])
        assert at.info()["reader"] == "own"
        assert unlike_prediction(at, STRETCH) == ""
