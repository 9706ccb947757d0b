"""Targets by hand and by a simple loop, losses by hand, and decoding as the inverse of encoding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pffnet_d2.errors import InputError
from pffnet_d2.modeling.object_guided.centre_head import (
    CentreHead,
    CentreLosses,
    Gaussian,
    decode,
    focal_loss,
    gaussian_radius,
    heatmap_target,
    to_centres,
    to_corners,
)


def test_boxes_are_pixel_indices() -> None:
    """The pixels 10..17 by 20..20: centre 13.5, 20."""
    box = torch.tensor([[10.0, 20, 18, 21]])
    assert to_centres(box).tolist() == [[13.5, 20, 8, 1]]
    torch.testing.assert_close(to_corners(to_centres(box)), box)


def test_radii() -> None:
    """Squares of n cells: the released code's whole radii, and 0.273 and 0.082 of the side."""
    sides = torch.tensor([1.0, 3, 4, 7, 8, 10, 16, 32, 64])
    squares = sides[:, None].expand(-1, 2)
    assert gaussian_radius(squares, 0.7, False).int().tolist() == [0, 0, 1, 1, 2, 2, 4, 8, 17]
    torch.testing.assert_close(gaussian_radius(squares, 0.7, False), 0.2733 * sides, rtol=1e-3, atol=0)
    torch.testing.assert_close(gaussian_radius(squares, 0.7, True), 0.0817 * sides, rtol=1e-3, atol=0)


@given(st.floats(2, 60), st.floats(2, 60), st.floats(0.3, 0.9))
def test_an_exact_radius_keeps_the_overlap(w: float, h: float, overlap: float) -> None:
    """Of the three ways to move both corners by r, the worst gives exactly the overlap."""
    r = float(gaussian_radius(torch.tensor([[w, h]]), overlap, True))
    shifted = (w - r) * (h - r) / (2 * w * h - (w - r) * (h - r))
    inwards = (w - 2 * r) * (h - 2 * r) / (w * h)
    outwards = w * h / ((w + 2 * r) * (h + 2 * r))
    assert min(shifted, inwards, outwards) == pytest.approx(overlap, abs=1e-3)


def drawn_by_loop(cells: list[list[float]], classes: list[int], shape: tuple[int, int, int]) -> torch.Tensor:
    target = torch.zeros(shape)
    for (cx, cy, w, h), number in zip(cells, classes, strict=True):
        r = max(0, int(gaussian_radius(torch.tensor([[math.ceil(w), math.ceil(h)]]).float(), 0.7, False)))
        for y in range(max(0, int(cy) - r), min(shape[1], int(cy) + r + 1)):
            for x in range(max(0, int(cx) - r), min(shape[2], int(cx) + r + 1)):
                value = math.exp(-((x - int(cx)) ** 2 + (y - int(cy)) ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
                target[number, y, x] = max(float(target[number, y, x]), value)
    return target


def test_heatmap_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(150, 4, generator=generator) * torch.tensor([30.0, 20, 25, 25]) + torch.tensor([0, 0, 0.2, 0.2])
    classes = torch.randint(0, 2, (150,), generator=generator)
    target = heatmap_target(cells, classes, (2, 20, 30), Gaussian())
    torch.testing.assert_close(target, drawn_by_loop(cells.tolist(), classes.tolist(), (2, 20, 30)))
    assert heatmap_target(cells[:0], classes[:0], (2, 20, 30), Gaussian()).max() == 0


def test_heatmap_by_hand() -> None:
    """4 x 4 cells: r 1. One cell away exp(-1 / (2 / 4)) with the code's sigma 1/2, exp(-1 / (2 / 9)) with r / 3."""
    cells = torch.tensor([[2.9, 1.2, 4.0, 4.0]])
    one = torch.zeros(1, dtype=torch.int64)
    for sigma, beside in (("code", math.exp(-2)), ("paper", math.exp(-4.5))):
        target = heatmap_target(cells, one, (1, 4, 6), Gaussian(sigma=sigma))[0]
        assert target[1, 2] == 1
        assert target[1, 3] == pytest.approx(beside)
        assert target[2, 3] == pytest.approx(beside**2)
        assert int((target > 0).sum()) == 9
    # For a single cell only that cell is drawn, for any sigma.
    for sigma in ("code", "paper"):
        assert heatmap_target(torch.tensor([[2.9, 1.2, 1, 1]]), one, (1, 4, 6), Gaussian(sigma=sigma)).sum() == 1


def test_focal_loss_by_hand() -> None:
    """p = 0.8 where the target is 1 and p = 0.5 where it is 0.5."""
    logits = torch.tensor([math.log(4), 0.0])
    expected = 0.2**2 * -math.log(0.8) + 0.5**4 * 0.5**2 * -math.log(0.5)
    assert float(focal_loss(logits, torch.tensor([1, 0.5]))) == pytest.approx(expected)
    # Without positives it is the sum over the negatives. Extreme logits stay finite.
    assert float(focal_loss(logits[1:], torch.tensor([0.0]))) == pytest.approx(0.25 * -math.log(0.5))
    assert focal_loss(torch.tensor([100.0, -100]), torch.tensor([0.0, 1])).isfinite()


def maps_of(cells: torch.Tensor, height: int = 8, width: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output of a perfect head for one image."""
    x, y = cells[:, 0].long(), cells[:, 1].long()
    heat, size, offset = (
        torch.full((1, 1, height, width), -9.0),
        torch.zeros(2, height, width),
        torch.zeros(2, height, width),
    )
    heat[0, 0, y, x] = 3.0 - 0.1 * torch.arange(len(cells))
    size[:, y, x] = cells[:, 2:].T
    offset[:, y, x] = (cells[:, :2] - cells[:, :2].floor()).T
    return heat, size[None], offset[None]


def test_regression_losses_by_hand() -> None:
    """Two objects and maps of zeros. The targets are w, h = 2, 3 and 1, 1 and offsets .25, .5 and 0, 0 (cells)."""
    centres = torch.tensor([[5.0, 6, 8, 12], [16, 20, 4, 4]])
    classes = torch.zeros(2, dtype=torch.int64)
    zeros = (torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8, 8))
    nothing = centres[:0], classes[:0]
    _, size, offset = CentreLosses(Gaussian())(zeros, [nothing[0], centres], [nothing[1], classes])
    assert float(size) == pytest.approx(7 / 4, rel=1e-4)
    assert float(offset) == pytest.approx(0.75 / 4, rel=1e-4)
    _, size, offset = CentreLosses(Gaussian(), "smooth_l1", "sum")(zeros, [nothing[0], centres], [nothing[1], classes])
    assert float(size) == pytest.approx(1.5 + 2.5 + 0.5 + 0.5)
    assert float(offset) == pytest.approx(0.25**2 / 2 + 0.5**2 / 2)
    _, size, offset = CentreLosses(Gaussian())(zeros, [nothing[0]] * 2, [nothing[1]] * 2)
    assert float(size) == float(offset) == 0


def test_decoding_inverts_encoding() -> None:
    centres = torch.tensor([[5.0, 6.5, 8, 12], [17, 20.25, 1, 4], [30, 2, 9, 3]])
    maps = maps_of(centres / 4)
    (found,) = decode(maps, [(32, 32)], 10, 0.3)
    torch.testing.assert_close(found.centres, centres)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert not found.full
    (found,) = decode(maps, [(32, 32)], 2, 0.3)
    torch.testing.assert_close(found.centres, centres[:2])
    assert found.full
    (found,) = decode(maps, [(32, 20)], 10, 0.3)  # the third lies in the padding
    assert len(found.centres) == 2
    (found,) = decode(maps, [(32, 32)], 10, 0.99)
    assert found.centres.shape == (0, 4)


def test_a_peak_is_the_largest_of_its_neighbourhood() -> None:
    heat = torch.full((1, 2, 8, 8), -9.0)
    heat[0, 0, 2, 2], heat[0, 0, 3, 3], heat[0, 0, 2, 5], heat[0, 1, 3, 3] = 3, 2, 1, 0.5
    size = torch.full((1, 2, 8, 8), -1.0)
    size[0, :, 2, 5] = 1e9
    (found,) = decode((heat, size, torch.zeros(1, 2, 8, 8)), [(32, 32)], 10, 0.3)
    assert found.centres[:, :2].tolist() == [[8, 8], [20, 8], [12, 12]]
    assert found.classes.tolist() == [0, 0, 1]
    assert found.centres[:, 2:].tolist() == [[1, 1], [32, 32], [1, 1]]  # between one pixel and the size of the image


def test_where_the_large_kernels_are() -> None:
    kernels = {
        large: [[layer.kernel_size[0] for layer in (branch[0], branch[2])] for branch in (h.heatmap, h.size, h.offset)]
        for large in ("size", "offset")
        for h in [CentreHead(4, dim=4, large_kernel=large)]
    }
    assert kernels == {"size": [[3, 1], [7, 7], [3, 1]], "offset": [[3, 1], [3, 1], [7, 7]]}
    with pytest.raises(InputError, match=r"LARGE_KERNEL 'both' is unknown; use size or offset"):
        CentreHead(4, large_kernel="both")
    with torch.no_grad():
        heat = CentreHead(4, dim=4)(torch.zeros(1, 4, 2, 2))[0]
    assert float(heat.sigmoid().mean()) == pytest.approx(0.1, abs=0.01)
