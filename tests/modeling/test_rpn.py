"""SparseRPN against Detectron2's RPN: the overlapping pairs give the same labels and matches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from pffnet_d2.modeling.rpn import SparseRPN

SIZES = [(96, 64), (64, 160)]


@pytest.fixture
def pair(compact_cfg: Callable[..., CfgNode]) -> tuple[RPN, SparseRPN]:
    """SparseRPN and Detectron2's RPN with the same weights."""
    models = [build_model(compact_cfg("MODEL.PROPOSAL_GENERATOR.NAME", name)) for name in ("RPN", "SparseRPN")]
    plain, sparse = (model.proposal_generator for model in models)
    assert type(sparse) is SparseRPN
    sparse.load_state_dict(plain.state_dict())
    return plain, sparse


def features(rpn: RPN, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    channels = rpn.rpn_head.conv.in_channels
    strides = rpn.anchor_generator.strides
    grids = [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
    return {name: torch.randn(2, channels, *grid) for name, grid in zip(rpn.in_features, grids, strict=True)}


def objects(kind: str, size: tuple[int, int]) -> torch.Tensor:
    height, width = size
    if kind == "none":
        return torch.zeros(0, 4)
    if kind == "random":
        corner = torch.rand(40, 2) * torch.tensor([width - 2.0, height - 2.0])
        side = torch.rand(40, 2) * 50 + 1
        far = torch.minimum(corner + side, torch.tensor([float(width), float(height)]))
        return torch.cat([corner, far], dim=1)
    if kind == "whole pixels":  # many ties and duplicates
        corner = torch.randint(0, 8, (30, 2)) * 8.0
        return torch.cat([corner, corner + 16], dim=1).repeat(2, 1)
    # the whole image, one pixel, and strips along the edges
    edges = [[0, 0, width, height], [5, 5, 6, 6], [0, 0, width, 1], [width - 1, 0, width, height]]
    return torch.tensor(edges, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["none", "random", "whole pixels", "edges"])
@pytest.mark.parametrize("size", SIZES)
def test_matches_are_those_of_the_full_matrix(pair: tuple[RPN, SparseRPN], kind: str, size: tuple[int, int]) -> None:
    _, sparse = pair
    torch.manual_seed(0)
    maps = features(sparse, size)
    sparse.widths = [maps[name].shape[-1] for name in sparse.in_features]
    anchors = sparse.anchor_generator([maps[name] for name in sparse.in_features])
    every, truth = Boxes.cat(anchors), objects(kind, size)
    matches, labels = sparse._match(anchors, every.tensor, truth)
    overlap = pairwise_iou(Boxes(truth), every)
    expected, expected_labels = sparse.anchor_matcher(overlap)
    assert torch.equal(labels, expected_labels)
    if kind == "none":
        return
    assert (labels == 1).any()
    assert torch.equal(matches, expected)
    # the pairs include every overlap
    anchor, gt = sparse._pairs([level.tensor for level in anchors], truth)
    seen = torch.zeros_like(overlap, dtype=torch.bool)
    seen[gt, anchor] = True
    assert seen[overlap > 0].all()


def test_an_object_without_area_gets_no_anchor(pair: tuple[RPN, SparseRPN]) -> None:
    """Detectron2's rule would label every anchor of the image as an object."""
    _, sparse = pair
    maps = features(sparse, SIZES[0])
    sparse.widths = [maps[name].shape[-1] for name in sparse.in_features]
    anchors = sparse.anchor_generator([maps[name] for name in sparse.in_features])
    _, labels = sparse._match(anchors, Boxes.cat(anchors).tensor, torch.tensor([[9.0, 9.0, 9.0, 20.0]]))
    assert not (labels == 1).any()


def test_the_same_losses_and_proposals(pair: tuple[RPN, SparseRPN]) -> None:
    torch.manual_seed(0)
    size = SIZES[1]
    maps = features(pair[0], size)
    images = ImageList(torch.zeros(2, 3, *size), [size, size])
    truths = [Instances(size, gt_boxes=Boxes(objects(kind, size))) for kind in ("random", "none")]
    results: list[Any] = []
    for rpn in pair:
        torch.manual_seed(1)  # of the sampling
        with EventStorage():
            results.append(rpn.train()(images, maps, truths))
    (plain, plain_losses), (sparse, sparse_losses) = results
    assert plain_losses == sparse_losses
    for a, b in zip(plain, sparse, strict=True):
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
