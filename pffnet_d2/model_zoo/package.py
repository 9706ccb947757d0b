"""Packaging a trained model: the weights that prediction needs, in half precision, and a card that describes them.

Only training uses the fusion and, unless it rescores detections, the semantic branch; the packaged config builds the
model without them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from pffnet_d2.atomic_write import whole_file, write_text
from pffnet_d2.config import differences, read_config
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import BY_DEPTH
from pffnet_d2.model_zoo.checkpoint import Checkpointer
from pffnet_d2.model_zoo.find import CARD, CONFIG, WEIGHTS, sha256
from pffnet_d2.modeling.build import build_network

FORMAT = 1  # of the card
# The sections of the config that prediction needs. The card says in words how and on what the model was trained.
SECTIONS = ("MODEL", "INPUT", "TEST", "VERSION")
STRIPPED = {
    "MODEL.PFFNET.FUSION.NAME": "",
    "MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT": "0.0",
    "MODEL.PFFNET.OUTPUTS": "['instances']",
}
WITHOUT_SEMANTIC_BRANCH = {"MODEL.SEM_SEG_HEAD.NAME": ""}


def package_model(
    config: str, weights: str, out: Path, *, about: Mapping[str, Any] | None = None, opts: Sequence[str] = ()
) -> dict[str, Any]:
    """Write ``out`` / config.yaml, model_final.pth and card.json.

    Args:
        config: yaml the model was trained with, or the one `pffnet thresholds` made of it.
        weights: checkpoint of the training.
        out: folder; files of these names in it are replaced.
        about: further content of the card: licence, sources, scores, ...; plain values.
        opts: KEY VALUE pairs that override the config, such as MODEL.PFFNET.DIAMETER 24.0.

    Returns:
        The card.

    Raises:
        InputError: the config or the weights cannot be used, weights are beyond the range of half precision, or the
            folder cannot be written.
    """
    opts = [*opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    whole = read_config(config, opts)
    stripped = STRIPPED if whole.MODEL.PFFNET.SEMANTIC_POWER else STRIPPED | WITHOUT_SEMANTIC_BRANCH
    cfg = read_config(config, [*opts, *(word for pair in stripped.items() for word in pair)])
    trained = build_network(whole)
    Checkpointer(trained).load(weights)
    model = build_network(cfg)
    everything = trained.state_dict()
    state = {name: _half(name, everything[name]) for name in model.state_dict()}
    keys = differences(cfg)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    # The card is written last: until then, or beside an older card, the files are taken for damaged.
    content = io.BytesIO()
    torch.save({"model": state}, content)
    with whole_file(out / WEIGHTS, "wb") as file:
        file.write(content.getbuffer())
    write_text(out / CONFIG, yaml.safe_dump({key: keys[key] for key in SECTIONS if key in keys}))
    card = {
        **(about or {}),
        "format": FORMAT,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (out / WEIGHTS).stat().st_size,
        "images": cfg.MODEL.PFFNET.IMAGES,
        "diameter": cfg.MODEL.PFFNET.DIAMETER,
        "pixel_size": cfg.MODEL.PFFNET.PIXEL_SIZE,
        "thresholds": dict(cfg.MODEL.PFFNET.LABEL_MAP),
        "normalisation": BY_DEPTH[cfg.MODEL.PFFNET.NORMALISATION].info(),
        "sha256": {name: sha256(out / name) for name in (CONFIG, WEIGHTS)},
    }
    write_text(out / CARD, json.dumps(card, indent=1) + "\n")
    return card


def read_about(path: Path) -> dict[str, Any]:
    """Content for a card, from a yaml or json file. Raises InputError naming the file."""
    try:
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(about)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not YAML of plain values; give lines such as licence: CC0 1.0") from error
    if not isinstance(about, dict):
        raise InputError(f"{path}: contains no keys; give lines such as licence: CC0 1.0")
    return about


def _half(name: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    if not half.isfinite().all():
        raise InputError(f"{name}: has values that are not finite or exceed half precision (65504); train it again")
    return half
