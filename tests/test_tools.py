"""The scripts for other programs are in the syntax of their languages."""

from __future__ import annotations

from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "docs" / "tools"


def test_the_macro_for_fiji() -> None:
    """ImageJ's macro language has JavaScript's syntax as far as the macro goes."""
    esprima = pytest.importorskip("esprima")
    text = (TOOLS / "fiji_open.ijm").read_text(encoding="utf-8")
    esprima.parseScript(text)
    for broken in (text.replace("if (!File", "if !File"), text[: text.rindex("}")] + text[text.rindex("}") + 1 :]):
        with pytest.raises(esprima.Error):
            esprima.parseScript(broken)


@pytest.mark.slow  # the grammar takes half a minute
def test_the_script_for_qupath() -> None:
    parser = pytest.importorskip("groovy_parser.parser")
    lark = pytest.importorskip("lark")
    text = (TOOLS / "qupath_import.groovy").read_text(encoding="utf-8")
    parser.parse_groovy_content(text)
    with pytest.raises(lark.exceptions.LarkError):
        parser.parse_groovy_content(text.replace("for (entry in project", "for entry in project"))
