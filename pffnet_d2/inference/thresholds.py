"""Thresholds that the user gives, in place of those of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from pffnet_d2.config.values import check_value
from pffnet_d2.errors import InputError


def override_thresholds(node: MutableMapping[str, Any], thresholds: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Sets keys of MODEL.PFFNET.LABEL_MAP. Each keeps its type.

    Args:
        node: all keys of that section; changed in place.
        thresholds: the new values, or a YAML file of them.

    Raises:
        InputError: the file cannot be read, a key is unknown, or a value is out of its range.
    """
    name = "thresholds"
    if not isinstance(thresholds, Mapping):
        name = os.fspath(thresholds)
        thresholds = _read_thresholds(name)
    for key, value in thresholds.items():
        if key not in node:
            raise InputError(f"{name}: unknown key {key}; use {', '.join(sorted(node))}")
        if isinstance(node[key], bool):
            if not isinstance(value, bool):
                raise InputError(f"{name}: {key} {value!r}: give true or false")
            node[key] = value
            continue
        if isinstance(node[key], int) and isinstance(value, float) and value.is_integer():
            value = int(value)
        check_value(f"MODEL.PFFNET.LABEL_MAP.{key}", value, f"{name}: {key}")
        node[key] = type(node[key])(value)


def _read_thresholds(file: str) -> dict[str, Any]:
    """Reads a YAML file of keys, or a config that contains them under MODEL.PFFNET.LABEL_MAP."""
    import yaml

    try:
        thresholds = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file}: is not a YAML file; give lines such as SCORE_THRESH: 0.4") from error
    if not isinstance(thresholds, dict):
        raise InputError(f"{file}: contains no keys; give lines such as SCORE_THRESH: 0.4")
    if "MODEL" not in thresholds:
        return thresholds
    try:  # the form that `pffnet thresholds` writes
        return dict(thresholds["MODEL"]["PFFNET"]["LABEL_MAP"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: has no MODEL.PFFNET.LABEL_MAP; give the file of `pffnet thresholds`") from None
