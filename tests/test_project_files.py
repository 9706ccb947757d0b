"""What the workflows, the templates and CONTRIBUTING.md name exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pffnet_d2.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def steps(workflow: Path) -> list[dict[str, Any]]:
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    return [step for job in content["jobs"].values() for step in job["steps"]]


def test_workflows_were_found() -> None:
    assert any("run" in step for workflow in WORKFLOWS for step in steps(workflow))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_steps_name_what_exists(workflow: Path) -> None:
    """Targets of make, commands of pffnet and extras."""
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step), step
        for line in step.get("run", "").splitlines():
            program, *words = line.split()
            assert program in ("make", "pffnet", "python"), line
            if program == "make":
                assert words, line
                assert set(words) <= set(TARGETS), line
            if program == "pffnet":
                assert words[0] in COMMANDS, line
            for extras in re.findall(r"\.\[([\w,-]+)\]", line):
                assert set(extras.split(",")) <= EXTRAS.keys(), line


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read(workflow: Path) -> None:
    """They need no secrets, and so a pull request from anybody can run them."""
    text = workflow.read_text(encoding="utf-8")
    assert "secrets." not in text
    assert "pull_request_target" not in text
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("template", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md")), ids=lambda p: p.name)
def test_templates_have_a_name_and_a_description(template: Path) -> None:
    _, front, body = template.read_text(encoding="utf-8").split("---\n", maxsplit=2)
    assert {"name", "about"} <= yaml.safe_load(front).keys()
    assert body.strip()


def test_contributing_names_files_that_exist() -> None:
    """Of names with NAME, the folder exists and holds files of that kind."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    traces = text[text.index("## What each addition touches") : text.index("## Releases")]
    assert re.findall(r"^\*\*An? (data set|head|metric|exporter|command)\*\*", traces, re.MULTILINE) == [
        *("data set", "head", "metric", "exporter", "command")
    ]
    named = re.findall(r"`([\w./]+\.(?:py|md|json|toml|yaml))`", traces)
    assert len(named) > 25
    for name in named:
        found = list(ROOT.glob(name.replace("NAME", "*")))
        assert found, name
