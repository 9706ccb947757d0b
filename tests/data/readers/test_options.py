"""What readers say they accept is what they accept."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from pffnet_d2.data import readers
from pffnet_d2.data.readers import READERS, custom_layouts, own

# A user's own reader hands its options on.
INSIDE: dict[str, list[Callable[..., Any]]] = {
    "own": [own._divide, custom_layouts.find_images, custom_layouts.truth_form]
}


def parameters(functions: list[Callable[..., Any]]) -> dict[str, Any]:
    """Keywords of the functions with their defaults."""
    return {
        parameter.name: parameter.default
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


@pytest.mark.parametrize("name", READERS)
def test_options_are_the_keywords_of_the_reader(name: str) -> None:
    reader = READERS[name]
    functions = [reader.records, reader.splits, *INSIDE.get(name, [])]
    if hasattr(reader, "normalisation"):
        functions.append(reader.normalisation)
    accepted = parameters(functions)
    if name in ("cvppp", "dsb2018", "kumar", "tnbc"):
        scheme = accepted.pop("scheme")
        assert scheme == next(iter(readers.schemes(name)))
    options = {option: default for option, (default, _) in readers.options(name).items()}
    if name == "own":  # "" takes the default, so that fractions given are told from none
        assert accepted.pop("fractions") == ""
        del options["fractions"], options["category"]  # the latter is for `prepare`
    assert accepted == options
