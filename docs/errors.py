"""Writes errors.md, the list of all messages with which a command refuses an input, from the source code.

    python docs/errors.py

A message says what is wrong and, after its last semicolon (or colon), what to do. "…" stands for what differs from
case to case: a file, a key, a number. Messages that consist of nothing else are left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/errors.md"

# How a remedy begins that follows a colon, which may as well follow the name of a file.
_REQUEST = re.compile(r"(choose|fetch|give|leave|name|run|set|type|use|write)\b")


class Group(NamedTuple):
    """A section of the page: its title, the usual causes, and the modules of pffnet_d2 (folders end with /)."""

    title: str
    causes: str
    modules: tuple[str, ...]


# A module belongs to the first group that names it or its folder.
GROUPS = (
    Group(
        "The command line",
        "Two flags exclude each other, one needs another, or a value has the wrong form. `pffnet COMMAND --help` "
        "lists the flags.",
        ("cli/",),
    ),
    Group(
        "Image files",
        "The file is damaged or of another kind than its name says, holds several images of which one must be "
        "chosen, or needs a package that is not installed. [Which files are read](predict.md#images).",
        ("imaging/",),
    ),
    Group(
        "Prediction and results",
        "The options do not suit the image or each other, or another run writes the same results. "
        "[Prediction](predict.md), [tiles](large-images.md).",
        ("inference/",),
    ),
    Group(
        "Models",
        "The files of a model are not complete, or weights and config do not belong together. "
        "[Which model](predict.md#which-model), [exported models](export.md).",
        ("model_zoo/",),
    ),
    Group(
        "Data sets of your own",
        "Images and labels do not match by name or size, or a label image is not one: a coloured rendering, a "
        "resized one, one mask of all objects. [Layouts](data.md).",
        (
            *("data/readers/own.py", "data/readers/custom_layouts.py", "data/readers/coco_json.py"),
            *("data/readers/outline_files.py", "data/readers/labels.py", "data/readers/geojson.py"),
        ),
    ),
    Group(
        "Published data sets",
        "Files of the publisher are missing, changed, or not all extracted. Download them again and leave them as "
        "they are. [Which files](../datasets/README.md).",
        ("data/readers/",),
    ),
    Group(
        "Prepared data sets",
        "A data set was not prepared, was prepared with other options, or was changed afterwards. "
        "[Preparing](data.md), [checking](data.md#checking).",
        ("data/",),
    ),
    Group(
        "Configs and networks",
        "A key is misspelt, has a value that it does not accept, or contradicts another key. The comments in "
        "`pffnet_d2/config/keys.py` explain each. [Methods](methods.md).",
        ("config/", "modeling/"),
    ),
    Group(
        "Training, processes and clusters",
        "Processes cannot reach each other or were started in two ways at once, or a run is resumed that differs. "
        "[Training](train.md), [clusters](cluster.md).",
        ("engine/", "parallel/", "device.py"),
    ),
    Group(
        "Scores, reports and plots",
        "Truth and prediction do not have the same images or sizes, or a file is not one that evaluation wrote. "
        "[Metrics](metrics.md).",
        ("evaluation/", "visualization/"),
    ),
    Group("The napari plugin", "[The plugin](napari.md).", ("napari_plugin/",)),
    Group(
        "Files that are written, and everything else",
        "A folder cannot be written, or is in use by another run.",
        ("",),
    ),
)

HEADER = """# All error messages

Written by `python docs/errors.py` from the source code; do not edit. To find a message, search for
a few of its words. "…" stands for a file, a key or a number. A command that ends with one of them
has exit code 2 (or skips the image that it names) and has written nothing. What to do about
warnings, wrong results and errors of the machine: [troubleshooting](troubleshooting.md).
"""


def messages(source: str) -> set[str]:
    """The messages of all InputErrors (and of classes of its kind) that the source code of a module raises."""
    tree = ast.parse(source)
    kinds = {"InputError", "InvalidOption"}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    raised = (call.args[-1] for call in calls if isinstance(call.func, ast.Name) and call.func.id in kinds)
    texts = (text for argument in raised for text in _texts(argument))
    return {text for text in map(_tidy, texts) if len(re.findall(r"[A-Za-z]{2,}", text)) > 1}


def _texts(node: ast.expr) -> Iterator[str]:
    """What an expression may be as text: both branches of a condition, and … for what is known only when it runs."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.FormattedValue):
        yield from _texts(node.value) if isinstance(node.value, ast.IfExp) else "…"
    elif isinstance(node, ast.JoinedStr):
        yield from map("".join, product(*(list(_texts(part)) for part in node.values)))
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from map("".join, product(list(_texts(node.left)), list(_texts(node.right))))
    else:
        yield "…"


def _tidy(text: str) -> str:
    text = re.sub(r"…(?:[\s:,;]*…)+", "…", " ".join(text.split()))
    return text.removeprefix("…: ")


def page(package: Path) -> str:
    """The text of the page for a folder of source code."""
    found: dict[Group, set[str]] = {group: set() for group in GROUPS}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        group = next(group for group in GROUPS if name.startswith(group.modules))
        found[group] |= messages(path.read_text(encoding="utf-8"))
    parts = [HEADER]
    for group, texts in found.items():
        rows = sorted(map(_row, texts), key=lambda row: (row.lower().lstrip("|`-. …"), row))
        table = "\n".join(["| what is wrong | what to do |", "|---|---|", *rows])
        parts.append(f"## {group.title}\n\n{_wrapped(group.causes)}\n\n{table}\n")
    return "\n".join(parts)


def _row(text: str) -> str:
    wrong, separator, remedy = text.rpartition("; ")
    if not separator:
        wrong, _, remedy = text.rpartition(": ")
        if not _REQUEST.match(remedy):
            wrong, remedy = text, ""
    return f"| {_code(wrong or '…')} | {_plain(remedy)} |"


def _code(text: str) -> str:
    ticks = "``" if "`" in text else "`"
    gap = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{gap}{text}{gap}{ticks}".replace("|", "\\|")


def _plain(text: str) -> str:
    """Text as Markdown shows it unchanged; what stands between backticks is code already."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]|\\])", r"\\\1", part) for part in parts)


def _wrapped(text: str) -> str:
    """Lines of at most 100 characters, as all pages have."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= 100:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(ROOT / "pffnet_d2"), encoding="utf-8")
