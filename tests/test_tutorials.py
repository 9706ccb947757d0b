"""The runner of the tutorials, and their pictures. `make tutorials` runs the tutorials themselves."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs/tutorials"
PAGES = sorted(FOLDER.glob("*.md"))

_spec = importlib.util.spec_from_file_location("tutorials", FOLDER / "run.py")
assert _spec is not None
assert _spec.loader is not None
tutorials = importlib.util.module_from_spec(_spec)
sys.modules["tutorials"] = tutorials
_spec.loader.exec_module(tutorials)


def page(tmp_path: Path, *blocks: tuple[str, str]) -> Path:
    file = tmp_path / "page.md"
    file.write_text("# Title\n\n" + "\n\n".join(f"```{language}\n{text}\n```" for language, text in blocks) + "\n")
    return file


def test_blocks_share_a_folder_and_python_its_names(tmp_path: Path) -> None:
    file = page(
        tmp_path,
        ("python", "words = ['a', 'b']\nopen('list.txt', 'w').write(' '.join(words))"),
        ("bash", "cat list.txt; echo; echo 3.5 s, 1,200 objects >&2"),
        ("text", "a b\n...\n99 s, 7 objects"),
        ("python", "print(len(words))"),
        ("text", "2"),
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.txt").write_text("of the run before")
    tutorials.run(file, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["list.txt"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([("bash", "echo so; false; echo on")], r"page\.md:4: exit code 1\nso\n$"),
        ([("bash", "false | true")], "exit code 1"),
        ([("bash", "echo $undefined")], "unbound variable"),
        ([("python", "x = 1"), ("python", "\nx / 0")], r"page\.md:8: ZeroDivisionError"),
        ([("python", "x ="), ("text", "")], "SyntaxError"),
        ([("bash", "echo 2 objects"), ("text", "2 nuclei")], "does not print '2 nuclei', but:\n2 objects"),
        ([("text", "printed by nothing")], "does not print"),
    ],
)
def test_a_block_that_fails_is_named(tmp_path: Path, blocks: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(tutorials.TutorialError, match=message):
        tutorials.run(page(tmp_path, *blocks), tmp_path / "out")


def test_pictures_are_small_or_refused(tmp_path: Path) -> None:
    wide, noise, made = tmp_path / "wide.png", tmp_path / "noise.png", tmp_path / "pictures/made.png"
    Image.fromarray(np.zeros((300, 2400, 3), np.uint8)).save(wide)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1600, 480, 3), dtype=np.uint8)).save(noise)
    tutorials.make_picture(wide, made)
    assert Image.open(made).size == (1600, 200)
    for source, message in ((noise, "show a part of noise.png"), (tmp_path / "none.png", "makes no none.png")):
        with pytest.raises(tutorials.TutorialError, match=message):
            tutorials.make_picture(source, tmp_path / "refused.png")
    assert not (tmp_path / "refused.png").exists()


@pytest.mark.parametrize("file", PAGES, ids=[file.stem for file in PAGES])
def test_the_pictures_of_a_page_are_its_own(file: Path) -> None:
    """Each picture in pictures/ is made by the page that shows it, and is there."""
    text = file.read_text(encoding="utf-8")
    made = tutorials.pictures(text)
    assert set(made) == {name for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text) if name.startswith("pictures/")}
    for name in made:
        assert (FOLDER / name).stat().st_size <= tutorials.MAX_BYTES, name


def test_no_picture_is_left_over() -> None:
    shown = {name for file in PAGES for name in tutorials.pictures(file.read_text(encoding="utf-8"))}
    assert {f"pictures/{path.name}" for path in (FOLDER / "pictures").iterdir()} == shown
