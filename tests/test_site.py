"""The documentation as a site: which files it has, that it needs no other host, and pages that follow the code."""

from __future__ import annotations

import ast
import csv
import importlib.util
import re
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pffnet_d2.inference.export.base import Part, SourceImage
from pffnet_d2.inference.export.csv_table import table_of
from pffnet_d2.inference.export.measure import INTENSITY_TERMS, SHAPE_TERMS, Measured, Measures
from pffnet_d2.inference.tables import ImageTable, write_tables
from pffnet_d2.inference.tiling import Box

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """A Python file of docs/, imported."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "docs" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = script("site.py")
PAGES = sorted(name for name in SITE.site_files(ROOT) if name.endswith(".md"))


def test_the_site_has_what_its_pages_link_to(tmp_path: Path) -> None:
    (tmp_path / "docs/more").mkdir(parents=True)
    (tmp_path / "README.md").write_text("[a](docs/a.md#part) ![p](p.png) [web](https://a.b/c.md) [none](none.md)")
    (tmp_path / "CONTRIBUTING.md").write_text("")
    (tmp_path / "docs/a.md").write_text("[b](more/b.txt)\n[home](../README.md)")
    (tmp_path / "docs/more/alone.md").write_text("")
    for name in ("p.png", "docs/more/b.txt", "docs/other.txt"):
        (tmp_path / name).write_text("")
    expected = {"README.md", "CONTRIBUTING.md", "p.png", "docs/a.md", "docs/more/b.txt", "docs/more/alone.md"}
    assert SITE.site_files(tmp_path.resolve()) == expected


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == PAGES


@pytest.mark.parametrize(
    ("page", "urls"),
    [
        ('<a href="https://a.b"><img src="p.png"><link rel="canonical" href="https://a.b">', []),
        ('<script src="https://a.b/c.js"></script><img src="//a.b/p.png">', ["https://a.b/c.js", "//a.b/p.png"]),
        ('<link href="HTTP://a.b/f.css" rel="preload stylesheet"><iframe src="x.html">', ["HTTP://a.b/f.css"]),
        ('<pre class="mermaid">', ["mermaid"]),
    ],
)
def test_what_a_page_loads_from_other_hosts(page: str, urls: list[str]) -> None:
    assert SITE.loaded_from_others(page) == urls


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="pip install 'pffnet_d2[docs]'")
    config = pytest.importorskip("mkdocs.config").load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True
    )
    pytest.importorskip("mkdocs.commands.build").build(config)
    assert "Predictor" in (tmp_path / "docs/api/prediction.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_code_in_lists_is_fenced(page: str) -> None:
    """Code that is only indented is code on a code host, but text on the site, which counts its spaces otherwise."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines, item = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines(), 0
    for number, line in enumerate(lines, start=1):
        if bullet := re.match(r"(\d+\.|[-*]) ", line):
            item = len(bullet[0])
        elif line and not line.startswith(" "):
            item = 0
        indented = line.strip() and line.startswith(" " * (item + 4))
        assert not (item and indented and not lines[number - 2]), f"{page}: {line.strip()}"


# --- Pages that repeat what the code says ----------------------------------------------------------------------------


def test_all_error_messages_are_listed() -> None:
    errors = script("errors.py")
    assert errors.PAGE.read_text(encoding="utf-8") == errors.page(ROOT / "pffnet_d2"), "run: python docs/errors.py"


def test_messages_are_read_from_source() -> None:
    source = (
        "raise InputError(f\"{path}: {a} of {b} is {'big' if c else 'small'}; cut it\" + end)\n"
        'raise InvalidOption("tile", "no tile" if x else f"a tile; use {n}")\n'
        'raise InputError(f"{path}: {error}")\nraise ValueError("not for users")\n'
    )
    assert script("errors.py").messages(source) == {
        "… of … is big; cut it…",
        "… of … is small; cut it…",
        "no tile",
        "a tile; use …",
    }


def texts_of_the_package() -> list[str]:
    """Every text in the source code, with … where it depends on what happens."""
    errors = script("errors.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "pffnet_d2").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr)]
    return [text for node in nodes for text in errors._texts(node)]


def test_messages_of_the_troubleshooting_page_exist() -> None:
    """A first cell that is nothing but code is a part of a message of ours."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    known = texts_of_the_package()
    assert len(quoted) > 10
    assert [text for text in quoted if not any(text in each for each in known)] == []


def columns_of_the_page() -> set[str]:
    page = (ROOT / "docs/columns.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def table(labels: np.ndarray, measured: Measured | None) -> dict[str, Any]:
    """The table of an image of one channel, whose pixels are half a micrometre wide, with all scores."""
    part = Part(labels, {name: np.array([0.9, 0.8]) for name in ("score", "class_score", "mask_quality")})
    pixels = np.arange(labels.size, dtype=np.uint16).reshape(labels.shape)

    def window(box: Box) -> np.ndarray:
        return pixels[box[0] : box[2], box[1] : box[3]]

    return table_of(
        part, SourceImage("a.tif", labels.shape, window, window, True, pixel_size=(0.5, 0.5), measured=measured)
    )


def test_all_columns_are_described(tmp_path: Path) -> None:
    """In tables with everything that can be measured, and in the summary; and nothing is described that is not."""
    labels = np.zeros((12, 12), np.int32)
    labels[2:6, 2:9], labels[8:11, 3:7] = 1, 2
    everything = Measured(
        Measures(tuple(SHAPE_TERMS), INTENSITY_TERMS, ring=2),
        "a.tif",
        lambda box: np.ones((box[2] - box[0], box[3] - box[1], 1)),
        ("CHANNEL",),
    )
    plain, chosen = table(labels, None), table(labels, everything)
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([list(chosen), *zip(*chosen.values(), strict=True)])
    write_tables(tmp_path / "all.csv", [ImageTable("a.tif", PurePosixPath("A01/a.tif"), tmp_path / "a.csv")])
    with open(tmp_path / "all_summary.csv", newline="") as file:
        summary = next(csv.reader(file))

    written = {re.sub(r"_um(2?)$", r"_px\1", name) for name in (*plain, *chosen)} - {"centroid_x_px", "centroid_y_px"}
    written |= {"centroid_x_um", "centroid_y_um"} | {re.sub(r"^median_.*", "median_COLUMN", name) for name in summary}
    assert written == columns_of_the_page() - {"intensity_mean_0", "_1", "_2"}


def test_the_glossary_is_sorted() -> None:
    words = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)[1:]
    assert len(words) > 50
    assert words == sorted(words, key=str.casefold)
