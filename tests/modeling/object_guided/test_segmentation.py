"""Objects in batches against one object after another, as in the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torch import Tensor

from pffnet_d2.modeling.object_guided.refinement import PointRefinement
from pffnet_d2.modeling.object_guided.rois import crop_masks, group
from pffnet_d2.modeling.object_guided.segmentation import SegmentationBranch

CHANNELS = (4, 5, 6, 7, 8)


def random_boxes(count: int, side: float, seed: int) -> Tensor:
    """cx, cy, w, h of objects from 1 to 130 pixels, some extending beyond the border."""
    generator = torch.Generator().manual_seed(seed)
    extent = 130 ** torch.rand(count, 2, generator=generator)
    return torch.cat([torch.rand(count, 2, generator=generator) * side, extent], dim=1)


def geometry(box: Tensor, expand: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions x and y on each level that an object reaches."""
    cx, cy, w, h = box.double().tolist()
    levels = []
    for i in range(5):
        wide, high = w * expand / 2**i, h * expand / 2**i
        if i and (wide < 2 or high < 2):
            break
        x, y = cx / 2**i, cy / 2**i
        levels.append(
            (
                np.linspace(x - wide / 2, x + wide / 2, max(2, int(wide))),
                np.linspace(y - high / 2, y + high / 2, max(2, int(high))),
            )
        )
    return levels


def read(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return map_coordinates(image, np.meshgrid(y, x, indexing="ij"), order=1, mode="grid-constant")


def one_object(branch: SegmentationBranch, maps: list[Tensor], box: Tensor) -> list[Tensor]:
    """Results of all steps for one object, coarse to fine, and its logits."""
    crops = [
        torch.from_numpy(np.stack([read(channel, x, y) for channel in level.double().numpy()])).float()[None]
        for level, (x, y) in zip(maps, geometry(box, 1.1), strict=False)
    ]
    steps = [crops[-1]]
    for i in reversed(range(len(crops) - 1)):
        join = branch.combine[i]
        low = F.interpolate(steps[-1], size=crops[i].shape[2:], mode="bilinear", align_corners=False)
        low = F.relu(F.instance_norm(join.reduce(low)))
        steps.append(F.relu(F.instance_norm(join.merge(torch.cat([crops[i], low], dim=1)))))
    return [*steps, branch.predictor(F.relu(branch.hidden(steps[-1])))]


@pytest.fixture
def branch() -> SegmentationBranch:
    torch.manual_seed(0)
    return SegmentationBranch(CHANNELS)


def random_maps(side: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(c, side >> i, side >> i, generator=generator) for i, c in enumerate(CHANNELS)]


def test_batches_equal_one_object_after_another(branch: SegmentationBranch) -> None:
    images = [random_maps(192, 1), random_maps(192, 2)]
    centres = [random_boxes(40, 192, 3), random_boxes(25, 192, 4)]
    boxes = torch.cat(centres)
    seen = []
    with torch.no_grad():
        for rois in group(centres, expand=1.1):
            logits, e1, e2 = branch(list(zip(*images, strict=True)), rois)
            for k, number in enumerate(rois.index.tolist()):
                assert rois.image[k] == int(number >= 40)
                *steps, expected = one_object(branch, images[rois.image[k]], boxes[number])
                n, m = rois.sizes[0, k].tolist()
                assert expected.shape[2:] == (m, n)
                torch.testing.assert_close(logits[k, :m, :n], expected[0, 0], rtol=0, atol=1e-4)
                # Normalisation amplifies the small rounding errors of nearly constant crops.
                torch.testing.assert_close(e1[k, :, :m, :n], steps[-1][0], rtol=0, atol=1e-3)
                assert int((rois.sizes[:, k, 0] > 0).sum()) == len(steps)
                if len(steps) > 1:
                    n, m = rois.sizes[1, k].tolist()
                    torch.testing.assert_close(e2[k, :, :m, :n], steps[-2][0], rtol=0, atol=1e-3)
                seen.append(number)
    assert sorted(seen) == list(range(65))


def test_gradients_do_not_depend_on_other_objects(branch: SegmentationBranch) -> None:
    """One batch of all objects and batches of one object give features and weights the same gradient."""
    boxes = random_boxes(12, 96, 5)

    def gradients(batches: list[Tensor]) -> list[Tensor]:
        levels = [level.requires_grad_() for level in random_maps(96, 1)]
        total = torch.zeros(())
        for batch in batches:
            for rois in group([batch], expand=1.1):
                logits, _, _ = branch([[level] for level in levels], rois)
                total = total + ((logits * rois.mask(0)[:, 0]) ** 2).sum()
        return list(torch.autograd.grad(total, [*levels, *branch.parameters()]))

    for together, alone in zip(gradients([boxes]), gradients(list(boxes.split(1))), strict=True):
        # Sums of thousands of terms, which CPUs round differently.
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=5e-4)


def test_levels_an_object_reaches() -> None:
    """[OG]'s code: sides of 4..7 pixels reach 2 levels, 8..14 3, 15..29 4, from 30 all five."""
    sides = torch.tensor([1.0, 4, 7, 8, 14, 15, 29, 30, 200])
    reached = {}
    for rois in group([torch.stack([sides, sides, sides, sides], dim=1)], expand=1.1):
        for number, count in zip(rois.index.tolist(), (rois.sizes[:, :, 0] > 0).sum(0).tolist(), strict=True):
            reached[int(sides[number])] = count
    assert reached == {1: 1, 4: 2, 7: 2, 8: 3, 14: 3, 15: 4, 29: 4, 30: 5, 200: 5}


def test_fixed_sizes(branch: SegmentationBranch) -> None:
    images = [random_maps(96, 1)]
    (rois,) = group([random_boxes(20, 96, 3)], expand=1.1, fixed=32)
    assert rois.shapes == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    logits, e1, e2 = branch([[level] for level in images[0]], rois)
    assert (logits.shape, e1.shape, e2.shape) == ((20, 32, 32), (20, 4, 32, 32), (20, 5, 16, 16))
    assert bool(rois.mask(0).all())


def test_no_objects_give_no_group() -> None:
    assert group([torch.zeros(0, 4), torch.zeros(0, 4)], expand=1.1) == []


def test_learned_scale_and_shift() -> None:
    """The paper's normalisation is initialised as in the code."""
    torch.manual_seed(0)
    affine = SegmentationBranch(CHANNELS, affine=True)
    torch.manual_seed(0)
    plain = SegmentationBranch(CHANNELS)
    (rois,) = group([torch.tensor([[40.0, 40, 30, 33]])], expand=1.1)
    levels = [[level] for level in random_maps(96, 1)]
    torch.testing.assert_close(affine(levels, rois)[0], plain(levels, rois)[0])
    with torch.no_grad():
        affine.combine[0].merge_norm.bias += 1
    assert not torch.allclose(affine(levels, rois)[0], plain(levels, rois)[0])


def test_soft_truth() -> None:
    """Masks are read at the points of the finest map, bilinearly between pixels, and as 0 outside the image."""
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(6, 60, 50, generator=generator) > 0.5, torch.rand(3, 64, 64, generator=generator) > 0.5]
    centres = [random_boxes(6, 60, 1), random_boxes(3, 64, 2)]
    numbers = torch.tensor([5, 4, 3, 2, 1, 0, 2, 0, 1])
    boxes = torch.cat(centres)
    for rois in group(centres, expand=1.1):
        truth = crop_masks(masks, numbers[rois.index], rois)
        for k, number in enumerate(rois.index.tolist()):
            n, m = rois.sizes[0, k].tolist()
            mask = masks[rois.image[k]][numbers[number]].double().numpy()
            expected = torch.from_numpy(read(mask, *geometry(boxes[number], 1.1)[0])).float()
            torch.testing.assert_close(truth[k, :m, :n], expected, rtol=0, atol=1e-4)
            assert float(truth[k].sum()) == pytest.approx(float(truth[k, :m, :n].sum()), rel=1e-5)


def refined_by_loop(
    head: PointRefinement, logits: Tensor, e1: Tensor, e2: Tensor | None, truth: Tensor, points: Tensor
) -> list[tuple[float, int] | None]:
    """Summed cross-entropy and number of points of both heads for one object (m, n)."""
    m, n = logits.shape
    count = m * n // head.divisor
    probability = logits.sigmoid().double().numpy()
    candidates = points[: int(head.oversample * count)].double().numpy()

    def at(image: np.ndarray, where: np.ndarray) -> np.ndarray:
        height, width = image.shape
        return map_coordinates(image, [where[:, 1] * (height - 1), where[:, 0] * (width - 1)], order=1)

    doubt = (
        at(-np.abs(2 * probability - 1), candidates) if head.map_first else -np.abs(2 * at(probability, candidates) - 1)
    )
    best = candidates[np.argsort(-doubt, kind="stable")[: int(head.keep * count)]]
    label = at(truth.double().numpy(), best)
    one = [at(c, best) for c in e1.double().numpy()]
    two = None if e2 is None else [at(c, best) for c in e2.double().numpy()]

    def loss(layer: torch.nn.Conv1d, features: list[np.ndarray]) -> tuple[float, int]:
        weight, bias = layer.weight[0, :, 0].double(), layer.bias.double()
        prediction = torch.sigmoid(weight @ torch.from_numpy(np.stack(features)) + bias).numpy()
        return float(-(label * np.log(prediction) + (1 - label) * np.log(1 - prediction)).sum()), len(best)

    single = one if head.on_e1 else two
    if not len(best):
        return [None, None]
    return [None if single is None else loss(head.single, single), None if two is None else loss(head.both, one + two)]


@settings(max_examples=12)
@given(
    st.sampled_from(["code", "figure"]),
    st.sampled_from(["map_first", "sample_first"]),
    st.sampled_from([(1.0, 1.0), (1.0, 0.5), (3.0, 3.0), (3.0, 0.75), (10.0, 0.75)]),
    st.integers(0, 99),
)
@torch.no_grad()
def test_refinement_against_a_loop(heads: str, uncertainty: str, strategy: tuple[float, float], seed: int) -> None:
    torch.manual_seed(seed)
    branch = SegmentationBranch(CHANNELS)
    head = PointRefinement((4, 5), oversample=strategy[0], keep=strategy[1], heads=heads, uncertainty=uncertainty)
    masks = torch.rand(12, 96, 96) > 0.5
    levels = [[level] for level in random_maps(96, seed)]
    seen = 0
    for rois in group([random_boxes(12, 96, seed)], expand=1.1):
        logits, e1, e2 = branch(levels, rois)
        logits = 5 * logits
        truth = crop_masks([masks], rois.index, rois)
        points = torch.rand(len(logits), int(strategy[0] * (rois.shapes[0][0] * rois.shapes[0][1] // 8)), 2)
        sums, counts = head(logits, e1, e2, truth, rois, points)
        for k in range(len(logits)):
            n, m = rois.sizes[0, k].tolist()
            n2, m2 = rois.sizes[1, k].tolist()
            expected = refined_by_loop(
                head,
                logits[k, :m, :n],
                e1[k, :, :m, :n],
                e2[k, :, :m2, :n2] if n2 else None,
                truth[k, :m, :n],
                points[k],
            )
            for column, term in enumerate(expected):
                total, count = term or (0.0, 0)
                assert int(counts[k, column]) == count
                assert float(sums[k, column]) == pytest.approx(total, rel=1e-3, abs=1e-4)
                seen += count
    assert seen


def test_points_of_a_64_x_64_patch() -> None:
    """N = 512: 1536 points are drawn, and only the 384 most uncertain ones reach the heads."""
    torch.manual_seed(0)
    head = PointRefinement((4, 5))
    (rois,) = group([torch.tensor([[40.0, 40, 30, 30]])], expand=1.1, fixed=64)
    e1, e2 = torch.randn(1, 4, 64, 64), torch.randn(1, 5, 32, 32)
    # Uncertain on the left side only.
    logits = torch.linspace(0, 20, 64).expand(1, 64, 64)
    points = torch.rand(1, 1536, 2)
    _, counts = head(logits, e1, e2, torch.zeros(1, 64, 64), rois, points)
    assert counts.tolist() == [[384, 384]]
    chosen = head._uncertain(logits, points, torch.tensor([1536]), 384, rois)[0]
    assert chosen[:, 0].max() == points[0, :, 0].sort().values[383]
