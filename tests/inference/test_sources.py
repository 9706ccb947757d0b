"""Which files a command's arguments stand for, and what their results are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import choose
from pffnet_d2.inference.sources import find_sources


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of a.tif, b.png, c.tif and a text."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.tif", "b.png", "c.tif", "notes.txt"):
        (folder / name).touch()
    return folder


def test_folders_files_and_patterns(images: Path, tmp_path: Path) -> None:
    (images / "deep" / "er").mkdir(parents=True)
    (images / "deep" / "er" / "a.ome.tif").touch()

    def names(*arguments: object) -> list[str]:
        return [source.name for source in find_sources([str(a) for a in arguments], tmp_path, [])]

    assert names(images) == ["a", "b", "c"]
    assert names(images / "c.tif", images) == ["c", "a", "b"]
    assert names(images / "*.tif") == ["a", "c"]
    assert names(images / "**" / "*.tif") == ["a", "c", "deep/er/a"]
    assert names(images / "deep" / "*" / "*.tif") == ["er/a"]
    for argument, words in (
        (tmp_path / "none.tif", "no such file"),
        (images / "*.czi", "no file matches"),
        (images / "deep", "no images in this folder"),
    ):
        with pytest.raises(InputError, match=words):
            names(argument)
    odd = images / "[1].tif"  # a name, not a pattern
    odd.touch()
    assert names(odd) == ["[1]"]


def test_two_files_for_one_name(images: Path, tmp_path: Path) -> None:
    (images / "a.png").touch()
    with pytest.raises(InputError, match=r"a\.png and .*a\.tif: both give results"):
        find_sources([str(images)], tmp_path, [])


def test_no_image_is_replaced(images: Path) -> None:
    (images / "a_labels.tif").touch()
    with pytest.raises(InputError, match=r"would replace this image; choose another --out"):
        find_sources([str(images / "*.tif")], images, choose(["label-tiff"]).files)
    find_sources([str(images / "*.tif")], images, choose(["csv"]).files)
