from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pffnet_d2.data import prepare as prepare_module
from pffnet_d2.data.coco import annotations_to_label_map
from pffnet_d2.data.images import PERCENTILE_16_BIT, Normalisation, to_rgb8
from pffnet_d2.data.phantoms import phantom
from pffnet_d2.data.prepare import prepare
from pffnet_d2.errors import InputError


@pytest.fixture
def source(tmp_path: Path, writers: ModuleType) -> Path:
    labels = np.zeros((40, 50), np.int32)
    labels[3:10, 4:12], labels[3:10, 12:20], labels[30:40, 40:50] = 1, 2, 3
    image = np.where(labels > 0, 2500, 150).astype(np.uint16) + np.arange(50, dtype=np.uint16)
    empty = (np.full((40, 50), 140, np.uint16), np.zeros((40, 50), np.int32))
    fields = {"training": {"a": (image, labels), "b": empty}, "validation": {"c": (image[::-1], labels[::-1])}}
    result: Path = writers.write_files(tmp_path / "source", writers.bbbc039_files(fields), "zip")
    return result


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_layout(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare("bbbc039", source, tmp_path / "out")
    assert "bbbc039 train: 2 images (1 empty), 3 objects" in (text := capsys.readouterr().out)
    assert "bbbc039 test: left out" in text
    folder = tmp_path / "out" / "bbbc039" / "train"
    assert set(stamps(folder)) == {"instances.json", "images/a.png", "images/b.png", "semantic/a.png", "semantic/b.png"}
    assert sorted(p.name for p in folder.parent.iterdir()) == ["train", "val"]
    data = json.loads((folder / "instances.json").read_text())
    assert Normalisation(**data["info"]["normalisation"]) == PERCENTILE_16_BIT
    a, b = data["images"]
    assert (a["id"], a["file_name"], a["height"], a["width"], a["image_type"]) == (1, "a.png", 40, 50, "fluorescence")
    assert [x["image_id"] for x in data["annotations"]] == [1, 1, 1]
    assert [x["id"] for x in data["annotations"]] == [
        1,
        2,
        3,
    ]
    label_map = annotations_to_label_map(data["annotations"], 40, 50)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "semantic" / "a.png")), label_map > 0)
    raw = np.where(label_map > 0, 2500, 150).astype(np.uint16) + np.arange(50, dtype=np.uint16)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "images" / "a.png")), to_rgb8(raw, PERCENTILE_16_BIT))
    assert np.asarray(Image.open(folder / "images" / b["file_name"])).max() == 0


def test_phantoms(tmp_path: Path) -> None:
    prepare("phantoms", None, tmp_path, splits=["val"], count=3)
    data = json.loads((tmp_path / "phantoms" / "val" / "instances.json").read_text())
    assert len(data["images"]) == 3
    assert not (tmp_path / "phantoms" / "train").exists()
    for i in range(3):
        image, labels = phantom(2, i)
        own = [a for a in data["annotations"] if a["image_id"] == i + 1]
        np.testing.assert_array_equal(annotations_to_label_map(own, 256, 256), labels)
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "phantoms/val/images" / data["images"][i]["file_name"])), image
        )


def test_second_call_changes_nothing(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    prepare("bbbc039", source, out)
    before = stamps(out)
    capsys.readouterr()
    prepare("bbbc039", source, out)
    assert stamps(out) == before
    assert capsys.readouterr().out.count("left alone") == 2
    prepare("bbbc039", source, out, splits=["val"], force=True)
    after = stamps(out)
    assert [k for k in after if after[k] == before[k]] == [k for k in before if k.startswith("bbbc039/train")]
    prepare("bbbc039", source, out, splits=["train"], count=1)  # another option
    assert sorted(p.name for p in (out / "bbbc039/train/images").iterdir()) == ["a.png"]
    (out / "bbbc039/train/images/a.png").unlink()  # no longer complete
    prepare("bbbc039", source, out, splits=["train"], count=1)
    assert (out / "bbbc039/train/images/a.png").is_file()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    out = tmp_path / "out"
    prepare("bbbc039", source, out, splits=["train"])
    before = stamps(out)

    def fail(*_: Any) -> None:
        raise failure("stop")

    monkeypatch.setattr(prepare_module, "write_semantic", fail)
    for split in ("train", "val"):
        with pytest.raises(failure):
            prepare("bbbc039", source, out, splits=[split], force=True)
    assert stamps(out) == before
    assert [p.name for p in (out / "bbbc039").iterdir()] == ["train"]


def test_left_over_of_a_killed_run_does_no_harm(tmp_path: Path, source: Path) -> None:
    partial = tmp_path / "out" / "bbbc039" / ".val.partial" / "images"
    partial.mkdir(parents=True)
    (partial / "stray.png").write_bytes(b"")
    prepare("bbbc039", source, tmp_path / "out", splits=["val"])
    folder = tmp_path / "out" / "bbbc039"
    assert [p.name for p in folder.iterdir()] == ["val"]
    assert not (folder / "val/images/stray.png").exists()


def test_mask_of_another_size(tmp_path: Path, writers: ModuleType) -> None:
    files = writers.bbbc039_files({"training": {"field 1": (np.zeros((8, 9), np.uint16), np.zeros((9, 8), np.int32))}})
    source = writers.write_files(tmp_path / "source", files, "folder")
    with pytest.raises(InputError, match=r"field 1: the image has 8 x 9 pixels .* its mask 9 x 8"):
        prepare("bbbc039", source, tmp_path / "out")
    assert not list((tmp_path / "out" / "bbbc039").iterdir())


def test_truncated_file(tmp_path: Path, writers: ModuleType) -> None:
    files = writers.bbbc039_files({"training": {"a": (np.ones((8, 9), np.uint16), np.ones((8, 9), np.int32))}})
    files["masks/a.png"] = files["masks/a.png"][:-30]
    with pytest.raises(InputError, match=r"masks/a\.png: cannot be read"):
        prepare("bbbc039", writers.write_files(tmp_path / "s", files, "folder"), tmp_path / "out")
    assert not list((tmp_path / "out" / "bbbc039").iterdir())


def test_refusals(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError, match="unknown data set 'kumarr'; choose one of phantoms, bbbc039"):
        prepare("kumarr", source, tmp_path)
    with pytest.raises(InputError, match="unknown split 'dev' of bbbc039"):
        prepare("bbbc039", source, tmp_path, splits=["dev"])
    with pytest.raises(InputError, match="bbbc039 needs --source"):
        prepare("bbbc039", None, tmp_path)
    with pytest.raises(InputError, match=r"test\.txt is missing"):
        prepare("bbbc039", source, tmp_path, splits=["test"])
    with pytest.raises(InputError, match="gone: no such folder"):
        prepare("bbbc039", tmp_path / "gone", tmp_path)
    with pytest.raises(InputError, match="at least one image"):
        prepare("phantoms", None, tmp_path, count=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        prepare("phantoms", None, tmp_path / "file", splits=["val"], count=1)
    mine = tmp_path / "out" / "phantoms" / "val"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="was not made by pffnet prepare"):
        prepare("phantoms", None, tmp_path / "out", splits=["val"], count=1, force=True)
    assert (mine / "thesis.txt").is_file()
