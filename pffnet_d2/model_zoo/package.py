"""Packages a training run as a model for others: what prediction needs, in half precision, with a card about it.

The semantic branch and the fusion only help to train the other parts. The packaged config builds a model without them.
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

FORMAT = 1  # version of the card's format
# The parts of the config that define the model and its prediction. The card says in words what it was trained on.
SECTIONS = ("MODEL", "INPUT", "TEST", "VERSION")
STRIPPED = {
    "MODEL.SEM_SEG_HEAD.NAME": "",
    "MODEL.PFFNET.FUSION.NAME": "",
    "MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT": "0.0",
    "MODEL.PFFNET.OUTPUTS": "['instances']",
}


def pack(
    config: str, weights: str, out: Path, *, about: Mapping[str, Any] | None = None, opts: Sequence[str] = ()
) -> dict[str, Any]:
    """Write ``out`` / config.yaml, model_final.pth and card.json.

    Args:
        config: the yaml the model was trained with, or the one `pffnet thresholds` made from it.
        weights: a checkpoint of the training.
        out: folder; existing files with these names are replaced.
        about: additional plain values for the card: licence, sources, scores, ...
        opts: KEY VALUE pairs, such as MODEL.PFFNET.DIAMETER 24.0.

    Returns:
        The card.

    Raises:
        InputError: the config or the weights cannot be used, the weights exceed the range of half precision, or the
            folder cannot be written to.
    """
    opts = [*opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    cfg = read_config(config, [*opts, *(word for pair in STRIPPED.items() for word in pair)])
    trained = build_network(read_config(config, opts))
    Checkpointer(trained).load(weights)
    model = build_network(cfg)
    everything = trained.state_dict()
    state = {name: _half(name, everything[name]) for name in model.state_dict()}
    keys = differences(cfg)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be created ({error.strerror}); choose another --out") from error
    # The card is written last: without it, or with an older one, the files count as damaged.
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
        "thresholds": dict(cfg.MODEL.PFFNET.LABEL_MAP),
        "normalisation": BY_DEPTH[cfg.MODEL.PFFNET.NORMALISATION].info(),
        "sha256": {name: sha256(out / name) for name in (CONFIG, WEIGHTS)},
    }
    write_text(out / CARD, json.dumps(card, indent=1) + "\n")
    return card


def read_about(path: Path) -> dict[str, Any]:
    """Read a yaml or json of values for the card. Raises InputError if it cannot be used."""
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
