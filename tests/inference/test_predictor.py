"""The predictor against the model called by hand, and what it refuses."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import pffnet_d2
from pffnet_d2 import Predictor
from pffnet_d2.config import read_config
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.thresholds import MASK_THRESHOLDS, SCORE_THRESHOLDS, Choice, write_choice
from pffnet_d2.imaging.normalisation import PERCENTILE_16_BIT, Normalisation, to_rgb8
from pffnet_d2.masks.compose import instances_to_label_map
from pffnet_d2.masks.paste import instance_masks


@pytest.fixture(scope="module")
def predictor(tiny_run: Path) -> Predictor:
    return Predictor(model=tiny_run)


def picture(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 of squares."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    for y, x in rng.integers(0, (height - 20, width - 20), (8, 2)):
        image[y : y + 18, x : x + 18] += rng.integers(60, 200, 3).astype(np.uint8)
    return image


def test_equal_to_the_model_by_hand(predictor: Predictor) -> None:
    image = picture()
    prediction = predictor(image)
    model, tensor = predictor.model, torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        (output,) = model([{"image": tensor, "height": 96, "width": 128}])
    expected = instances_to_label_map(output["instances"], predictor.rule)
    assert (prediction.label_map == expected).all()
    assert prediction.label_map.max() == len(prediction.instances) > 3
    assert prediction.capped  # a random model finds as many nothings as it may


def test_instances_are_those_of_the_labels(predictor: Predictor) -> None:
    prediction = predictor(picture())
    scores = prediction.scores
    assert (np.diff(scores["score"]) <= 0).all()
    assert scores["score"] == pytest.approx(scores["class_score"] * scores["mask_quality"])
    for label, (y0, x0, mask) in enumerate(instance_masks(prediction.instances), start=1):
        full = np.zeros(prediction.label_map.shape, bool)
        full[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
        own = prediction.label_map == label
        assert own.any()
        assert full[own].all()


def test_images_of_several_sizes(predictor: Predictor) -> None:
    images = [picture(96, 128, 0), picture(64, 96, 1), picture(96, 128, 2)]
    together = predictor.predict(images)
    for image, prediction in zip(images, together, strict=True):
        (alone,) = predictor.predict([image])
        assert prediction.label_map.shape == image.shape[:2]
        assert (alone.label_map == prediction.label_map).mean() > 0.99
        np.testing.assert_allclose(alone.scores["score"][:3], prediction.scores["score"][:3], rtol=1e-3)


def test_files_and_arrays_of_any_depth(predictor: Predictor, tmp_path: Path) -> None:
    deep = picture()[..., 0].astype(np.uint16) * 100
    tifffile.imwrite(tmp_path / "a.tif", deep)
    expected = predictor(to_rgb8(deep, PERCENTILE_16_BIT)).label_map
    assert (predictor(deep).label_map == expected).all()
    assert (predictor(tmp_path / "a.tif").label_map == expected).all()
    assert (predictor(str(tmp_path / "a.tif")).label_map == expected).all()


def test_a_given_normalisation(tiny_run: Path) -> None:
    dark = picture() // 8
    stretched = Predictor(model=tiny_run, normalisation=Normalisation("percentile", 0, 100)).normalise(dark)
    assert stretched.max() == 255
    assert Predictor(model=tiny_run).normalise(dark).max() == dark.max()


def sized(run: Path, diameter: float | None, *opts: str) -> Predictor:
    """The tiny model, which knows diameter 20, and takes the coloured squares without a word."""
    config, weights = run / "config.yaml", run / "model_final.pth"
    return Predictor(config, weights, diameter=diameter, opts=["MODEL.PFFNET.IMAGES", "", *opts])


def test_diameter(tiny_run: Path) -> None:
    """The network sees the image resized; boxes, masks and label map are of the original."""
    image = picture(90, 120)
    same = sized(tiny_run, 20)
    assert same.scale == 1
    assert same.network_size(90, 120) == (90, 120)
    as_it_is = sized(tiny_run, None)(image)
    assert (same(image).label_map == as_it_is.label_map).all()

    predictor = sized(tiny_run, 30)
    assert predictor.network_size(90, 120) == (60, 80)
    resized = np.asarray(Image.fromarray(image[:, :, ::-1]).resize((80, 60), Image.Resampling.BILINEAR))
    tensor = torch.from_numpy(resized.transpose(2, 0, 1).copy())
    with torch.no_grad():
        (output,) = predictor.model([{"image": tensor}])
    prediction = predictor(image)
    assert prediction.label_map.shape == (90, 120)
    assert len(prediction.instances) > 3
    small = output["instances"].pred_boxes.tensor * 1.5
    for box in prediction.instances.pred_boxes.tensor:
        assert (small - box).abs().amax(1).min() < 1e-3
    for label, (y0, x0, mask) in enumerate(instance_masks(prediction.instances), start=1):
        own = prediction.label_map == label
        rows, columns = np.nonzero(own)
        assert y0 <= rows.min() <= rows.max() < y0 + mask.shape[0]
        assert x0 <= columns.min() <= columns.max() < x0 + mask.shape[1]


def test_a_reduced_image_is_predicted_as_the_original(tiny_run: Path) -> None:
    """Of an image twice as large with twice the diameter the network sees the same image again."""
    image = picture(64, 96)
    large = image.repeat(2, axis=0).repeat(2, axis=1)
    predictor = sized(tiny_run, 40)
    seen = predictor.backend.input_of(large, predictor.network_size(128, 192))
    assert (seen["height"], seen["width"]) == (128, 192)
    difference = seen["image"].numpy().transpose(1, 2, 0)[:, :, ::-1].astype(int) - image
    assert np.abs(difference).mean() < 8  # the triangular filter reaches over the neighbours
    assert predictor(large).label_map.shape == (128, 192)


def test_diameters_that_cannot_be(tiny_run: Path) -> None:
    for diameter in (0, -3, float("inf"), float("nan")):
        with pytest.raises(InputError, match="give the mean diameter"):
            sized(tiny_run, diameter)
    with pytest.raises(InputError, match=r"diameter 12: .*MODEL\.PFFNET\.DIAMETER 24.0"):
        sized(tiny_run, 12, "MODEL.PFFNET.DIAMETER", "0.0")
    with pytest.raises(InputError, match=r"INPUT\.MIN_SIZE_TEST resizes images already; set it to 0"):
        sized(tiny_run, 12, "INPUT.MIN_SIZE_TEST", "800")
    with pytest.raises(InputError, match="no object of diameter 200 fits into 64 x 96 pixels"):
        sized(tiny_run, 200)(picture(64, 96))
    tiny = sized(tiny_run, 0.1)  # 200 times larger
    with pytest.raises(InputError, match=r"64 x 96 pixels as 12800 x 19200, more than 33,554,432; give a larger"):
        tiny(picture(64, 96))


# They find objects of any number and size.
OF_RANDOM_WEIGHTS = ".*(objects may be missing|the objects found measure)"


def test_an_image_the_model_was_not_made_for(tiny_run: Path, tmp_path: Path) -> None:
    image = picture(64, 96)
    grey = image.min(axis=2)
    predictor = Predictor(model=tiny_run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=OF_RANDOM_WEIGHTS)
        predictor(grey)
    with pytest.warns(UserWarning, match="the image: bright background.*invert"):
        predictor(255 - grey)
    inverted = Predictor(model=tiny_run, invert=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=OF_RANDOM_WEIGHTS)
        assert (inverted(255 - grey).label_map == predictor(grey).label_map).all()
    with pytest.warns(UserWarning, match="leave out --invert"):
        inverted(grey)
    Image.fromarray(255 - image).save(tmp_path / "pink.png")
    with pytest.warns(UserWarning, match=r"pink\.png: coloured on a bright background"):
        predictor(tmp_path / "pink.png")
    any_image = Predictor(model=tiny_run, opts=["MODEL.PFFNET.IMAGES", ""])
    assert not any_image.doubt(255 - image)
    with pytest.raises(InputError, match=r"MODEL\.PFFNET\.IMAGES 'xray'"):
        Predictor(model=tiny_run, opts=["MODEL.PFFNET.IMAGES", "xray"])


def test_tiles_of_a_model_of_squares(tiny_run: Path, tmp_path: Path) -> None:
    """Tiles are resized as images are, which shows their objects at another scale: one line says so."""
    image = picture(90, 120)
    done = sized(tiny_run, None, "INPUT.SQUARE.TEST", "128").predict_large(image, tmp_path, tile=64, overlap=24)
    assert done.warnings()[0] == (
        "INPUT.SQUARE.TEST 128 resizes every tile of 64 x 64 pixels, so the network sees objects 2 times as large; "
        "choose --tile as large as the images of training"
    )
    same = sized(tiny_run, None, "INPUT.SQUARE.TEST", "64").predict_large(image, tmp_path, tile=64, overlap=24)
    assert not any("resizes" in line for line in same.warnings())


def test_a_config_in_hand_is_not_changed(tiny_run: Path) -> None:
    cfg = read_config(str(tiny_run / "config.yaml"), ["MODEL.WEIGHTS", str(tiny_run / "model_final.pth")])
    before = cfg.dump()
    predictor = Predictor(cfg, thresholds={"SCORE_THRESH": 0.25, "MIN_SIZE": 9, "FILL_HOLES": True})
    assert cfg.dump() == before
    assert predictor.rule.score_threshold == 0.25
    assert predictor.rule.min_size == 9
    assert predictor.rule.fill_holes is True
    assert pffnet_d2.Predictor is Predictor


def test_thresholds_of_a_file(tiny_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    file.write_text("SCORE_THRESH: 0.35\nMASK_THRESH: 0\n")
    rule = Predictor(model=tiny_run, thresholds=file).rule
    assert (rule.score_threshold, rule.mask_threshold, rule.max_covered) == (0.35, 0.0, 0.7)
    found = Choice(0.25, 0.45, 0.9, 0.8, 3, np.zeros((len(SCORE_THRESHOLDS), len(MASK_THRESHOLDS))))
    write_choice(file, found, metric="AJI", dataset_name="mine_val", base=tmp_path / "config.yaml")
    rule = Predictor(model=tiny_run, thresholds=file).rule
    assert (rule.score_threshold, rule.mask_threshold) == (0.25, 0.45)
    for text, words in (
        ("SCORE: 0.3", r"best\.yaml: unknown key SCORE; use .*SCORE_THRESH"),
        ("SCORE_THRESH: high", r"SCORE_THRESH 'high': give a number from 0 to below 1"),
        ("MIN_SIZE: 2.5", r"MIN_SIZE 2\.5: give a whole number"),
        ("FILL_HOLES: 1", "FILL_HOLES 1: give true or false"),
        ("- 1", "contains no keys"),
        ("MODEL: {PFFNET: 3}", "has no MODEL.PFFNET.LABEL_MAP"),
        ("a: [", "is not a YAML file"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            Predictor(model=tiny_run, thresholds=str(file))
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        Predictor(model=tiny_run, thresholds=tmp_path / "none.yaml")


def test_what_does_not_belong_together(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_final\.pth: does not fit the model"):
        Predictor(model=tiny_run, opts=["MODEL.FPN.OUT_CHANNELS", "64"])
    with pytest.raises(InputError, match=r"no\.pth: no such weights file"):
        Predictor(tiny_run / "config.yaml", tmp_path / "no.pth")
    with pytest.raises(InputError, match="no weights; give"):
        Predictor(tiny_run / "config.yaml")
    with pytest.raises(InputError, match="device cuda:97: cannot be used here; there is cpu"):
        Predictor(model=tiny_run, device="cuda:97")
    with pytest.raises(InputError, match="device gpu: cannot be used here"):
        Predictor(model=tiny_run, device="gpu")
