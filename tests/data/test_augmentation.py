from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import transforms as T
from skimage.color import hed2rgb, rgb2hed

from pffnet_d2.config import add_pffnet_config
from pffnet_d2.data.augmentation import (
    GREY_VALUES,
    GreyValues,
    RandomRotate90,
    RandomScale,
    RandomSquare,
    Rotate90Transform,
    ViewTransform,
    build_augmentations,
    colour,
    invert,
    stain,
)
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.errors import InputError


@pytest.fixture
def cfg() -> Any:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    return cfg


@pytest.mark.parametrize("quarters", range(4))
def test_points_boxes_and_pixels_turn_alike(quarters: int) -> None:
    rng = np.random.default_rng(quarters)
    height, width = 5, 8
    turn = Rotate90Transform(quarters, height, width)
    for _ in range(10):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        image = np.zeros((height, width), np.uint8)
        image[y, x] = 1
        turned = turn.apply_image(image)
        ((ty, tx),) = np.argwhere(turned)
        np.testing.assert_allclose(turn.apply_coords(np.array([[x + 0.5, y + 0.5]])), [[tx + 0.5, ty + 0.5]])
        np.testing.assert_allclose(turn.apply_box(np.array([[x, y, x + 1, y + 1]])), [[tx, ty, tx + 1, ty + 1]])
        np.testing.assert_array_equal(turn.apply_segmentation(image), turned)
    points = rng.uniform(0, 5, (6, 2))
    picture = rng.integers(0, 255, (height, width, 3))
    np.testing.assert_array_equal(turn.inverse().apply_image(turn.apply_image(picture)), picture)
    np.testing.assert_allclose(turn.inverse().apply_coords(turn.apply_coords(points)), points)


def test_a_quarter_is_counter_clockwise() -> None:
    assert Rotate90Transform(1, 2, 2).apply_image(np.array([[1, 2], [3, 4]])).tolist() == [[2, 4], [1, 3]]


def test_all_four_quarters_are_drawn() -> None:
    np.random.seed(0)  # noqa: NPY002  (Detectron2 draws from it)
    image = np.zeros((4, 6, 3), np.uint8)
    assert {RandomRotate90().get_transform(image).quarters for _ in range(60)} == {0, 1, 2, 3}


def test_build(cfg: Any) -> None:
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [256, 256]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (0,), 0
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["flip", "rotate90"]
    kinds = [type(a) for a in build_augmentations(cfg, True)]
    assert kinds == [T.RandomCrop, T.RandomFlip, T.RandomFlip, RandomRotate90]
    assert build_augmentations(cfg, False) == []
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.PFFNET.AUGMENTATIONS = (300, 400), 500, []
    assert [type(a) for a in build_augmentations(cfg, True)] == [T.RandomCrop, T.ResizeShortestEdge]
    assert [type(a) for a in build_augmentations(cfg, False)] == [T.ResizeShortestEdge]
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["flipp"]
    with pytest.raises(InputError, match="unknown augmentation 'flipp'; choose from flip, rotate90, scale"):
        build_augmentations(cfg, True)


def test_square_views(cfg: Any) -> None:
    """ObjectGuided: views of 0.6 to 1.3 of the longer side around centres away from the border, black outside."""
    np.random.seed(3)  # noqa: NPY002
    cfg.INPUT.SQUARE.TRAIN, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.PFFNET.AUGMENTATIONS = 64, (0,), ["hflip"]
    square, flip = build_augmentations(cfg, True)
    assert isinstance(square, RandomSquare)
    assert (flip.horizontal, flip.vertical) == (True, False)
    image = np.full((200, 300, 3), 255, np.uint8)
    sides, centres = set(), []
    for _ in range(200):
        x0, y0, x1, y1 = square.get_transform(image).src_rect
        sides.add(round((x1 - x0) / 300, 6))
        assert x1 - x0 == pytest.approx(y1 - y0)
        centres.append(((x0 + x1) / 2, (y0 + y1) / 2))
    assert sides == {0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3}
    low, high = np.min(centres, axis=0), np.max(centres, axis=0)
    assert (low >= [128, 64]).all()  # 128 does not fit twice into 200
    assert (high <= [172, 136]).all()
    square.get_transform(np.zeros((1, 2, 3), np.uint8))


def test_views_keep_image_and_labels_together() -> None:
    """The view from (-10, 5) to (20, 35) at twice the size: labels stay labels and lie where the image does."""
    image = np.zeros((40, 40, 3), np.uint8)
    labels = np.zeros((40, 40), np.int32)
    image[10:20, 4:16] = 200
    labels[10:20, 4:16] = 70_000  # more than a byte
    view = ViewTransform((-10, 5, 20, 35), (60, 60))
    moved = view.apply_segmentation(labels.view(np.uint8).reshape(40, 40, 4)).view(np.int32)[..., 0]
    expected = np.zeros((60, 60), np.int32)
    expected[10:30, 28:52] = 70_000
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(view.apply_image(image)[..., 0] > 100, expected > 0)
    np.testing.assert_allclose(view.apply_coords(np.array([[4.0, 10], [16, 20]])), [[28, 10], [52, 30]])


def test_squares_to_predict_on(cfg: Any) -> None:
    cfg.INPUT.SQUARE.TEST = 512
    for stretch, wide, high in ((False, (256, 512), (512, 256)), (True, (512, 512), (512, 512))):
        cfg.INPUT.SQUARE.STRETCH = stretch
        (resize,) = build_augmentations(cfg, False)
        for shape, expected in (((100, 200, 3), wide), ((1000, 500, 3), high)):
            given = T.AugInput(np.zeros(shape, np.uint8))
            resize(given)
            assert given.image.shape[:2] == expected


CHANGES = {**GREY_VALUES, "stain": partial(stain, 0.1, False), "colour": colour, "invert": invert}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("style", ["fluorescence", "histology"])
def test_grey_values_change_and_the_truth_does_not(name: str, style: str) -> None:
    np.random.seed(1)  # noqa: NPY002
    image, labels = synthetic_image(1, 3, style=style)
    if style == "fluorescence":
        image = np.repeat(image[..., :1], 3, axis=2)
    image = image[:200, ::-1]  # neither square nor contiguous
    semantic = (labels[:200, ::-1] > 0).astype(np.uint8)
    given = T.AugInput(image.copy()[:, ::-1][:, ::-1], sem_seg=semantic.copy(), boxes=np.array([[1.0, 2, 30, 40]]))
    transform = T.AugmentationList([GreyValues(CHANGES[name], 1.0)])(given)
    np.testing.assert_array_equal(given.sem_seg, semantic)
    np.testing.assert_array_equal(given.boxes, [[1, 2, 30, 40]])
    np.testing.assert_array_equal(transform.apply_segmentation(semantic), semantic)
    assert given.image.dtype == np.uint8
    assert given.image.shape == image.shape
    np.testing.assert_array_equal(transform.apply_image(image), given.image)  # drawn once
    grey = style == "fluorescence"
    if name in ("channel_shuffle", "stain") and grey:
        np.testing.assert_array_equal(given.image, image)
    else:
        difference = np.abs(given.image.astype(int) - image)
        # Something happened, and it is still that image; "contrast" is meant for dark fields and may halve a white one.
        assert 0 < difference.mean() < (256 if name == "invert" else 160 if name == "contrast" else 64)
    if grey:
        assert (given.image == given.image[..., :1]).all()


def draw(name: str, image: np.ndarray, seed: int = 0) -> np.ndarray:
    np.random.seed(seed)  # noqa: NPY002
    return T.AugmentationList([GreyValues(CHANGES[name], 1.0)])(T.AugInput(image)).apply_image(image)


def test_what_each_does() -> None:
    flat = np.full((40, 50, 3), (100, 150, 200), np.uint8)
    for name in ("gaussian_blur", "median_blur", "emboss", "sharpen"):
        np.testing.assert_array_equal(draw(name, flat), flat)  # nothing to smooth, no slope
    dot = np.zeros((21, 21, 3), np.uint8)
    dot[10, 10] = 200
    assert draw("median_blur", dot).max() == 0
    blurred = draw("gaussian_blur", dot)
    assert 0 < blurred.max() < 200
    assert abs(int(blurred[..., 0].sum()) - 200) < 25
    assert draw("sharpen", dot)[10, 10, 0] == 255
    ramp = np.repeat((10 * np.arange(20, dtype=np.uint8))[None, :, None], 20, axis=0).repeat(3, axis=2)
    assert (draw("emboss", ramp)[1:-1, 1:-1].astype(int) - ramp[1:-1, 1:-1] > 0).all()  # brighter to the right
    noisy = draw("gaussian_noise", flat).astype(int) - flat
    assert 1.5 < noisy.std() < 10.5
    assert abs(noisy.mean()) < 1
    orders = {tuple(draw("channel_shuffle", flat, seed)[0, 0]) for seed in range(60)}
    assert len(orders) == 5
    assert (100, 150, 200) not in orders
    assert {tuple(sorted(order)) for order in orders} == {(100, 150, 200)}


def test_jitter_keeps_the_order_of_grey_values_and_black_and_white_nearly() -> None:
    scale = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    for seed in range(20):
        turned = draw("jitter", scale, seed)[0, :, 0].astype(int)
        assert (np.diff(turned) >= 0).all()
        assert turned[0] <= 3
        assert turned[255] >= 230


def test_contrast_is_one_curve_for_all_channels() -> None:
    scale = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    curves = [draw("contrast", scale, seed)[0, :, 0].astype(int) for seed in range(40)]
    for curve in curves:
        assert (np.diff(curve) >= 0).all()
        assert curve[0] <= 20
    assert min(curve[255] for curve in curves) < 140
    assert max(curve[200] for curve in curves) > 220


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """(40, 60, 3) uint8 RGB: the three stains mixed anew in every pixel."""
    concentrations = np.random.default_rng(0).uniform(0, 0.6, (40, 60, 3))
    return np.rint(255 * hed2rgb(concentrations / np.log(1e6))).astype(np.uint8)


def restain(image: np.ndarray, sigma: float, seed: int, bgr: bool = False) -> np.ndarray:
    np.random.seed(seed)  # noqa: NPY002
    return GreyValues(partial(stain, sigma, bgr), 1.0).get_transform(image).apply_image(image)


def test_stains_are_those_of_scikit_image(tissue: np.ndarray) -> None:
    """Separated, changed and mixed again by scikit-image, whose unit of concentration is ln(10^6), wherever no stain is
    negative: it drops those."""
    separated = rgb2hed(tissue)
    positive = separated.min(axis=2) > 0
    assert positive.mean() > 0.9
    for seed in range(10):
        np.random.seed(seed)  # noqa: NPY002
        np.random.rand()  # noqa: NPY002  (whether it happens)
        factors, offsets = np.random.uniform(0.9, 1.1, 3), np.random.uniform(-0.1, 0.1, 3)  # noqa: NPY002
        expected = 255 * hed2rgb(separated * factors + offsets / np.log(1e6))
        difference = restain(tissue, 0.1, seed)[positive] - expected[positive]
        assert np.abs(difference).max() < 2.1  # (v + 1) / 256 for v / 255, and rounding
        assert np.abs(difference).mean() < 0.6


def test_stain_by_hand() -> None:
    """Haematoxylin alone, of concentration 1, becomes concentration ``factor + offset`` with the others' offsets."""
    mixed = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    image = np.empty((2, 2, 3), np.uint8)
    image[:] = np.rint(256 * np.exp(-mixed[0]) - 1)
    np.random.seed(5)  # noqa: NPY002
    np.random.rand()  # noqa: NPY002
    factors, offsets = np.random.uniform(0.8, 1.2, 3), np.random.uniform(-0.2, 0.2, 3)  # noqa: NPY002
    expected = 256 * np.exp(-(np.array([factors[0], 0, 0]) + offsets) @ mixed) - 1
    np.testing.assert_allclose(restain(image, 0.2, 5)[0, 0], np.clip(expected, 0, 255), atol=1.5)


def test_stain_without_strength_changes_no_colour() -> None:
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), axis=-1).reshape(18, -1, 3).astype(np.uint8)
    np.testing.assert_array_equal(restain(every, 0.0, 1), every)


def test_stain_follows_the_order_of_channels_and_the_seed(tissue: np.ndarray) -> None:
    changed = restain(tissue, 0.1, 3)
    mirrored = restain(np.ascontiguousarray(tissue[..., ::-1]), 0.1, 3, bgr=True)[..., ::-1]
    assert np.abs(changed.astype(int) - mirrored).max() <= 1  # sums in another order
    np.testing.assert_array_equal(changed, restain(tissue, 0.1, 3))
    assert (changed != restain(tissue, 0.1, 4)).any()


def test_colour_turns_hues_and_keeps_the_mean(tissue: np.ndarray) -> None:
    hues = []
    for seed in range(40):
        np.random.seed(seed)  # noqa: NPY002
        change = GreyValues(colour, 1.0).get_transform(tissue)
        changed = change.apply_image(tissue)
        assert abs(changed.mean() - tissue.mean()) < 3  # clipping
        patch = np.full((1, 2, 3), (200, 100, 100), np.uint8)  # hue 0; contrast around its own mean
        hue, saturation, _ = cv2.cvtColor(change.apply_image(patch), cv2.COLOR_RGB2HSV)[0, 0].astype(int)
        hues.append((2 * hue + 180) % 360 - 180)  # OpenCV counts half degrees
        assert 75 < saturation < 185  # of 255; 127 before
    assert -17 <= min(hues) < -8
    assert 8 < max(hues) <= 17


def test_invert_is_the_complement_and_stained_nuclei_become_light(tissue: np.ndarray) -> None:
    grey = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)[..., :1].repeat(3, axis=2)
    np.random.seed(0)  # noqa: NPY002
    change = GreyValues(invert, 1.0).get_transform(grey)
    np.testing.assert_array_equal(change.apply_image(grey), 255 - grey)
    inverted = GreyValues(invert, 1.0).get_transform(tissue).apply_image(tissue)
    assert (inverted == inverted[..., :1]).all()
    assert np.abs(255 - inverted[..., 0] - tissue.mean(axis=2)).max() < 1


def test_keys_give_the_strengths(cfg: Any, tissue: np.ndarray) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.FORMAT = (0,), "RGB"
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["stain", "colour", "invert", "scale"]
    cfg.INPUT.PFFNET.SCALE_RANGE, cfg.INPUT.PFFNET.STAIN_SIGMA, cfg.INPUT.PFFNET.INVERT_CHANCE = [0.8, 0.9], 0.0, 1.0
    scale, restained, coloured, inverted = build_augmentations(cfg, True)
    assert isinstance(scale, RandomScale)
    assert (scale.low, scale.high) == (0.8, 0.9)
    np.testing.assert_array_equal(restained.get_transform(tissue).apply_image(tissue), tissue)
    assert (coloured.chance, inverted.chance) == (1.0, 1.0)
    assert [a.chance for a in build_augmentations(add_defaults(["invert", "stain"]), True)[-2:]] == [0.1, 1.0]


def add_defaults(names: list[str]) -> Any:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    cfg.INPUT.PFFNET.AUGMENTATIONS = names
    return cfg


def test_scale_comes_before_the_crop_and_moves_image_and_truth_alike(cfg: Any) -> None:
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [48, 48]
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["scale"]
    kinds = [type(a) for a in build_augmentations(cfg, True)]
    assert kinds == [RandomScale, T.RandomCrop]
    image = np.zeros((100, 120, 3), np.uint8)
    image[40:60, 40:80] = 200
    labels = np.zeros((100, 120), np.int32)
    labels[40:60, 40:80] = 70_000
    np.random.seed(0)  # noqa: NPY002
    factors = []
    for _ in range(50):
        transform = RandomScale().get_transform(image)
        scaled = transform.apply_image(image)
        moved = transform.apply_segmentation(labels.view(np.uint8).reshape(100, 120, 4))
        moved = np.ascontiguousarray(moved).view(np.int32)[..., 0]
        assert scaled.shape[:2] == moved.shape
        assert set(np.unique(moved)) == {0, 70_000}
        assert np.mean((scaled[..., 0] > 100) != (moved > 0)) < 0.02
        factors.append(scaled.shape[0] / 100)
    assert 0.5 <= min(factors) < 0.6
    assert 1.8 < max(factors) <= 2
    assert abs(np.mean(np.log(factors))) < 0.15


def test_chance_is_a_fifth() -> None:
    np.random.seed(0)  # noqa: NPY002
    image = np.zeros((4, 4, 3), np.uint8)
    augmentation = GreyValues(GREY_VALUES["sharpen"], 0.2)
    hits = sum(isinstance(augmentation.get_transform(image), T.ColorTransform) for _ in range(1000))
    assert 160 < hits < 240


def test_all_names_build_and_labels_stay_labels(cfg: Any) -> None:
    """Crop, flips, turns and all changes together: image, label map and semantic map stay aligned."""
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [96, 128]
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["flip", "rotate90", *GREY_VALUES, "stain", "colour"]
    chain = T.AugmentationList(build_augmentations(cfg, True))
    np.random.seed(4)  # noqa: NPY002
    for index in range(8):
        _, labels = synthetic_image(1, index)
        image = np.repeat((labels[..., None] > 0).astype(np.uint8) * 200, 3, axis=2)
        given = T.AugInput(image, sem_seg=(labels > 0).astype(np.uint8))
        transforms = chain(given)
        turned = transforms.apply_segmentation(labels.astype(np.int32).view(np.uint8).reshape(*labels.shape, 4))
        turned = np.ascontiguousarray(turned).view(np.int32)[..., 0]
        assert given.image.shape[:2] == turned.shape == given.sem_seg.shape
        assert sorted(turned.shape) == [96, 128]
        assert set(np.unique(turned)) <= set(np.unique(labels))
        np.testing.assert_array_equal(turned > 0, given.sem_seg)
        inside = cv2.erode(given.sem_seg, np.ones((9, 9), np.uint8)) > 0
        outside = cv2.dilate(given.sem_seg, np.ones((9, 9), np.uint8)) == 0
        if inside.any():
            assert given.image[inside].min() > given.image[outside].max()
