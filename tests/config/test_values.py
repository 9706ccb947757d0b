"""The table of values that a config may hold."""

from __future__ import annotations

from typing import Any

import pytest

from pffnet_d2.config import PARTS, config_path, read_config
from pffnet_d2.config.values import VALUES, check_value, check_values
from pffnet_d2.errors import InputError

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

CONFIGS = sorted(str(p.relative_to(config_path())) for p in config_path().rglob("*.yaml") if p.parent.name not in PARTS)
ODD = (None, True, "", "many", [], [1, 2], {}, -7, -0.5, 0, 1, 2.5, 10**9, float("nan"), float("inf"))


def value_of(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_passes(name: str) -> None:
    check_values(read_config(str(config_path(name))), name)


def test_every_row_is_a_key() -> None:
    """A row with a misspelt key would check nothing."""
    cfg = read_config(str(config_path("PFFNet_R101_FPN.yaml")))
    for key in VALUES:
        check_value(key, value_of(cfg, key), key)


@pytest.mark.parametrize("key", VALUES)
def test_any_value_is_accepted_or_refused_in_one_line(key: str) -> None:
    said = []
    for value in ODD:
        try:
            check_value(key, value, key)
        except InputError as error:
            said.append(str(error))
    assert len(said) >= 5
    assert all(line.startswith(f"{key} ") and ": give " in line and "\n" not in line for line in said)


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        (["TEST.DETECTIONS_PER_IMAGE", "0"], "command line, TEST.DETECTIONS_PER_IMAGE 0: give a whole number of 1"),
        (["MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"], "MODEL.PIXEL_STD [0.0, 1.0, 1.0]: give a list of 3, each a number"),
        (["MODEL.RESNETS.DEPTH", "17"], "MODEL.RESNETS.DEPTH 17: give one of 18, 34, 50, 101, 152"),
        (["MODEL.RESNETS.DEPTH", "18"], "MODEL.RESNETS.RES2_OUT_CHANNELS 256: a ResNet of DEPTH 18 has 64"),
        (["MODEL.META_ARCHITECTURE", "None"], "MODEL.META_ARCHITECTURE None: give one of"),
        (["MODEL.RPN.POST_NMS_TOPK_TEST", "-1"], "MODEL.RPN.POST_NMS_TOPK_TEST -1: give a whole number of 1 or more"),
        (["SEED", "-2"], "SEED -2: give a whole number from -1 to 2147483648"),
    ],
)
def test_the_line_names_source_key_value_and_remedy(opts: list[str], says: str) -> None:
    with pytest.raises(InputError) as error:
        read_config(str(config_path("PFFNet_R101_FPN.yaml")), opts)
    assert says in str(error.value)
