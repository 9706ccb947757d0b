"""Shapes of each level, and the names used by weights files."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model
from detectron2.modeling.backbone import build_resnet_backbone

from pffnet_d2.config import config_path, read_config
from pffnet_d2.errors import InputError
from pffnet_d2.model_zoo.checkpoint import Checkpointer


def config(name: str = "dsb2018/ObjectGuided_R18_compact.yaml", *options: str) -> CfgNode:
    return read_config(str(config_path(name)), ["MODEL.DEVICE", "cpu", *options])


def test_the_papers_model_has_62_million_parameters() -> None:
    with torch.device("meta"):
        model, plain = (
            META_ARCH_REGISTRY.get("ObjectGuided")(config(f"dsb2018/ObjectGuided_R50{name}.yaml"))
            for name in ("", "_without_refinement")
        )
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count == {
        "backbone": 51_082_624,
        "centre_head": 4_417_541,
        "segmentation": 6_793_601,
        "refinement": 194,
    }
    assert sum(count.values()) == 62_293_960
    assert sum(p.numel() for p in plain.parameters()) == 62_293_960 - 194


@pytest.mark.parametrize(
    ("name", "channels", "count"),
    [
        ("dsb2018/ObjectGuided_R50.yaml", [64, 64, 256, 512, 1024], 51_082_624),
        ("dsb2018/ObjectGuided_R18_compact.yaml", [16, 32, 32, 64, 128], 3_233_072),
    ],
)
def test_shapes_per_level(name: str, channels: list[int], count: int) -> None:
    backbone = build_backbone(config(name)).eval()
    assert sum(p.numel() for p in backbone.parameters()) == count
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, 64, 96))
    shape = backbone.output_shape()
    assert list(features) == list(shape) == ["c1", "c2", "c3", "c4", "c5"]
    for i, (name, feature) in enumerate(features.items()):
        assert feature.shape == (2, channels[i], 64 >> i, 96 >> i)
        assert (shape[name].channels, shape[name].stride) == (channels[i], 1 << i)


def test_the_trunk_is_detectron2s_resnet() -> None:
    """c2 is the ResNet's first convolution before pooling, and the decoder starts from the ResNet's stages."""
    torch.manual_seed(0)
    cfg = config("dsb2018/ObjectGuided_R18_compact.yaml", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64")
    backbone = build_backbone(cfg).eval()
    trunk = backbone.bottom_up
    assert trunk.state_dict().keys() == build_resnet_backbone(cfg, _Rgb()).state_dict().keys()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = backbone(image)
        stages = trunk(image)
        torch.testing.assert_close(features["c2"], F.relu(trunk.stem.conv1(image)))
        level = stages["res5"]
        for name, stage, join in (("c5", "res4", 2), ("c4", "res3", 1), ("c3", "res2", 0)):
            level = backbone.combine[join](level, stages[stage])
            torch.testing.assert_close(features[name], level)


class _Rgb:
    channels = 3


def test_weights_of_a_classifier_are_accepted(tmp_path: Path) -> None:
    """A file of Detectron2's model zoo has names without a prefix and a classifier that is not used."""
    cfg = config()
    torch.manual_seed(0)
    source = build_model(cfg).backbone.bottom_up.state_dict()
    file = tmp_path / "R-18.pkl"
    arrays = {name: value.numpy() for name, value in source.items()} | {"fc.weight": torch.zeros(10, 256).numpy()}
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "a test", "matching_heuristics": True}))
    torch.manual_seed(1)
    model = build_model(cfg)
    Checkpointer(model).load(str(file), checkpointables=[])
    for name, value in model.backbone.bottom_up.state_dict().items():
        torch.testing.assert_close(value, source[name])


def test_all_stages_are_needed() -> None:
    cfg = config("dsb2018/ObjectGuided_R18_compact.yaml", "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3']")
    with pytest.raises(InputError, match=r"OUT_FEATURES: ObjectGuided needs \[res2, res3, res4, res5\]"):
        build_backbone(cfg)
