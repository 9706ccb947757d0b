"""The command line: what it forwards, what it says, its exit codes."""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pffnet_d2
from pffnet_d2 import env
from pffnet_d2.cli import main as cli
from pffnet_d2.data import prepare as prepare_module
from pffnet_d2.data.prepare import Selection
from pffnet_d2.engine.arguments import argument_parser
from pffnet_d2.errors import InputError


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, argparse.Namespace]]:
    """Stands in for training: the command and the arguments of every run. Its exit code is 7."""
    runs: list[tuple[str, argparse.Namespace]] = []
    stand_in = ModuleType("pffnet_d2.engine.trainer")
    stand_in.start = lambda args, command="train": runs.append((command, args)) or 7  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "pffnet_d2.engine.trainer", stand_in)
    monkeypatch.setattr(pffnet_d2.engine, "trainer", stand_in, raising=False)
    monkeypatch.setattr(env, "problem", lambda: "")
    return runs


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path | None, Path]]:
    """Stands in for the preparation: its arguments."""
    calls: list[tuple[str, Path | None, Path]] = []
    monkeypatch.setattr(
        prepare_module, "prepare", lambda name, source, out, *_, **__: calls.append((name, source, out))
    )
    return calls


def test_train(engine: list[tuple[str, argparse.Namespace]]) -> None:
    flags = ["--config-file", "a.yaml", "--num-gpus", "2", "--resume", "SOLVER.MAX_ITER", "5"]
    assert cli.main(["train", *flags]) == 7
    ((command, args),) = engine
    assert (command, args.config_file, args.num_gpus, args.resume) == ("train", "a.yaml", 2, True)
    assert args.opts == ["SOLVER.MAX_ITER", "5"]


def test_evaluate(engine: list[tuple[str, argparse.Namespace]]) -> None:
    assert cli.main(["evaluate", "--config-file", "a.yaml"]) == 7
    ((command, args),) = engine
    assert (command, args.config_file, args.opts) == ("evaluate", "a.yaml", [])


OLD_SPELLINGS = {
    "pack --config c --weights w --out o": "package --config c --weights w --out o",
    "train --from pretrained mine --out run SOLVER.MAX_ITER 3": "finetune mine --out run SOLVER.MAX_ITER 3",
    "train mine SOLVER.MAX_ITER 3 --from=x.pth": "finetune --from x.pth mine SOLVER.MAX_ITER 3",
    "evaluate --truth a --prediction b": "score --truth a --prediction b",
    "evaluate --prediction=b --groups g --truth=a": "score --truth a --prediction b --groups g",
}


@pytest.mark.parametrize(("old", "new"), OLD_SPELLINGS.items())
def test_older_spellings(old: str, new: str) -> None:
    arguments, meant = (vars(cli.parse(words.split())) for words in (old, new))
    for each in (arguments, meant):
        del each["command"]
    assert arguments == meant


def test_the_flags_of_training_are_those_of_detectron2() -> None:
    """But for --dist-url, whose default there is a port that two runs of one user share."""
    engine = pytest.importorskip("detectron2.engine")
    ours, theirs = (
        {tuple(action.option_strings): action for action in parser._actions}
        for parser in (argument_parser(), engine.default_argument_parser())
    )
    for names, action in theirs.items():
        assert (ours[names].dest, ours[names].nargs, ours[names].type) == (action.dest, action.nargs, action.type)
        assert ours[names].default == action.default or names == ("--dist-url",)
    assert ours.keys() - theirs.keys() == {("--cpu-ranks",), ("--method",)}


def test_prepare(prepared: list[tuple[str, Path | None, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert cli.main(["prepare", "phantoms"]) == 0
    assert cli.main(["prepare", "bbbc039", "--source", "downloads", "--out", "root"]) == 0
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    assert cli.main(["prepare", "phantoms"]) == 0
    assert prepared == [
        ("phantoms", None, Path("datasets")),
        ("bbbc039", Path("downloads"), Path("root")),
        ("phantoms", None, Path("elsewhere")),
    ]


def test_prepare_hands_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(prepare_module, "prepare", lambda *args, **options: given.extend([args, options]))
    flags = (
        "--name cells --splits train val --scheme s --option a=1 --option b=x=y --folds 5 --fold 2 --seed 7 --count 3"
    )
    assert cli.main(["prepare", "own", "--source", "in", "--out", "root", *flags.split(), "--force"]) == 0
    assert given == [
        (
            *("own", Path("in"), Path("root")),
            Selection(["train", "val"], "s", {"a": "1", "b": "x=y"}, folds=5, fold=2, seed=7, count=3),
        ),
        {"dataset": "cells", "force": True},
    ]


def test_option_without_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "own", "--option", "group"]) == 2
    assert capsys.readouterr().err == "pffnet: error: --option group: give KEY=VALUE\n"


def test_prepare_as_a_script(
    prepared: list[tuple[str, Path | None, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = Path(__file__).parents[2] / "datasets" / "prepare.py"
    monkeypatch.setattr(sys, "argv", [str(script), "phantoms", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    assert caught.value.code == 0
    assert prepared == [("phantoms", None, tmp_path)]


def test_unknown_data_set_lists_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "no-such", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pffnet: error: ")
    assert "no-such" in line
    assert "bbbc039" in line
    assert "phantoms" in line
    assert not list(tmp_path.iterdir())


def test_a_users_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise InputError("x.png: truncated; fetch it again")

    monkeypatch.setattr(prepare_module, "prepare", fail)
    assert cli.main(["prepare", "phantoms"]) == 2
    assert capsys.readouterr() == ("", "pffnet: error: x.png: truncated; fetch it again\n")


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "prepare", interrupt)
    assert cli.main(["prepare", "phantoms"]) == 130


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(prepare_module, "prepare", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["prepare", "phantoms"])


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    listed = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert re.search(rf"^    {command}\b", listed, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["prepare"], ["env", "--no-such-flag"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pffnet")
    assert "error: " in line
    assert line.endswith(" --help")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pffnet_d2 {pffnet_d2.__version__}\n"
