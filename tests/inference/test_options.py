"""What can be asked of a prediction, and how options travel."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2 import Predictor
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import Normalisation
from pffnet_d2.inference import torch_backend
from pffnet_d2.inference.options import ImageOptions, InvalidOption, ModelOptions, PredictOptions


def test_one_object_is_what_keywords_are(tiny_run: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96)).astype(np.uint8)
    options = PredictOptions(model=tiny_run, thresholds={"SCORE_THRESH": 0.2}, normalisation="percentile:1,99", tile=64)
    one, other = (
        Predictor(options=options),
        Predictor(model=tiny_run, thresholds={"SCORE_THRESH": 0.2}, normalisation="percentile:1,99"),
    )
    assert one.normalisation == other.normalisation == Normalisation("percentile", 1, 99)
    assert one.rule == other.rule
    assert one.rule.score_threshold == 0.2
    assert (
        one.predict([one.normalise(image)])[0].label_map == other.predict([one.normalise(image)])[0].label_map
    ).all()


def test_precision(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results in bfloat16 differ, and so do the identities, by which kept tiles are found."""
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    plain, lower = (Predictor(model=tiny_run, device="cpu", precision=p) for p in ("float32", "bfloat16"))
    assert (plain.precision, lower.precision) == ("float32", "bfloat16")
    assert plain.identity != lower.identity
    scores = [predictor.predict([image])[0].scores["class_score"] for predictor in (plain, lower)]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.1
    assert Predictor(model=tiny_run, device="cpu").identity == plain.identity
    for units, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch_backend, "faster_in_bfloat16", lambda device, units=units: units)
        assert Predictor(model=tiny_run, device="cpu", precision="auto").precision == chosen


def test_options_go_to_other_processes() -> None:
    options = PredictOptions(formats=["csv", "geojson"], tile=64, plane={"Z": 3})
    copy = pickle.loads(pickle.dumps(options))
    assert copy == options
    assert [exporter.name for exporter in copy.exporters.files] == ["csv", "geojson"]
    assert replace(copy, formats=["csv"]).exporters.files[0].name == "csv"


def test_options_or_keywords_but_not_both(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="either options or"):
        Predictor(options=ModelOptions(), diameter=20)
    with pytest.raises(TypeError, match="tile"):
        Predictor(model=tiny_run, tile=64)  # of images, not of the model
    predictor = Predictor(model=tiny_run)
    with pytest.raises(TypeError, match="either options or"):
        predictor.predict_large(np.zeros((9, 9)), tmp_path, options=ImageOptions(tile=64), batch=2)
    with pytest.raises(TypeError, match="diameter"):
        predictor.predict_large(np.zeros((9, 9)), tmp_path, diameter=20)
    with pytest.raises(InputError, match="tile None: give a whole number"):
        predictor.predict_large(np.zeros((9, 9)), tmp_path, options=ImageOptions())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"weights": "a.pth"}, "a.pth: weights without a config"),
    ({"config": "a.yaml", "model": "nuclei"}, "model nuclei and a config: give one of them"),
    ({"config": 5}, "config of type int: give the path of a YAML file"),
    ({"diameter": 0}, "diameter 0: give the mean diameter"),
    ({"thresholds": 0.5}, "thresholds of type float: give a table"),
    ({"precision": "float16"}, "precision 'float16': give auto, float32 or bfloat16"),
    ({"precision": None}, "precision None: give auto"),
    ({"normalisation": "gamma"}, "normalisation gamma: use auto"),
    ({"formats": ["png"]}, "format 'png' is unknown; choose from label-tiff,"),
    ({"formats": ["csv", "coco"], "tile": 64}, "format coco cannot be written in tiles"),
    ({"channels": [0, 1]}, r"channels 0,1: give one \(grey\) or three"),
    ({"pixel_size": -1.0}, "pixel_size -1.0: give micrometres"),
    ({"batch": 0}, "batches of 0: must be at least 1"),
    ({"overlap": 8.5}, "overlap 8.5: give a whole number or auto"),
]


@pytest.mark.parametrize(("given", "says"), WRONG, ids=[says for _, says in WRONG])
def test_values_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        PredictOptions(**given)


def test_the_option_at_fault_is_named() -> None:
    with pytest.raises(InvalidOption) as error:
        ImageOptions(pixel_size=float("nan"))
    assert (error.value.option, error.value.fault[:4]) == ("pixel_size", "nan:")


def test_pixel_size() -> None:
    assert ImageOptions().scale_of((0.5, 0.25)) == (0.5, 0.25)
    assert ImageOptions(pixel_size=2).scale_of((0.5, 0.25)) == (2, 2)
    assert ImageOptions(pixel_size=0).scale_of((0.5, 0.25)) is None
    assert ImageOptions().scale_of(None) is None
