from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.readers import READERS, options, schemes, source
from pffnet_d2.data.readers.source import SourceFile, find_part, list_files
from pffnet_d2.errors import InputError


def test_folders_and_zips_alike(tmp_path: Path, layouts: ModuleType) -> None:
    files = {"b/x.png": b"1", "a.txt": b"2", "b/c/d.tar.png": b"3"}
    layouts.write(tmp_path / "plain", files)
    layouts.write(tmp_path / "packed", files, "zip")
    (tmp_path / "plain" / ".DS_Store").write_bytes(b"")
    plain, packed = list_files(tmp_path / "plain"), list_files(tmp_path / "packed")
    assert [f.read() for f in plain] == [f.read() for f in packed] == [b"2", b"3", b"1"]
    assert [f.name for f in packed] == ["a.txt", "d.tar.png", "x.png"]
    assert [(f.stem, f.suffix) for f in plain] == [("a", ".txt"), ("d.tar", ".png"), ("x", ".png")]
    assert packed[2].parts[-3:] == ("download.zip", "b", "x.png")
    assert plain[2].parts[-3:] == ("plain", "b", "x.png")
    assert pickle.loads(pickle.dumps(packed[2])).read() == b"1"
    assert str(packed[2]).endswith("download.zip:b/x.png")


def test_what_is_extracted_wins(tmp_path: Path, layouts: ModuleType) -> None:
    layouts.write(tmp_path, {"x": b"old"}, "zip")
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "x").write_bytes(b"new")
    assert [f.read() for f in list_files(tmp_path)] == [b"new"]


def test_many_threads_read_one_archive(tmp_path: Path, layouts: ModuleType) -> None:
    files = {f"{i:03d}": bytes([i]) * 5000 for i in range(200)}
    found = list_files(layouts.write(tmp_path, files, "zip"))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(SourceFile.read, found)) == list(files.values())


def test_an_archive_that_changes_is_opened_again(tmp_path: Path, layouts: ModuleType) -> None:
    layouts.write(tmp_path, {"x": b"1"}, "zip")
    assert list_files(tmp_path)[0].read() == b"1"
    layouts.write(tmp_path, {"x": b"22"}, "zip")
    assert list_files(tmp_path)[0].read() == b"22"


@pytest.mark.parametrize("name", ["../up", "/root", "a/../../b", "..\\up", "C:/windows"])
@pytest.mark.parametrize("find", [list_files, lambda root: find_part(root, "download")])
def test_member_that_points_outside(tmp_path: Path, layouts: ModuleType, name: str, find: object) -> None:
    layouts.write(tmp_path, {"x": b"1"}, "zip")
    with zipfile.ZipFile(tmp_path / "download.zip", "a") as archive:
        archive.writestr(name, b"")
    assert callable(find)
    with pytest.raises(InputError, match=r"download\.zip: its member .* points outside"):
        find(tmp_path)


def test_member_that_unpacks_to_too_much(tmp_path: Path, layouts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(3 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 10_000
    monkeypatch.setattr(source, "MAX_MEMBER_BYTES", 2 << 20)
    with pytest.raises(InputError, match=r"'x\.png' unpacks to 3 MiB, more than the 2 MiB allowed"):
        list_files(tmp_path)


def test_nothing_to_read(tmp_path: Path, layouts: ModuleType) -> None:
    with pytest.raises(InputError, match="none: no such folder"):
        list_files(tmp_path / "none")
    with pytest.raises(InputError, match="holds no files"):
        list_files(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK not a zip")
    with pytest.raises(InputError, match=r"a\.zip: not a zip file, or truncated"):
        list_files(tmp_path)


def test_every_reader_keeps_the_contract() -> None:
    assert {"bbbc039", "dsb2018", "own"} <= set(READERS)
    for name, reader in READERS.items():
        assert reader.__doc__
        assert isinstance(reader.CATEGORY, str)
        assert next(iter(schemes(name).values())) == reader.SPLITS
        for default, text in options(name).values():
            assert type(default) in (bool, int, float, str)
            assert text
        if name != "own":
            assert reader.SPLITS
            for word in ("Licence", "Cit", "ttp"):
                assert word in reader.__doc__, f"{name}: {word}"


@pytest.mark.parametrize("find", [list_files, lambda root: find_part(root, "images")])
def test_links_to_folders_are_followed(tmp_path: Path, layouts: ModuleType, find: Callable[..., Any]) -> None:
    """Also those in linked folders; a loop ends, and a folder with a place of its own is not listed twice."""
    layouts.write(tmp_path / "disk", {"plate/x.png": b"1", "other/y.png": b"2"})
    root = tmp_path / "source"
    layouts.write(root, {"images/a/z.png": b"3"})
    (root / "images" / "plate").symlink_to(tmp_path / "disk" / "plate")
    (tmp_path / "disk" / "plate" / "deeper").symlink_to("../other")
    (tmp_path / "disk" / "other" / "back").symlink_to(tmp_path / "disk" / "plate")
    (root / "images" / "loop").symlink_to(root)
    (root / "images" / "itself").symlink_to(".")
    (root / "images" / "a.lnk").symlink_to("a")
    names = [str(file.path.relative_to(root)) for file in find(root)]
    assert names == ["images/a/z.png", "images/plate/deeper/y.png", "images/plate/x.png"]


def test_links_that_lead_nowhere(tmp_path: Path, layouts: ModuleType) -> None:
    root = layouts.write(tmp_path, {"images/a.png": b"1"})
    (root / "images" / ".#lock").symlink_to("nobody@nowhere")  # an editor's
    assert len(list_files(root)) == 1
    for name, target in (("b.png", "gone.png"), ("c.png", "c.png")):
        (root / "images" / name).symlink_to(target)
        with pytest.raises(InputError, match=rf"{name}: is a link to {target}, which is not there"):
            list_files(root)
        (root / "images" / name).unlink()


def test_own_images_in_linked_folders(tmp_path: Path, layouts: ModuleType) -> None:
    """Nothing but links in the folder that is prepared."""
    files = {"raw/a.png": layouts.png(np.zeros((5, 6, 3), np.uint8)), "truth/a.png": layouts.png(np.eye(5, 6) > 0)}
    layouts.write(tmp_path / "disk", files)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "images").symlink_to(tmp_path / "disk" / "raw")
    (tmp_path / "source" / "labels").symlink_to(tmp_path / "disk" / "truth")
    prepare(
        "own", tmp_path / "source", tmp_path, Selection(options={"fractions": "all=1", "truth": "ids"}), dataset="mine"
    )
    assert (tmp_path / "mine" / "all" / "images" / "a.png").is_file()
