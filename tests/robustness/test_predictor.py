"""``Predictor`` in a script, and arguments and images that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg

from pffnet_d2 import Predictor
from pffnet_d2.config import read_config
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import Normalisation

GREY = np.full((64, 96), 8, np.uint8)


@pytest.fixture(scope="module")
def predictor(tiny_run: Path) -> Predictor:
    return Predictor(tiny_run / "config.yaml", tiny_run / "model_final.pth")


def refused(says: str, call: Callable[[], Any]) -> None:
    """One line that names what is wrong."""
    with pytest.raises(InputError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line
    assert says in line


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"diameter": "large"}, "diameter large: give the mean diameter"),
    ({"diameter": [20]}, "diameter [20]: give"),
    ({"diameter": True}, "diameter True: give"),
    ({"diameter": float("nan")}, "diameter nan: give"),
    ({"diameter": np.inf}, "diameter inf: give"),
    ({"diameter": -3}, "diameter -3: give"),
    ({"device": "meta"}, "device meta: cannot be used here; there is cpu"),
    ({"device": ""}, "device '': cannot be used here"),
    ({"device": 0.5}, "device 0.5: cannot be used here"),
    ({"device": torch.device("meta")}, "device meta: cannot"),
    ({"thresholds": 0.5}, "thresholds of type float: give a table such as {'SCORE_THRESH': 0.4}"),
    ({"thresholds": [0.5]}, "thresholds of type list: give"),
    ({"thresholds": {"SCORE_THRESH": 2}}, "thresholds: SCORE_THRESH 2: give a number from 0 to below 1"),
    ({"thresholds": {"SCORE_THRESH": None}}, "SCORE_THRESH None: give a number"),
    ({"thresholds": {"MIN_SIZE": float("inf")}}, "MIN_SIZE inf: give a whole number"),
    ({"thresholds": {"BETA": 0.5}}, "thresholds: unknown key BETA; use"),
    ({"normalisation": "gamma"}, "normalisation gamma: use auto, as-is or percentile"),
    ({"normalisation": "percentile:1,99,inf"}, "normalisation percentile:1,99,inf: use"),
    ({"normalisation": 5}, "normalisation of type int: give auto"),
    ({"normalisation": (1, 99)}, "normalisation of type tuple: give auto"),
    ({"opts": "MODEL.DEVICE cpu"}, "give keys and values in pairs"),
    ({"opts": None}, "give keys and values in pairs"),
    ({"opts": 5}, "give keys and values in pairs"),
    ({"opts": {"MODEL.DEVICE": "cpu"}}, "give keys and values in pairs"),
    ({"opts": ["MODEL.DEVICE"]}, "MODEL.DEVICE: give keys and values in pairs"),
    ({"opts": [5, "cpu"]}, "command line, 5 cpu:"),
    ({"opts": ["NO.SUCH.KEY", 1]}, "command line, NO.SUCH.KEY 1:"),
    ({"opts": ["TEST.DETECTIONS_PER_IMAGE", 0]}, "TEST.DETECTIONS_PER_IMAGE 0: give a whole number of 1 or more"),
    ({"opts": ["MODEL.PIXEL_STD", [0.0, 1.0, 1.0]]}, "MODEL.PIXEL_STD [0.0, 1.0, 1.0]: give a list of 3"),
    ({"model": 5}, "model of type int: give the path"),
    ({"weights": 5}, "weights of type int: give the path"),
    ({"weights": {"a": torch.zeros(1)}}, "weights of type dict: give the path"),
    ({"config": 5}, "config of type int: give the path of a YAML file"),
    ({"config": {"MODEL": {}}}, "config of type dict: give the path of a YAML file"),
    ({"config": "no.yaml"}, "no.yaml: no such config file"),
    ({"config": get_cfg()}, "call pffnet_d2.add_pffnet_config(cfg)"),
]


@pytest.mark.parametrize(("arguments", "says"), ARGUMENTS, ids=[f"{next(iter(a))} {s}" for a, s in ARGUMENTS])
def test_arguments(tiny_run: Path, arguments: dict[str, Any], says: str) -> None:
    given = {"config": tiny_run / "config.yaml", "weights": tiny_run / "model_final.pth"}
    refused(says, lambda: Predictor(**{**given, **arguments}))


@pytest.mark.parametrize("opts", [None, "TEST.DETECTIONS_PER_IMAGE 5", ["TEST.DETECTIONS_PER_IMAGE"]])
def test_options_of_a_model_by_its_folder(tiny_run: Path, opts: Any) -> None:
    refused("give keys and values in pairs", lambda: Predictor(model=tiny_run, opts=opts))


@pytest.mark.parametrize("in_hand", [False, True])
def test_a_config_in_hand_is_checked_too(tiny_run: Path, in_hand: bool) -> None:
    cfg = read_config(str(tiny_run / "config.yaml"), ["MODEL.WEIGHTS", str(tiny_run / "model_final.pth")])
    if in_hand:
        cfg.MODEL.PIXEL_MEAN = [8.0]
        refused("MODEL.PIXEL_MEAN [8.0]: give a list of 3", lambda: Predictor(cfg))
    else:
        refused("command line, MODEL.PIXEL_MEAN [8.0]", lambda: Predictor(cfg, opts=["MODEL.PIXEL_MEAN", [8.0]]))


IMAGES: list[tuple[str, Any, str]] = [
    ("torch tensor", torch.zeros(64, 96), "the image is of type torch.Tensor: give a numpy array"),
    ("list", [[1, 2], [3, 4]], "the image is of type list: give a numpy array"),
    ("None", None, "the image is of type NoneType: give a numpy array"),
    ("number", 5, "the image is of type int: give a numpy array"),
    ("numpy number", np.uint8(5), "the image is of type numpy.uint8: give a numpy array"),
    ("bytes", b"cell.png", "the image is of type bytes: give a numpy array"),
    ("complex", GREY.astype(complex), "an image of complex128 values: give whole or floating numbers"),
    ("objects", GREY.astype(object), "an image of object values"),
    ("text", GREY.astype(str), "an image of <U3 values"),
    ("dates", GREY.astype("datetime64[s]"), "an image of datetime64[s] values"),
    ("records", np.zeros((4, 4), [("x", np.uint8)]), "values: give whole or floating numbers"),
    ("nan", np.full((64, 96), np.nan, np.float32), "finite"),
    ("inf", np.full((64, 96), np.inf), "finite"),
    ("a row", GREY[0], "an image of shape (96,) is neither grey nor RGB(A)"),
    ("a number as array", np.ones((), np.uint8), "an image of shape () is neither grey nor RGB(A)"),
    ("a stack", np.zeros((5, 64, 96, 3), np.uint8), "an image of shape (5, 64, 96, 3) is neither"),
    ("channels first", np.zeros((3, 64, 96), np.uint8), "an image of shape (3, 64, 96) is neither"),
    ("no pixel", np.zeros((0, 96), np.uint8), "an image of shape (0, 96"),
    ("no such file", "no.png", "no.png: cannot be read"),
    ("an empty path", "", "cannot be read"),
]


@pytest.mark.parametrize(("image", "says"), [(i, s) for _, i, s in IMAGES], ids=[name for name, _, _ in IMAGES])
def test_images(predictor: Predictor, image: Any, says: str, tmp_path: Path) -> None:
    refused(says, lambda: predictor(image))
    refused(says.partition(": give")[0], lambda: predictor.predict_large(image, tmp_path / "out", tile=64))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("image", [GREY, GREY[None], np.zeros((4, 4, 3)), None, torch.zeros(3, 4, 4)])
def test_predict_takes_normalised_images(predictor: Predictor, image: Any) -> None:
    refused("predict takes (H, W, 3) uint8 arrays", lambda: predictor.predict([image]))


LARGE: list[tuple[dict[str, Any], str]] = [
    ({"name": "../../escape"}, "name '../../escape': give a path below"),
    ({"name": ".."}, "name '..': give a path below"),
    ({"name": "a/../../b"}, "give a path below"),
    ({"name": ""}, "name '': give a path below"),
    ({"name": "."}, "name '.': give a path below"),
    ({"name": "a\0b"}, "give a path below"),
    ({"name": 5}, "name 5: give a path below"),
    ({"tile": "64"}, "tile '64': give a whole number"),
    ({"tile": 64.0}, "tile 64.0: give a whole number"),
    ({"tile": True}, "tile True: give a whole number"),
    ({"tile": None}, "tile None: give a whole number"),
    ({"tile": 0}, "tiles of 0 pixels"),
    ({"tile": -64}, "tiles of -64 pixels"),
    ({"tile": 100}, "tiles of 100 pixels: the network works in steps of 32"),
    ({"overlap": "some"}, "overlap 'some': give a whole number or auto"),
    ({"overlap": 8.5}, "overlap 8.5: give a whole number or auto"),
    ({"overlap": 0}, "cannot overlap by 0"),
    ({"overlap": 64}, "cannot overlap by 64"),
    ({"batch": 0}, "batches of 0: must be at least 1"),
    ({"batch": 1.5}, "batch 1.5: give a whole number"),
    ({"formats": "csv"}, "formats 'csv': give a list"),
    ({"formats": ["roi"]}, "format roi cannot be written in tiles"),
    ({"pixel_size": -1}, "pixel_size -1: give micrometres"),
    ({"pixel_size": float("nan")}, "pixel_size nan: give micrometres"),
    ({"pixel_size": float("inf")}, "pixel_size inf: give micrometres"),
    ({"pixel_size": "0.5"}, "pixel_size '0.5': give micrometres"),
]


@pytest.mark.parametrize(("arguments", "says"), LARGE, ids=[f"{next(iter(a.items()))}" for a, _ in LARGE])
def test_large(predictor: Predictor, arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    refused(says, lambda: predictor.predict_large(GREY, out, **{"tile": 64, **arguments}))
    assert not list(tmp_path.rglob("*"))


def test_an_absolute_name(predictor: Predictor, tmp_path: Path) -> None:
    name = str(tmp_path / "escape")
    refused("not an absolute one", lambda: predictor.predict_large(GREY, tmp_path / "out", name=name, tile=64))
    assert not list(tmp_path.rglob("*"))


def test_names_below_the_folder_work(predictor: Predictor, tmp_path: Path) -> None:
    done = predictor.predict_large(GREY, tmp_path, name="plate/A01", tile=64)
    assert done.files["label-tiff"] == tmp_path / "plate" / "A01_labels.tif"


@pytest.mark.parametrize(
    ("text", "meant"),
    [("auto", None), ("as-is", Normalisation("as_is")), ("percentile:1,99", Normalisation("percentile", 1, 99))],
)
def test_normalisation_as_on_the_command_line(tiny_run: Path, text: str, meant: Normalisation | None) -> None:
    given = Predictor(tiny_run / "config.yaml", tiny_run / "model_final.pth", normalisation=text)
    plain = Predictor(tiny_run / "config.yaml", tiny_run / "model_final.pth", normalisation=meant)
    assert given.normalisation == plain.normalisation
