"""Small models and batches for the tests of the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import BitMasks, Boxes, Instances

from pffnet_d2 import add_pffnet_config, config_path


@pytest.fixture
def compact_cfg() -> Callable[..., CfgNode]:
    """The compact config with further ``KEY, VALUE, ...`` options."""

    def make(*options: Any) -> CfgNode:
        cfg = get_cfg()
        add_pffnet_config(cfg)
        cfg.merge_from_file(str(config_path("demo/PFFNet_R18_FPN.yaml")), allow_unsafe=False)
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
        return cfg

    return make


def one_input(height: int, width: int, objects: int, generator: torch.Generator) -> dict[str, Any]:
    """Make an image of bright rectangles and its truth."""
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    boxes = torch.zeros(objects, 4)
    for i in range(objects):
        h, w = torch.randint(12, 32, (2,), generator=generator).tolist()
        y = int(torch.randint(0, height - h, (1,), generator=generator))
        x = int(torch.randint(0, width - w, (1,), generator=generator))
        masks[i, y : y + h, x : x + w] = True
        boxes[i] = torch.tensor([x, y, x + w, y + h])
    foreground = masks.any(0) if objects else torch.zeros(height, width, dtype=torch.bool)
    image = foreground * 150.0 + torch.rand(height, width, generator=generator) * 50
    return {
        "image": image[None].repeat(3, 1, 1),
        "height": height,
        "width": width,
        "sem_seg": foreground.long(),
        "instances": Instances(
            (height, width),
            gt_boxes=Boxes(boxes),
            gt_classes=torch.zeros(objects, dtype=torch.long),
            gt_masks=BitMasks(masks),
        ),
    }


@pytest.fixture
def make_batch() -> Callable[..., list[dict[str, Any]]]:
    """``make_batch((height, width, objects), ...)``: a batch that depends only on the arguments."""

    def make(*shapes: tuple[int, int, int], seed: int = 0) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        return [one_input(*shape, generator) for shape in shapes]

    return make
