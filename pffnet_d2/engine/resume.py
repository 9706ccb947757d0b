"""Differences between the config of a run and that of its continuation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

logger = logging.getLogger(__name__)

# Keys that may differ.
NOT_THE_RUN = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")
# Keys that training depends on. An evaluation may have changed the rest of config.yaml since.
TRAINING = ("SOLVER.", "INPUT.", "DATASETS.TRAIN", "SEED")
# The optimizer in a checkpoint holds these numbers, which stay in force.
OF_THE_CHECKPOINT = ("SOLVER.BASE_LR", "SOLVER.BIAS_LR_FACTOR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.WEIGHT_")
SHOWN = 4  # changes; the others are counted


class Change(NamedTuple):
    """A key, its value when the run was begun, and its value now."""

    key: str
    before: Any
    now: Any


def changes(begun: Mapping[str, Any], cfg: Any) -> list[Change]:
    """Keys of ``cfg`` that have other values, or are missing, in the content of a config.yaml."""
    before = dict(_flat(begun))
    # Through yaml, where tuples and lists are the same.
    now = dict(_flat(yaml.safe_load(cfg.dump())))
    return [
        Change(key, before.get(key), value)
        for key, value in now.items()
        if key not in NOT_THE_RUN and before.get(key) != value
    ]


def tell_changes(folder: Path, cfg: Any) -> None:
    """Warn in one line where a run in ``folder`` is resumed with other settings of training than it was begun with.

    Call it before the config.yaml of the run is replaced. If that is missing or damaged, there is no warning.
    """
    if not (folder / "last_checkpoint").is_file():
        return
    try:
        begun = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return
    found = [change for change in changes(begun, cfg) if change.key.startswith(TRAINING)] if begun else []
    if not found:
        return
    said = [
        f"{key} {now} "
        + (f"is not taken, the checkpoint's {before} stays" if key.startswith(OF_THE_CHECKPOINT) else f"(was {before})")
        for key, before, now in found
    ]
    more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    logger.warning(f"{folder}: resumes with other settings than it was begun with: {', '.join(said[:SHOWN])}{more}")


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
