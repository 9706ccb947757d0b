"""What differs between a run and its continuation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

logger = logging.getLogger(__name__)

# Keys in which a run may differ from its continuation.
NOT_THE_RUN = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")
# What decides how training goes on. The rest of config.yaml may be that of an evaluation since.
TRAINING = ("SOLVER.", "INPUT.", "DATASETS.TRAIN", "SEED")
# A checkpoint holds these as numbers of its optimizer, and they stay in force.
OF_THE_CHECKPOINT = ("SOLVER.BASE_LR", "SOLVER.BIAS_LR_FACTOR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.WEIGHT_")
SHOWN = 4  # the rest is counted


class Change(NamedTuple):
    """A key, its value when the run was begun, and now."""

    key: str
    before: Any
    now: Any


def changes(begun: Mapping[str, Any], cfg: Any) -> list[Change]:
    """Keys of ``cfg`` whose values were others, or missing, in the content of a config.yaml."""
    before = dict(_flat(begun))
    # By way of yaml, where tuples and lists are the same.
    now = dict(_flat(yaml.safe_load(cfg.dump())))
    return [
        Change(key, before.get(key), value)
        for key, value in now.items()
        if key not in NOT_THE_RUN and before.get(key) != value
    ]


def tell_changes(folder: Path, cfg: Any) -> None:
    """One line, where a run in ``folder`` that has a checkpoint goes on with another training than it was begun with.

    Its config.yaml must still be the one it left; one that is missing or damaged tells nothing.
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
