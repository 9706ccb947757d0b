"""read_config: errors in a file or a key end in one line, and no code in a file is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pffnet_d2.config import config_path, read_config
from pffnet_d2.errors import InputError

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

COMPACT = str(config_path("demo/PFFNet_R18_FPN.yaml"))


def yaml_file(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  NO_SUCH: 1\n", r"child\.yaml: Non-existent config key: MODEL\.NO_SUCH"),
        ("_BASE_: none.yaml\n", r"child\.yaml: its _BASE_ .*none\.yaml does not exist"),
        ("_BASE_: child.yaml\n", r"child\.yaml: its _BASE_ files name each other in a circle"),
        ("_BASE_: base.yaml\n", r"child\.yaml: Non-existent config key: SOLVER\.BASE_LRR"),
        ("MODEL: [1, 2\n", r"child\.yaml, line 2: not YAML of plain values"),
        ("SOLVER:\n  MAX_ITER: many\n", r"child\.yaml: Type mismatch .*MAX_ITER"),
        ("just words\n", r"child\.yaml: "),
        ("", r"child\.yaml: "),
    ],
)
def test_mistakes_in_a_config_file(tmp_path: Path, text: str, message: str) -> None:
    yaml_file(tmp_path / "base.yaml", "SOLVER:\n  BASE_LRR: 1\n")
    with pytest.raises(InputError, match=message) as error:
        read_config(yaml_file(tmp_path / "child.yaml", text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("through_base", [False, True])
def test_yaml_runs_nothing(tmp_path: Path, through_base: bool) -> None:
    trace = tmp_path / "ran"
    file = yaml_file(tmp_path / "evil.yaml", f"SEED: !!python/object/apply:os.system ['touch {trace}']\n")
    if through_base:
        file = yaml_file(tmp_path / "child.yaml", "_BASE_: evil.yaml\n")
    with pytest.raises(InputError, match=r"evil\.yaml, line 1: not YAML of plain values"):
        read_config(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.NO_SUCH", "1"], r"command line, MODEL\.NO_SUCH 1: Non-existent key"),
        (["SEED"], "command line, SEED: give keys and values in pairs"),
        (["SOLVER.MAX_ITER", "many"], "command line, .*: Type mismatch"),
    ],
)
def test_mistakes_on_the_command_line(opts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config(COMPACT, opts)


def test_old_names_of_keys_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = yaml_file(
        tmp_path / "old.yaml",
        "SOLVER:\n  OPTIMIZER: ADAM\n  ADAM_EPSILON: 0.00001\n  CLIP_GRADIENTS:\n    ENABLED: True\n"
        "    CLIP_TYPE: full_model\n    CLIP_VALUE: 2.0\nVERSION: 2\n",
    )
    solver = read_config(file).SOLVER
    assert (solver.PFFNET.OPTIMIZER, solver.PFFNET.ADAM_EPSILON, solver.PFFNET.CLIP_NORM) == ("ADAM", 1e-5, 2.0)
    assert not solver.CLIP_GRADIENTS.ENABLED
    assert "OPTIMIZER" not in solver
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{file}: SOLVER.OPTIMIZER is now SOLVER.PFFNET.OPTIMIZER, ")
    assert read_config(COMPACT, ["SOLVER.OPTIMIZER", "ADAM"]).SOLVER.PFFNET.OPTIMIZER == "ADAM"
