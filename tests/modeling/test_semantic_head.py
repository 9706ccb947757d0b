from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from pffnet_d2.modeling.semantic_head import BoundaryRefinement, GCNHead, GlobalConvolution

PAPER = {f"res{i}": ShapeSpec(channels=64 * 2**i, stride=2**i) for i in (2, 3, 4, 5)}
SMALL = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in (2, 3, 4, 5)}


def test_parameters_at_the_papers_widths() -> None:
    """Global convolutions 205, 369, 697 and 1,352 thousand, seven refinements of 73,984, classifier 130: 3.14 M."""
    head = GCNHead(PAPER, num_classes=2)
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in head.global_convs.items()}
    assert sizes == {"res2": 205_056, "res3": 368_896, "res4": 696_576, "res5": 1_351_936}
    refinement = sum(p.numel() for p in BoundaryRefinement(64, "GN", False).parameters())
    assert refinement == 73_984
    assert sum(p.numel() for p in head.parameters()) == sum(sizes.values()) + 7 * refinement + 130


def test_global_convolution_sees_five_by_five() -> None:
    block = GlobalConvolution(1, 2)
    x = torch.zeros(1, 1, 15, 15)
    baseline = block(x)
    x[0, 0, 7, 7] = 1
    changed = (block(x) != baseline).any(1)[0].nonzero()
    assert changed.min(0).values.tolist() == [5, 5]
    assert changed.max(0).values.tolist() == [9, 9]


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_logits_loss_and_ignored_pixels(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = GCNHead(SMALL, num_classes=2, conv_dim=32, loss_weight=0.1)
    features = {k: torch.randn(2, 8, size[0] // s.stride, size[1] // s.stride) for k, s in SMALL.items()}
    logits, losses = head(features)
    assert logits.shape == (2, 2, *size)
    assert losses == {}
    assert torch.equal(logits[:, :, ::4, ::4], logits[:, :, 3::4, 3::4])  # nearest upsampling by 4

    target = torch.randint(0, 2, (2, *size))
    target[:, :, 16:] = 255
    _, losses = head(features, target)
    expected = torch.nn.functional.cross_entropy(logits[..., :16], target[..., :16])
    torch.testing.assert_close(losses["loss_sem_seg"], 0.1 * expected)


@pytest.mark.parametrize("relu", [False, True])
def test_decoder_is_the_papers(relu: bool) -> None:
    """From coarse to fine: refine the global convolution of each level, add the coarser level, refine again."""
    torch.manual_seed(0)
    head = GCNHead(SMALL, num_classes=2, conv_dim=32, relu=relu)
    features = {k: torch.randn(1, 8, 64 // s.stride, 64 // s.stride) for k, s in SMALL.items()}

    def conv(x: torch.Tensor, layer: torch.nn.Conv2d) -> torch.Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=[k // 2 for k in layer.kernel_size])

    def refine(x: torch.Tensor, block: BoundaryRefinement) -> torch.Tensor:
        y = F.group_norm(conv(x, block.conv1), 32, block.conv1.norm.weight, block.conv1.norm.bias)
        y = F.group_norm(conv(y.relu() if relu else y, block.conv2), 32, block.conv2.norm.weight, block.conv2.norm.bias)
        return x + y

    x = None
    for name in ("res5", "res4", "res3", "res2"):
        block = head.global_convs[name]
        (a, b), (c, d) = block.left, block.right
        assert [m.kernel_size for m in (a, b, c, d)] == [(5, 1), (1, 5), (1, 5), (5, 1)]
        level = refine(
            conv(conv(features[name], a), b) + conv(conv(features[name], c), d), head.level_refinements[name]
        )
        if x is not None:
            level = level + x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            level = refine(level, head.merge_refinements[name])
        x = level
    expected = conv(x, head.predictor).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(head(features)[0], expected, rtol=1e-4, atol=1e-4)


def test_relu_key_changes_the_function() -> None:
    torch.manual_seed(0)
    plain = BoundaryRefinement(32, "GN", relu=False)
    relu = BoundaryRefinement(32, "GN", relu=True)
    relu.load_state_dict(plain.state_dict())
    x = torch.randn(1, 32, 8, 8)
    torch.testing.assert_close(plain(x), x + plain.conv2(plain.conv1(x)))
    torch.testing.assert_close(relu(x), x + plain.conv2(plain.conv1(x).relu()))


def test_wrong_stride() -> None:
    with pytest.raises(ValueError, match=r"the finest of .* must have stride 4"):
        GCNHead({"res3": ShapeSpec(channels=8, stride=8)}, num_classes=2)
