"""Arrays to label maps and tables, as a whole and in tiles, and what a cancellation leaves behind."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2 import Predictor
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import write_csv
from pffnet_d2.napari_plugin.progress import Cancelled, Step
from pffnet_d2.napari_plugin.sample_data import fluorescence
from pffnet_d2.napari_plugin.segment import Segmenter, Settings


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.ascontiguousarray(fluorescence()[0][0][:128, :160])


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_as_a_whole(packaged: Path, image: NDArray[np.uint8], tmp_path: Path, temporary: Path) -> None:
    found = Segmenter()(image, Settings(str(packaged)), 0.5)
    truth = Predictor(model=packaged)(image)
    assert (found.label_map == truth.label_map).all()
    size, cap = found.warnings  # of random weights
    assert size.startswith("the objects found measure less than half")
    assert cap.startswith("objects may be missing: ")
    write_csv(tmp_path / "a.csv", truth.label_map, truth.scores, pixels=image, pixel_size=(0.5, 0.5))
    header, *rows = csv.reader((tmp_path / "a.csv").read_text().splitlines())
    assert list(found.features) == ["index", *header[1:]]
    assert {"score", "area_um2", "intensity_mean"} < set(header)
    assert len(rows) == truth.label_map.max() > 0
    for i, name in enumerate(found.features):
        assert found.features[name].tolist() == [float(row[i]) for row in rows]
    assert found.features["index"].tolist() == list(range(1, len(rows) + 1))
    assert list(temporary.iterdir()) == []


def test_in_tiles(packaged: Path, image: NDArray[np.uint8], temporary: Path) -> None:
    steps: list[Step] = []
    settings = Settings(str(packaged), tile=96)
    found = Segmenter()(image, settings, None, steps.append)
    assert found.label_map.shape == image.shape
    assert found.label_map.dtype == np.int32
    assert found.features["index"].tolist() == list(range(1, found.label_map.max() + 1))
    areas = np.bincount(found.label_map.ravel())[1:]
    assert found.features["area_px2"].tolist() == areas.tolist()
    assert steps[-7:] == [Step(done, 6) for done in range(7)]
    assert list(temporary.iterdir()) == []


def test_cancelled_after_a_tile(packaged: Path, image: NDArray[np.uint8], temporary: Path) -> None:
    def stop(step: Step) -> None:
        if step.done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        Segmenter()(image, Settings(str(packaged), tile=96), None, stop)
    assert list(temporary.iterdir()) == []


def test_colours_depths_and_nothing_found(packaged: Path, image: NDArray[np.uint8]) -> None:
    segmenter = Segmenter()
    for pixels in (np.stack([image] * 4, axis=-1), image.astype(np.float64), image > 100, image.astype(np.uint16) * 9):
        found = segmenter(pixels, Settings(str(packaged)), None)
        assert found.label_map.shape == image.shape
        assert ("intensity_mean" in found.features) == (pixels.ndim == 2)
    nothing = segmenter(image, Settings(str(packaged), threshold=0.999), None)
    assert nothing.label_map.max() == 0
    assert {len(column) for column in nothing.features.values()} == {0}
    assert list(nothing.features) == list(found.features)


def test_a_model_is_loaded_once(packaged: Path, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    from pffnet_d2.inference import predictor

    loaded: list[float | None] = []

    class Counted(Predictor):
        def __init__(self, **arguments: object) -> None:
            super().__init__(**arguments)  # type: ignore[arg-type]
            loaded.append(self.scale)

    monkeypatch.setattr(predictor, "Predictor", Counted)
    segmenter = Segmenter()
    for diameter, tile in ((None, None), (None, 64), (10.0, None), (None, None)):
        segmenter(image[:64, :64], Settings(str(packaged), diameter=diameter, tile=tile), None)
    assert loaded == [1.0, 2.0, 1.0]  # the model knows a diameter of 20


def test_a_bright_image_is_doubted(packaged: Path, image: NDArray[np.uint8]) -> None:
    for settings in (Settings(str(packaged)), Settings(str(packaged), tile=96)):
        doubt, *_, cap = Segmenter()(255 - image, settings, None).warnings
        assert doubt.startswith("bright background")
        assert "objects may be missing: " in cap
    *_, cap = Segmenter()(255 - image, Settings(str(packaged), invert=True), None).warnings
    assert cap.startswith("objects may be missing: ")  # the small model has low caps


@pytest.mark.parametrize(
    ("pixels", "settings", "said"),
    [
        (np.zeros((64, 64), complex), {}, "an image of complex128 values"),
        (np.full((64, 64), np.nan), {}, "not finite"),
        (np.full((64, 64), np.inf), {"tile": 64}, "NaN or infinite; replace them"),
        (np.zeros((64, 64, 5), np.uint8), {}, r"\(64, 64, 5\) is neither grey nor RGB"),
        (np.zeros((64, 64), np.uint8), {"tile": 100}, "tiles of 100 pixels: the network works in steps of 32"),
        (np.zeros((64, 64), np.uint8), {"threshold": 2.0}, "thresholds: SCORE_THRESH"),
        (np.zeros((64, 64), np.uint8), {"diameter": 100.0}, "no object of diameter 100 fits"),
        (np.zeros((64, 64), np.uint8), {"model": "no such"}, "no such: no such model"),
    ],
)
def test_what_cannot_be_segmented(
    pixels: NDArray[np.generic], settings: dict[str, object], said: str, packaged: Path, temporary: Path
) -> None:
    chosen = Settings(**{"model": str(packaged), **settings})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said):
        Segmenter()(pixels, chosen, None)
    assert list(temporary.iterdir()) == []
