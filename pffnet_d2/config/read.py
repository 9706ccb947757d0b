"""Finds configs in yaml files, reads, merges and checks them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pffnet_d2.config.keys import add_pffnet_config
from pffnet_d2.config.values import check_values
from pffnet_d2.errors import InputError

logger = logging.getLogger(__name__)


def config_path(name: str = "") -> Path:
    """Return the path of a yaml shipped with the package, such as ``PFFNet_R101_FPN.yaml`` or
    ``demo/PFFNet_R18_FPN.yaml``.

    Raises:
        InputError: the file does not exist; the message lists the files that do.
    """
    here = Path(__file__).resolve().parents[1]
    installed = here / "configs"
    root = installed if installed.is_dir() else here.parent / "configs"
    path = root / name
    if not path.exists():
        known = ", ".join(sorted(str(p.relative_to(root)) for p in root.rglob("*.yaml")))
        raise InputError(f"{name}: no such config; pffnet_d2 ships {known}")
    return path


# Folders of configs/ whose files contain only the keys that a method or an ablation changes.
PARTS = ("methods", "ablations", "backbones")


def read_config(config_file: str, opts: Sequence[str] = (), methods: Sequence[str] = ()) -> Any:
    """Read a config: the defaults, overridden by a yaml file, then by ``methods``, then by KEY VALUE pairs.

    The defaults are those of Detectron2 and of this plugin's keys.

    Args:
        config_file: a complete config.
        opts: KEY, VALUE, KEY, VALUE, ...
        methods: yaml files that each contain a part of a config, like those in configs/methods and configs/ablations.
            They are merged into the config one after the other. The name of each is appended to OUTPUT_DIR, unless the
            file sets OUTPUT_DIR, so that every combination has its own folder.

    Raises:
        InputError: a file does not exist or is not yaml of plain values, a key is unknown, a value has the wrong type
            or is out of range (``config/values.py``), a part is given as the config, or a config is given as a part.
    """
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_pffnet_config(cfg)
    if not os.path.exists(config_file):
        what = f"{config_file}: no such config file" if config_file else "no config file given"
        raise InputError(f"{what}; name one with --config-file, such as configs/PFFNet_R101_FPN.yaml")
    if Path(config_file).resolve().parent in [config_path(part) for part in PARTS]:
        raise InputError(
            f"{config_file}: is a part of a config; give it with --method, after the config that it changes: "
            f"--config-file configs/tnbc/PFFNet_R101_FPN.yaml --method {config_file}"
        )
    _check_chain(config_file)
    old = _OldKeys(cfg)
    try:
        # Detectron2's default runs Python code that a yaml file asks for.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{config_file}: {_said_by(error)}") from error
    for method in methods:
        _lay_over(cfg, method)
    override(cfg, opts)
    old.move(config_file)
    check_values(cfg, " with ".join((config_file, *methods)), opts)
    return cfg


def is_config(value: Any) -> bool:
    """Return whether a value is a config of Detectron2. Where Detectron2 was not imported, nothing is."""
    module = sys.modules.get("detectron2.config")
    return module is not None and isinstance(value, module.CfgNode)


def override(cfg: Any, opts: Sequence[Any]) -> None:
    """Set KEY VALUE pairs in a config, in place.

    Raises:
        InputError: the arguments are not pairs, a key is unknown, or a value has the wrong type.
    """
    if not isinstance(opts, (list, tuple)) or len(opts) % 2:
        given = " ".join(map(str, opts)) if isinstance(opts, (list, tuple)) else repr(opts)
        raise InputError(f"command line, {given}: give keys and values in pairs, such as TEST.DETECTIONS_PER_IMAGE 500")
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"command line, {' '.join(map(str, opts))}: {_said_by(error)}") from error


class _OldKeys:
    """Keys that were directly below SOLVER before SOLVER.PFFNET existed; another project may use the same names.

    Configs with these keys are still read, and a warning asks to rename them.
    """

    KEYS = ("OPTIMIZER", "ADAM_EPSILON")

    def __init__(self, cfg: Any) -> None:
        """Allow ``cfg`` to be merged with files that have old keys."""
        self.solver = cfg.SOLVER
        self.solver.OPTIMIZER, self.solver.ADAM_EPSILON = "", 0.0

    def move(self, config_file: str) -> None:
        """Move the values of old keys to the new keys."""
        solver, moved = self.solver, []
        for key in self.KEYS:
            if value := solver.pop(key):
                solver.PFFNET[key] = value
                moved.append(f"SOLVER.{key} is now SOLVER.PFFNET.{key}")
        clip = solver.CLIP_GRADIENTS
        if clip.CLIP_TYPE == "full_model":
            solver.PFFNET.CLIP_NORM = clip.CLIP_VALUE if clip.ENABLED else 0.0
            clip.ENABLED, clip.CLIP_TYPE = False, "value"
            moved.append("SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model is now SOLVER.PFFNET.CLIP_NORM")
        if moved:
            logger.warning(f"{config_file}: {', '.join(moved)}; rename it")


def _lay_over(cfg: Any, method: str) -> None:
    """Merge a part of a config into ``cfg``; see ``methods`` of :func:`read_config`."""
    from detectron2.config import CfgNode

    if not os.path.exists(method):
        raise InputError(
            f"{method}: no such file; give a part of a config, such as --method configs/ablations/Without_quality.yaml"
        )
    _check_chain(method)
    part = CfgNode.load_yaml_with_base(method, allow_unsafe=False)
    if "DATASETS" in part:
        raise InputError(f"{method}: is a complete config, because it sets DATASETS; give it with --config-file")
    try:
        cfg.merge_from_other_cfg(CfgNode(part))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{method}: {_said_by(error)}") from error
    if "OUTPUT_DIR" not in part:
        cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}_{Path(method).stem}"


def _check_chain(file: str, above: tuple[str, ...] = ()) -> None:
    """Check that a config, and those that it is based on (``_BASE_``), contain only keys and plain values.

    Args:
        file: the config.
        above: the configs that are based on it, starting with the one that the user named.

    Raises:
        InputError: one of them contains anything else.
    """
    bases = _read_yaml(file).get("_BASE_", [])
    chain = (*above, file)
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise InputError(f"{file}: its _BASE_ {base} is not a file name; name a yaml file")
        if base.startswith(("http://", "https://")):
            raise InputError(f"{file}: its _BASE_ {base} is not a local file; download it and name the file")
        base = os.path.join(os.path.dirname(file), os.path.expanduser(base))  # as fvcore resolves it
        if not os.path.exists(base):
            raise InputError(f"{file}: its _BASE_ {base} does not exist; correct the name")
        if os.path.realpath(base) in map(os.path.realpath, chain):
            raise InputError(f"{chain[0]}: its _BASE_ files name each other in a circle; remove one of them")
        _check_chain(base, chain)


def _read_yaml(file: str) -> dict[str, Any]:
    """Read the keys and plain values of a yaml file. Raises InputError if it contains anything else."""
    import yaml

    try:
        with open(file, encoding="utf-8") as text:
            content = yaml.safe_load(text)
    except OSError as error:
        reason = "is a folder" if os.path.isdir(file) else f"cannot be read ({error.strerror})"
        raise InputError(f"{file}: {reason}; give a yaml file that is a config") from error
    except RecursionError as error:
        raise InputError(f"{file}: nested too deeply for a config; give a yaml of keys and values") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:  # ValueError: an invalid date
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}" if mark else file
        fault = getattr(error, "problem", None) or getattr(error, "reason", None) or _said_by(error)
        raise InputError(f"{place}: not YAML of plain values: {fault}") from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"contains a {type(content).__name__}, not keys and values"
        raise InputError(f"{file}: {what}; give a config, such as configs/PFFNet_R101_FPN.yaml")
    return content


def differences(cfg: Any) -> dict[str, Any]:
    """Return the values that differ from the defaults, and VERSION, as nested plain values.

    The result is short, has no ``_BASE_``, and can be read by any release that has these keys. MODEL.DEVICE is not
    included, because it belongs to the machine, not to the model.
    """
    import yaml
    from detectron2.config import get_cfg

    defaults = get_cfg()
    add_pffnet_config(defaults)

    def changed(node: Any, default: Any) -> dict[str, Any]:
        found = {}
        for key, value in node.items():
            if isinstance(value, dict):
                value, default_value = changed(value, default.get(key, {})), {}
            else:
                default_value = default.get(key)
            if value != default_value:
                found[key] = value
        return found

    # Through yaml, where tuples and lists are the same.
    found = changed(yaml.safe_load(cfg.dump()), yaml.safe_load(defaults.dump()))
    found.get("MODEL", {}).pop("DEVICE", None)
    return {**found, "VERSION": cfg.VERSION}  # without it Detectron2 warns


def _said_by(error: Exception) -> str:
    """Shorten the message of yacs to one line.

    str() of a KeyError is quoted, and a section of the wrong type is printed completely, followed by its name.
    """
    first, _, more = str(error.args[0] if error.args else type(error).__name__).strip().partition("\n")
    _, found, key = more.rpartition("for config key:")
    return f"{first.partition(' with values')[0]} {found}{key}" if found else first
