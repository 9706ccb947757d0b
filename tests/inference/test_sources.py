"""Which files a command's arguments stand for, and what their results are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import choose
from pffnet_d2.inference.options import ImageOptions
from pffnet_d2.inference.sources import find_sources, label_of


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


def test_files_that_differ_in_their_ending(images: Path, tmp_path: Path) -> None:
    for name in ("a.png", "c.ome.tif"):
        (images / name).touch()
    found = {source.path.name: source.name for source in find_sources([str(images)], tmp_path, [])}
    assert found == {"a.png": "a.png", "a.tif": "a.tif", "b.png": "b", "c.ome.tif": "c.ome.tif", "c.tif": "c.tif"}


def test_two_files_for_one_name(images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.tif").touch()
    with pytest.raises(InputError, match=r"a\.tif and .*a\.tif: both give results"):
        find_sources([str(images), str(other)], tmp_path, [])


def test_every_plane_and_image(tmp_path: Path) -> None:
    stack = np.zeros((11, 2, 8, 9), np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZCYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", stack[0, 0])
    with tifffile.TiffWriter(tmp_path / "c.ome.tif", ome=True) as tiff:
        tiff.write(stack[0, 0])
        tiff.write(stack[:2], metadata={"axes": "TCYX"}, photometric="minisblack")
    (tmp_path / "d.tif").write_bytes(b"no image")

    def found(**options: Any) -> list[tuple[str, str]]:
        chosen = ImageOptions(channels=[0], **options)
        sources = find_sources([str(tmp_path)], tmp_path / "out", [], chosen)
        return [(s.name, label_of(s.path, s.name, s.options(chosen))) for s in sources]

    planes = found(plane="all")
    assert planes[:2] == [("a_Z00", "a.ome.tif:Z=0"), ("a_Z01", "a.ome.tif:Z=1")]
    # c contains several images and d none, which reading them will say
    assert planes[10:] == [("a_Z10", "a.ome.tif:Z=10"), ("b", "b.tif"), ("c", "c.ome.tif"), ("d", "d.tif")]
    scenes = found(scene="all")
    names = [("c_scene0", "c.ome.tif:scene=0"), ("c_scene1", "c.ome.tif:scene=1")]
    assert scenes == [("a", "a.ome.tif"), ("b", "b.tif"), *names, ("d", "d.tif")]
    assert found(scene="all", plane="all")[12:] == [
        names[0],
        ("c_scene1_T0", "c.ome.tif:scene=1,T=0"),
        ("c_scene1_T1", "c.ome.tif:scene=1,T=1"),
        ("d", "d.tif"),
    ]
    assert found(project="max", plane="all")[:2] == [("a", "a.ome.tif"), ("b", "b.tif")]
    (tmp_path / "a_Z03.tif").touch()
    with pytest.raises(InputError, match=r"a_Z03\.tif.*both give results"):
        found(plane="all")


def test_no_image_is_replaced(images: Path) -> None:
    (images / "a_labels.tif").touch()
    with pytest.raises(InputError, match=r"would replace this image; choose another --out"):
        find_sources([str(images / "*.tif")], images, choose(["label-tiff"]).files)
    find_sources([str(images / "*.tif")], images, choose(["csv"]).files)
