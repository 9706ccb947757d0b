"""FCN-8s: its layers against their definition, its loss by hand, its instances from foregrounds drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import BitMasks
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from torchvision.models import vgg16

from pffnet_d2 import Predictor
from pffnet_d2.config import config_path, read_config
from pffnet_d2.errors import InputError
from pffnet_d2.masks.compose import instances_to_label_map
from pffnet_d2.model_zoo.checkpoint import Checkpointer
from pffnet_d2.modeling.fcn8s import FCN8s, bilinear_upsampling, erode_label_grow

TINY: dict[str, Any] = {
    "widths": (4, 4, 6, 8, 8),
    "fc_dim": 10,
    "pixel_mean": [10.0, 20.0, 30.0],
    "pixel_std": [2.0] * 3,
}


@pytest.fixture
def model() -> FCN8s:
    torch.manual_seed(0)
    return FCN8s(**TINY)


# --- Erode, label, grow ---------------------------------------------------------------------------------------------


def discs(shape: tuple[int, int], *circles: tuple[float, float, float]) -> np.ndarray:
    """Union of (row, column, radius)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 <= r * r for cy, cx, r in circles], axis=0)


def test_touching_discs_are_split_and_complete() -> None:
    circles = (20, 15, 12.0), (20, 37, 12.0)  # they share 4 columns
    foreground = discs((41, 53), *circles)
    assert ndimage.label(foreground)[1] == 1
    parts = erode_label_grow(foreground, 7)
    assert len(np.unique(parts[foreground])) == 2
    np.testing.assert_array_equal(parts > 0, foreground)
    # Each side of the middle column belongs to its disc.
    left, right = parts[20, 15], parts[20, 37]
    assert (parts[:, :26][foreground[:, :26]] == left).all()
    assert (parts[:, 27:][foreground[:, 27:]] == right).all()
    # Labelling after the opening would not split the discs.
    opened = ndimage.binary_opening(foreground, discs((15, 15), (7, 7, 7)))
    assert ndimage.label(opened)[1] == 1


def test_by_hand() -> None:
    # Two 3 x 3 squares joined by one pixel, a pixel that touches a corner diagonally, and a single pixel.
    rows = ["###.###..", "#######.#", "###.###..", ".......#."]
    foreground = np.array([[c == "#" for c in row] for row in rows])
    framed = np.pad(foreground, 1)
    parts = erode_label_grow(framed, 1)[1:-1, 1:-1]
    ids = [parts[1, 1], parts[1, 5], parts[1, 8], parts[3, 7]]
    assert len(set(ids)) == 4
    assert 0 not in ids
    assert (parts[:3, :3] == ids[0]).all()
    assert (parts[:3, 4:7] == ids[1]).all()
    assert parts[1, 3] in ids[:2]  # the bridge is equally near to both
    assert np.count_nonzero(parts) == np.count_nonzero(foreground)
    # Without erosion the joined squares are one object.
    assert len(np.unique(erode_label_grow(foreground, 0))) - 1 == 3


def test_the_foreground_is_not_eroded_at_the_border_of_the_image() -> None:
    # A nucleus cut by the border, with 3 visible pixels, joined by a strand to one inside.
    foreground = np.zeros((12, 30), bool)
    foreground[:3, 2:12] = True
    foreground[1, 12:16] = True
    foreground[0:8, 16:26] = True
    parts = erode_label_grow(foreground, 2)
    assert parts[0, 2] != parts[4, 20]
    assert len(np.unique(parts)) == 3


def test_nothing_and_everything() -> None:
    nothing = erode_label_grow(np.zeros((4, 5), bool), 3)
    assert nothing.dtype == np.int32
    assert not nothing.any()
    everything = erode_label_grow(np.ones((4, 5), bool), 3)
    assert everything.min() == everything.max() > 0


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14)), st.integers(0, 3))
def test_parts_fill_the_foreground(foreground: np.ndarray, radius: int) -> None:
    parts = erode_label_grow(foreground, radius)
    np.testing.assert_array_equal(parts > 0, foreground)
    ids = np.unique(parts[parts > 0])
    assert all(ndimage.label(parts == i)[1] == 1 for i in ids)  # 4-connected
    whole, count = ndimage.label(foreground)
    disc = discs((2 * radius + 1, 2 * radius + 1), (radius, radius, radius))
    seeds, seeded = ndimage.label(ndimage.binary_erosion(foreground, disc, border_value=1))
    assert len(ids) == seeded + count - len(np.unique(whole[seeds > 0]))
    # No two seeds end up in the same part.
    assert len({(seeds[y, x], parts[y, x]) for y, x in np.argwhere(seeds)}) == seeded


# --- Layers ---------------------------------------------------------------------------------------------------------


def paper_model() -> FCN8s:
    cfg = read_config(str(config_path("dsb2018/FCN8s.yaml")), ["INPUT.SQUARE.TRAIN", "0"])
    with torch.device("meta"):
        return FCN8s(**FCN8s.from_config(cfg))


def test_the_papers_model_has_vggs_parameters() -> None:
    fcn = paper_model()
    # 13 convolutions and two fully connected layers of VGG-16; scores; upsampling 2 x 2 classes of 4, 4 and 16 squared
    vgg = 14_714_688 + (512 * 7 * 7 + 1) * 4096 + (4096 + 1) * 4096
    assert sum(p.numel() for p in fcn.backbone.parameters()) == vgg
    scores, ups = 2 * (4096 + 512 + 256 + 3), 4 * (4 * 4 + 4 * 4 + 16 * 16)
    assert sum(p.numel() for p in fcn.parameters()) == vgg + scores + ups == 134_271_430
    decayed = {id(p) for p in fcn.parameters()} - {id(p) for p in fcn.without_weight_decay()}
    names = [name for name, p in fcn.named_parameters() if id(p) in decayed and name.endswith("weight")]
    assert len(names) == 13 + 3


def test_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        theirs = vgg16().state_dict()
    ours = paper_model().backbone.state_dict()
    renamed = {name.replace("fc6", "classifier.0").replace("fc7", "classifier.3"): v for name, v in ours.items()}
    assert set(theirs) - set(renamed) == {"classifier.6.weight", "classifier.6.bias"}
    for name, value in renamed.items():
        assert value.flatten(1).shape == theirs[name].flatten(1).shape if value.ndim > 1 else value.shape


@pytest.mark.parametrize("size", [(64, 96), (1, 1), (5, 7), (33, 70)])
def test_any_size_and_strides(model: FCN8s, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    maps = model.backbone(x)
    for stride, channels, got in zip((8, 16, 32), (6, 8, 10), maps, strict=True):
        assert got.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert model.logits(x).shape == (2, 2, *size)


@pytest.mark.parametrize("factor", [2, 8])
def test_upsampling_starts_as_bilinear_interpolation(factor: int) -> None:
    x = torch.rand(1, 2, 6, 5)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inner = slice(factor, -factor)  # outside, one reads zeros and the other repeats the edge
    torch.testing.assert_close(bilinear_upsampling(factor)(x)[..., inner, inner], expected[..., inner, inner])


def test_scores_are_added_from_coarse_to_fine(model: FCN8s) -> None:
    """The scores are upsampled by 2, 2 and 8, and cut at the lower and right edges."""
    model.eval()
    x = torch.rand(1, 3, 201, 230)

    def up(score: torch.Tensor, factor: int, size: torch.Size) -> torch.Tensor:
        larger = F.interpolate(score, scale_factor=float(factor), mode="bilinear", align_corners=False)
        return larger[..., : size[-2], : size[-1]]

    with torch.no_grad():
        pool3, pool4, fc7 = model.backbone(x)
        at_16 = model.score_pool4(pool4) + up(model.score_fc7(fc7), 2, pool4.shape)
        at_8 = model.score_pool3(pool3) + up(at_16, 2, pool3.shape)
        inner = (..., slice(48, -48), slice(48, -48))  # at edges the first upsampling reads zeros, the second the edge
        torch.testing.assert_close(model.logits(x)[inner], up(at_8, 8, x.shape)[inner])


# --- Weights --------------------------------------------------------------------------------------------------------


def torchvision_like(fcn: FCN8s) -> dict[str, torch.Tensor]:
    """Random weights in the form of torchvision's file, for the widths of ``fcn``."""
    own = fcn.backbone.state_dict()
    given = {name: torch.randn_like(value) for name, value in own.items() if name.startswith("features")}
    for theirs, ours in (("classifier.0", "fc6"), ("classifier.3", "fc7")):
        given[f"{theirs}.weight"] = torch.randn_like(own[f"{ours}.weight"]).flatten(1)
        given[f"{theirs}.bias"] = torch.randn_like(own[f"{ours}.bias"])
    return given | {"classifier.6.weight": torch.randn(1000, 10), "classifier.6.bias": torch.randn(1000)}


def test_torchvisions_weights_start_the_backbone(model: FCN8s, tmp_path: Path) -> None:
    given = torchvision_like(model)
    score = model.score_fc7.weight.clone()
    torch.save(given, tmp_path / "vgg16.pth")
    Checkpointer(model).load(str(tmp_path / "vgg16.pth"), checkpointables=[])
    assert torch.equal(model.backbone.features[28].weight, given["features.28.weight"])
    assert torch.equal(model.score_fc7.weight, score)
    # On the 7 x 7 map it was trained on, fc6 is the fully connected layer.
    x = torch.rand(1, 8, 7, 7)
    expected = F.linear(x.flatten(1), given["classifier.0.weight"], given["classifier.0.bias"])
    torch.testing.assert_close(model.backbone.fc6(x)[..., 3, 3], expected, rtol=1e-4, atol=1e-4)


def test_wrong_weights_end_in_one_line(model: FCN8s, tmp_path: Path) -> None:
    def starting_from(given: dict[str, torch.Tensor]) -> str:
        torch.save(given, tmp_path / "file.pth")
        with pytest.raises(InputError) as error:
            Checkpointer(model).load(str(tmp_path / "file.pth"), checkpointables=[])
        message = str(error.value)
        assert message.startswith(f"{tmp_path / 'file.pth'}: ")
        assert "\n" not in message
        return message

    good = torchvision_like(model)
    wide = {**good, "features.0.weight": torch.rand(64, 3, 3, 3)}
    assert "features.0.weight has the shape (64, 3, 3, 3) in the file, (4, 3, 3, 3) here" in starting_from(wide)
    no_classifier = {**good, "classifier.0.weight": torch.full_like(good["classifier.0.weight"], math.nan)}
    assert "classifier.0.weight holds values that are not finite" in starting_from(no_classifier)
    less = {name: value for name, value in good.items() if name != "features.5.bias"}
    assert "backbone.features.5.bias missing" in starting_from(less)
    assert "does not fit the model" in starting_from({"layer1.0.conv1.weight": torch.rand(4, 4)})


# --- Training -------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_cross_entropy_of_pixels_with_truth(model: FCN8s, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.zeros(3, 2, 2), torch.zeros(3, 1, 2)
    logits = torch.zeros(2, 2, 2, 2)
    logits[0, 1] = math.log(3)  # foreground 3/4
    logits[1, 1, 0] = -math.log(3)  # 1/4; the row below is padding
    logits[1, :, 1] = torch.tensor([[50.0], [-50.0]])
    monkeypatch.setattr(model, "logits", lambda images: logits)
    batch = [
        {"image": a, "sem_seg": torch.tensor([[1, 1], [0, 255]])},
        {"image": b, "sem_seg": torch.tensor([[1, 0]])},
    ]
    loss = model.train()(batch)["loss_sem_seg"]
    # -ln of the truth's probability: 3/4, 3/4, 1/4 of the first image, 1/4, 3/4 of the second
    assert loss.item() == pytest.approx(-(3 * math.log(3 / 4) + 2 * math.log(1 / 4)) / 5)


def test_images_are_normalised(model: FCN8s, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(model, "logits", lambda images: seen.append(images) or torch.zeros(1, 2, 2, 2))
    model.eval()([{"image": torch.full((3, 2, 2), 40.0)}])
    assert seen[0][0, :, 0, 0].tolist() == [15, 10, 5]


@pytest.mark.parametrize("shapes", [[(96, 96, 4), (70, 96, 2)], [(64, 64, 0)]])
def test_a_step_and_a_prediction(make_batch: Callable, shapes: list[tuple[int, int, int]]) -> None:
    cfg = read_config(
        str(config_path("dsb2018/FCN8s_compact.yaml")), ["MODEL.DEVICE", "cpu", "INPUT.SQUARE.TRAIN", "0"]
    )
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = make_batch(*shapes)
    losses = model(batch)
    assert set(losses) == {"loss_sem_seg"}
    losses["loss_sem_seg"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    model.eval()
    with torch.no_grad():
        results = model([{"image": x["image"], "height": 80, "width": 90} for x in batch])
    for result in results:
        assert result["instances"].pred_masks.shape == (len(result["instances"]), 80, 90)
        assert result["sem_seg"].shape == (2, 80, 90)


def test_dropout_only_in_training(model: FCN8s) -> None:
    torch.manual_seed(1)
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(model.train().logits(x), model.logits(x))
    assert torch.equal(model.eval().logits(x), model.logits(x))


# --- Instances ------------------------------------------------------------------------------------------------------


def predicted(
    model: FCN8s, foreground: np.ndarray, monkeypatch: pytest.MonkeyPatch, paste_masks: bool = True, **more: Any
) -> Any:
    """Instances where the network gives these foreground probabilities (H, W)."""
    p = torch.from_numpy(foreground).float()
    monkeypatch.setattr(model, "logits", lambda images: torch.stack([1 - p, p]).log()[None])
    (result,) = model.eval()([{"image": torch.zeros(3, *foreground.shape), **more}], paste_masks)
    return result["instances"]


def test_instances_by_hand(model: FCN8s, monkeypatch: pytest.MonkeyPatch) -> None:
    probability = np.full((8, 12), 0.1)
    probability[1:4, 1:5] = 0.6
    probability[5:8, 6:12] = 0.8
    probability[5, 6] = 0.9
    probability[0, 11] = 0.5  # one half is background
    found = predicted(model, probability, monkeypatch)
    assert found.image_size == (8, 12)
    assert found.pred_boxes.tensor.tolist() == [[6, 5, 12, 8], [1, 1, 5, 4]]
    assert found.scores.tolist() == pytest.approx([(17 * 0.8 + 0.9) / 18, 0.6])
    assert found.pred_classes.tolist() == [0, 0]
    np.testing.assert_array_equal(found.pred_masks[0].numpy(), probability > 0.7)
    assert instances_to_label_map(found).max() == 2

    windows = predicted(model, probability, monkeypatch, paste_masks=False)
    np.testing.assert_array_equal(windows.pred_masks.tensor.numpy(), found.pred_masks.numpy())
    np.testing.assert_array_equal(instances_to_label_map(windows), instances_to_label_map(found))
    model.max_instances = 1
    assert predicted(model, probability, monkeypatch).pred_boxes.tensor.tolist() == [[6, 5, 12, 8]]


@pytest.mark.parametrize("paste_masks", [True, False])
def test_an_image_without_nuclei(model: FCN8s, monkeypatch: pytest.MonkeyPatch, paste_masks: bool) -> None:
    found = predicted(model, np.full((6, 9), 0.2), monkeypatch, paste_masks)
    assert len(found) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert len(found.pred_masks) == 0
    assert not instances_to_label_map(found).any()


def test_masks_are_of_the_original_size(model: FCN8s, monkeypatch: pytest.MonkeyPatch) -> None:
    probability = np.full((10, 10), 0.01)
    probability[:, :5] = 0.99
    found = predicted(model, probability, monkeypatch, height=20, width=40)
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 20, 20]]
    assert BitMasks(found.pred_masks).get_bounding_boxes().tensor.tolist() == [[0, 0, 20, 20]]


@pytest.mark.usefixtures("leave_no_trace")
def test_predictor(tmp_path: Path) -> None:
    config, weights = str(config_path("dsb2018/FCN8s_compact.yaml")), tmp_path / "model.pth"
    torch.manual_seed(3)
    model = build_model(read_config(config, ["MODEL.DEVICE", "cpu"]))
    torch.save({"model": model.state_dict()}, weights)
    predictor = Predictor(config, weights, device="cpu")
    rng = np.random.default_rng(0)
    for shape in ((70, 90), (5, 7)):
        image = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
        prediction = predictor(image)
        with torch.no_grad():
            (result,) = model.eval()([{"image": torch.from_numpy(image.transpose(2, 0, 1))}])
        foreground = (result["sem_seg"][1] > result["sem_seg"][0]).numpy()
        np.testing.assert_array_equal(prediction.label_map > 0, foreground)
        assert len(prediction.instances) == prediction.label_map.max()
        assert list(prediction.scores) == ["score"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.FCN8S.WIDTHS", "[8, 8]"], r"MODEL\.FCN8S\.WIDTHS \[8, 8\]: give a list of 5"),
        (["MODEL.FCN8S.EROSION_RADIUS", "-1"], r"MODEL\.FCN8S\.EROSION_RADIUS -1"),
        (["MODEL.PFFNET.OUTPUTS", "['instances', 'panoptic']"], r"MODEL\.PFFNET\.OUTPUTS: FCN8s has no panoptic"),
    ],
)
def test_mistakes_in_keys(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(read_config(str(config_path("dsb2018/FCN8s_compact.yaml")), ["MODEL.DEVICE", "cpu", *options]))
