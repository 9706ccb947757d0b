from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pffnet_d2.atomic_write import locked
from pffnet_d2.data import prepare as prepare_module
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.prepared import PreparedSplit
from pffnet_d2.data.readers import READERS
from pffnet_d2.data.readers.record import Record
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS, PERCENTILE_16_BIT, Normalisation, to_rgb8
from pffnet_d2.masks.coco import annotations_to_label_map
from pffnet_d2.masks.instance_mask import InstanceMask


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
    prepare("phantoms", None, tmp_path, Selection(splits=["val"], count=3))
    data = json.loads((tmp_path / "phantoms" / "val" / "instances.json").read_text())
    assert len(data["images"]) == 3
    assert not (tmp_path / "phantoms" / "train").exists()
    for i in range(3):
        image, labels = synthetic_image(2, i)
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
    prepare("bbbc039", source, out, Selection(splits=["val"]), force=True)
    after = stamps(out)
    assert [k for k in after if after[k] == before[k]] == [k for k in before if k.startswith("bbbc039/train")]
    prepare("bbbc039", source, out, Selection(splits=["train"], count=1))  # another option
    assert sorted(p.name for p in (out / "bbbc039/train/images").iterdir()) == ["a.png"]
    (out / "bbbc039/train/images/a.png").unlink()  # no longer complete
    prepare("bbbc039", source, out, Selection(splits=["train"], count=1))
    assert (out / "bbbc039/train/images/a.png").is_file()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    out = tmp_path / "out"
    prepare("bbbc039", source, out, Selection(splits=["train"]))
    before = stamps(out)

    def fail(*_: Any) -> None:
        raise failure("stop")

    monkeypatch.setattr(prepare_module, "write_semantic", fail)
    for split in ("train", "val"):
        with pytest.raises(failure):
            prepare("bbbc039", source, out, Selection(splits=[split]), force=True)
    assert stamps(out) == before
    assert [p.name for p in (out / "bbbc039").iterdir()] == ["train"]


def test_left_over_of_a_killed_run_does_no_harm(tmp_path: Path, source: Path) -> None:
    partial = tmp_path / "out" / "bbbc039" / ".val.partial" / "images"
    partial.mkdir(parents=True)
    (partial / "stray.png").write_bytes(b"")
    prepare("bbbc039", source, tmp_path / "out", Selection(splits=["val"]))
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
    with pytest.raises(InputError, match="unknown data set 'kumarr'; choose one of phantoms, bbbc039, "):
        prepare("kumarr", source, tmp_path)
    with pytest.raises(InputError, match="unknown split 'dev' of bbbc039"):
        prepare("bbbc039", source, tmp_path, Selection(splits=["dev"]))
    with pytest.raises(InputError, match="bbbc039 needs --source"):
        prepare("bbbc039", None, tmp_path)
    with pytest.raises(InputError, match=r"test\.txt is missing"):
        prepare("bbbc039", source, tmp_path, Selection(splits=["test"]))
    with pytest.raises(InputError, match="gone: no such folder"):
        prepare("bbbc039", tmp_path / "gone", tmp_path)
    with pytest.raises(InputError, match="at least one image"):
        prepare("phantoms", None, tmp_path, Selection(count=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        prepare("phantoms", None, tmp_path / "file", Selection(splits=["val"], count=1))
    mine = tmp_path / "out" / "phantoms" / "val"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="was not made by pffnet prepare"):
        prepare("phantoms", None, tmp_path / "out", Selection(splits=["val"], count=1), force=True)
    assert (mine / "thesis.txt").is_file()


def record(name: str, group: str = "", **fields: Any) -> Record:
    labels = np.zeros((6, 7), np.int32)
    labels[1:3, 1:3] = 1
    image = np.full((6, 7), sum(name.encode()) % 256, np.uint8)
    return Record(
        **{"image_id": name, "read_image": lambda: image, "read_label_map": lambda: labels, "split_group": group}
        | fields
    )


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A reader "many" with two schemes, options, groups, a split without truth; returns the keywords it was given."""
    calls: list[dict[str, Any]] = []

    def records(root: Path, split: str, **given: Any) -> Iterator[Record]:
        calls.append(given)
        if split == "hidden":
            yield record("h", read_label_map=None)
            return
        size = {"train": 8, "test": 4, "even": 5}[split]
        for i in range(size):
            yield record(
                f"{split}{i}",
                f"{split}{i // 2}",
                image_type=lambda image: "plant",
                report_group=lambda image: str(image.shape),
            )

    module = SimpleNamespace(
        SPLITS=("train", "test", "hidden"),
        SCHEMES={"first": ("train", "test", "hidden"), "second": ("even",)},
        OPTIONS={"size": (3, ""), "shift": (-0.5, ""), "whole": (True, ""), "word": ("", "")},
        CATEGORY="leaf",
        REPORT_GROUPS={"test": "unseen"},
        NORMALISATION=AS_IS,
        splits=lambda root, **given: ("even",) if given.get("scheme") else ("train", "test", "hidden"),
        records=records,
    )
    monkeypatch.setitem(READERS, "many", module)
    return calls


def test_schemes_options_and_hidden_truth(
    tmp_path: Path, reader: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("many", tmp_path, tmp_path / "out")
    prepare(
        "many",
        tmp_path,
        tmp_path / "out",
        Selection(scheme="second", options={"size": "9", "whole": "False", "shift": "1e-1"}),
    )
    assert reader == [{}, {}, {}, {"size": 9, "whole": False, "shift": 0.1, "scheme": "second"}]
    folder = tmp_path / "out" / "many"
    assert sorted(p.name for p in folder.iterdir()) == ["hidden", "second_even", "test", "train"]
    info = PreparedSplit(folder / "second_even").info()
    assert info["options"] == {"size": 9, "shift": 0.1, "whole": False, "word": ""}
    assert (info["scheme"], info["category"], info["labelled"], info["reader"]) == ("second", "leaf", True, "many")
    data = json.loads((folder / "train/instances.json").read_text())
    assert data["categories"][0]["name"] == "leaf"
    assert {(image["split_group"], image["report_group"], image["image_type"]) for image in data["images"]} == {
        (f"train{i}", "(6, 7)", "plant") for i in range(4)
    }
    assert not PreparedSplit(folder / "hidden").info()["labelled"]
    assert not (folder / "hidden/semantic").exists()
    assert "many hidden: 1 images without published truth" in capsys.readouterr().out
    prepare("many", tmp_path, tmp_path / "out", Selection(splits=["hidden"]))
    assert "left alone" in capsys.readouterr().out
    prepare("many", tmp_path, tmp_path / "out", Selection(scheme="second", options={"size": "8"}))
    assert "left alone" not in capsys.readouterr().out  # other options
    prepare("many", tmp_path, tmp_path / "out", Selection(splits=["test"], count=2), dataset="few")
    assert PreparedSplit(tmp_path / "out/few/test").info()["dataset"] == "few"


def test_folds(tmp_path: Path, reader: list[dict[str, Any]]) -> None:
    prepare("many", tmp_path, tmp_path / "out", Selection(folds=3, fold=1, seed=5))
    folder = tmp_path / "out" / "many"
    assert sorted(p.name for p in folder.iterdir()) == ["fold1of3_train", "fold1of3_val", "folds3_seed5.json"]
    lists = json.loads((folder / "folds3_seed5.json").read_text())
    assert (lists["folds"], lists["seed"]) == (3, 5)
    held_out = [set(lists[f"fold{i}of3_val"]) for i in range(3)]
    everything = set().union(*held_out)
    assert len(everything) == sum(map(len, held_out)) == 12  # the split without truth is in no fold
    for i in range(3):
        assert len(held_out[i]) == 4
        assert set(lists[f"fold{i}of3_train"]) == everything - held_out[i]
        assert {name[:-1] + str(int(name[-1]) // 2) for name in held_out[i]} & {
            name[:-1] + str(int(name[-1]) // 2) for name in everything - held_out[i]
        } == set()
    for part in ("train", "val"):
        data = json.loads((folder / f"fold1of3_{part}" / "instances.json").read_text())
        assert [image["file_name"][:-4] for image in data["images"]] == lists[f"fold1of3_{part}"]
        assert (data["info"]["folds"], data["info"]["seed"]) == (3, 5)
    before = stamps(folder / "fold1of3_val")
    prepare("many", tmp_path, tmp_path / "out", Selection(folds=3, seed=5))
    assert stamps(folder / "fold1of3_val") == before
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 6
    prepare("many", tmp_path, tmp_path / "out", Selection(folds=2, fold=0, scheme="second"))
    assert (folder / "second_fold0of2_val" / "instances.json").is_file()


def test_overlapping_objects(tmp_path: Path, reader: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    big, small = np.ones((4, 4), np.bool_), np.ones((2, 2), np.bool_)

    def records(root: Path, split: str) -> Iterator[Record]:
        yield record("x", read_masks=lambda: [InstanceMask(0, 0, big), InstanceMask(3, 3, small)])
        yield record("y", read_masks=lambda: [InstanceMask(0, 0, big), InstanceMask(5, 6, small)])

    monkeypatch.setattr(READERS["many"], "records", records)
    prepare("many", tmp_path, tmp_path / "out", Selection(splits=["test"], count=1))
    data = json.loads((tmp_path / "out/many/test/instances.json").read_text())
    assert [a["area"] for a in data["annotations"]] == [16, 4]
    semantic = np.asarray(Image.open(tmp_path / "out/many/test/semantic/x.png"))
    assert semantic.sum() == 19
    with pytest.raises(InputError, match="y: a region at row 5, column 6 leaves the image"):
        prepare("many", tmp_path, tmp_path / "out", Selection(splits=["test"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "third"}, "unknown split scheme 'third' of many; choose one of first, second"),
        ({"scheme": "second", "splits": ["train"]}, "unknown split 'train' of many; choose one of even"),
        ({"options": {"depth": "1"}}, "unknown option 'depth' of many; choose from size, shift, whole, word"),
        ({"options": {"size": "1.5"}}, "option size=1.5 of many: give a whole number"),
        ({"options": {"shift": "left"}}, "option shift=left of many: give a number"),
        ({"options": {"whole": "1"}}, "option whole=1 of many: give true or false"),
        ({"fold": 1}, "--fold 1 needs --folds"),
        ({"folds": 3, "fold": 3}, "--fold 3: give 0 to 2"),
        ({"folds": 3, "fold": -1}, "--fold -1: give 0 to 2"),
        ({"folds": 7}, "--folds 7: give 2 to 6"),
        ({"folds": 3, "splits": ["train"]}, "give either --splits or --folds"),
    ],
)
def test_refused_arguments(
    tmp_path: Path, reader: list[dict[str, Any]], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare("many", tmp_path, tmp_path / "out", Selection(**arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("bbbc039", "that is the name of a published data set"), (".hidden", "use letters, digits")],
)
def test_refused_names(tmp_path: Path, reader: list[dict[str, Any]], dataset: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare("many", tmp_path, tmp_path / "out", dataset=dataset)


def test_more_refusals(tmp_path: Path, source: Path, reader: list[dict[str, Any]], monkeypatch: Any) -> None:
    with pytest.raises(InputError, match="unknown option 'size' of bbbc039; it has none"):
        prepare("bbbc039", source, tmp_path / "out", Selection(options={"size": "3"}))
    with pytest.raises(InputError, match="unknown split scheme 'other' of bbbc039; it has none"):
        prepare("bbbc039", source, tmp_path / "out", Selection(scheme="other"))
    with pytest.raises(InputError, match="phantoms have no schemes, options or folds"):
        prepare("phantoms", None, tmp_path / "out", Selection(folds=3))
    for names, message in (
        (["a", "a"], "two images are called a"),
        (["a/b"], "not a file name"),
        ([".a"], "not a file name"),
    ):
        monkeypatch.setattr(READERS["many"], "records", lambda root, split, names=names: iter(map(record, names)))
        with pytest.raises(InputError, match=message):
            prepare("many", tmp_path, tmp_path / "out", Selection(splits=["test"]))
    assert not (tmp_path / "out").exists()


def test_what_a_kill_left_when_one_split_replaced_another(tmp_path: Path, source: Path) -> None:
    """Killed before the new one had its place, and before the old one was removed."""
    place, out = tmp_path / "out" / "bbbc039", tmp_path / "out"
    prepare("bbbc039", source, out, Selection(splits=["val"]))
    before = stamps(out)
    (place / "val").rename(place / ".val.old")
    (place / ".val.partial").mkdir()
    prepare("bbbc039", source, out, Selection(splits=["val"]))
    assert stamps(out) == before
    (place / ".val.old").mkdir()
    (place / ".val.lock").touch()
    prepare("bbbc039", source, out, Selection(splits=["val"]))
    assert stamps(out) == before
    assert [p.name for p in place.iterdir()] == ["val"]


def test_one_process_at_a_time_makes_a_split(tmp_path: Path, source: Path) -> None:
    """The first is not disturbed; another split is made meanwhile; what is complete can be had without a lock."""
    out = tmp_path / "out"
    prepare("bbbc039", source, out, Selection(splits=["train"]))
    with locked(out / "bbbc039" / "val"):
        with pytest.raises(
            InputError, match=rf"val: process {os.getpid()} on \S+, since .*, is writing it; wait until"
        ):
            prepare("bbbc039", source, out, Selection(splits=["val"]))
        prepare("bbbc039", source, out, Selection(splits=["train"]), force=True)
    prepare("bbbc039", source, out, Selection(splits=["val"]))


def test_the_same_files_make_the_same_splits(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the time and the number of threads."""
    for name, seconds, workers in (("a", 0.0, 1), ("b", 1e9, 3)):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: seconds)
        prepare("bbbc039", source, tmp_path / name, workers=workers)
        monkeypatch.undo()
    files = [p.relative_to(tmp_path / "a") for p in sorted((tmp_path / "a").rglob("*")) if p.is_file()]
    assert len(files) > 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
