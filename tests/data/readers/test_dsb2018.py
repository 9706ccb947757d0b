from __future__ import annotations

import json
import logging
import os
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_fill_holes

from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.readers import dsb2018
from pffnet_d2.data.readers.source import shipped
from pffnet_d2.errors import InputError

Pair = tuple[np.ndarray, np.ndarray]
HEADER = "ImageId,EncodedPixels,Height,Width,Usage\n"


@pytest.fixture(scope="module")
def pairs(layouts: ModuleType) -> dict[str, Pair]:
    made = (layouts.apart(i, (48, 60 + i)) for i in range(20))
    some = [pair for pair in made if pair[1].max() > 1][:4]
    return {f"{i:064x}": pair for i, pair in enumerate(some)}


def stage(
    layouts: ModuleType, pairs: dict[str, Pair], name: str = "stage1_train", masks: bool = True
) -> dict[str, bytes]:
    """RGBA images and a black and white mask an object, as the Bowl has them."""
    files = {}
    for image_id, (image, labels) in pairs.items():
        files[f"{name}/{image_id}/images/{image_id}.png"] = layouts.png(layouts.rgba(image))
        for i in range(1, labels.max() + 1) if masks else ():
            mask = (labels == i).astype(np.uint8) * 255
            files[f"{name}/{image_id}/masks/{i:03d}{image_id[3:]}.png"] = layouts.png(mask)
    return files


def runs(mask: np.ndarray) -> str:
    """Kaggle's run lengths, pixel by pixel: column-major, from 1."""
    pairs: list[list[int]] = []
    for place in np.flatnonzero(mask.ravel(order="F")) + 1:
        if pairs and pairs[-1][0] + pairs[-1][1] == place:
            pairs[-1][1] += 1
        else:
            pairs.append([int(place), 1])
    return " ".join(f"{start} {length}" for start, length in pairs)


def solution(pairs: dict[str, Pair]) -> bytes:
    rows = [
        f"{image_id},{runs(labels == i)},{labels.shape[0]},{labels.shape[1]},Public\n"
        for image_id, (_, labels) in pairs.items()
        for i in range(1, labels.max() + 1)
    ]
    return (HEADER + "".join(rows)).encode()


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_read_what_was_written(
    tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair], form: str, caplog: pytest.LogCaptureFixture
) -> None:
    test = dict(list(pairs.items())[2:])
    files = stage(layouts, dict(list(pairs.items())[:2])) | stage(layouts, test, "stage1_test", masks=False)
    files["stage1_solution.csv"] = solution(test)
    root = layouts.write(tmp_path, files, form)
    assert dsb2018.splits(root) == ("train", "test")
    for split, ids in (("train", list(pairs)[:2]), ("test", list(pairs)[2:])):
        found = list(dsb2018.records(root, split))
        assert [r.image_id for r in found] == ids
        for record in found:
            image, labels = pairs[record.image_id]
            np.testing.assert_array_equal(record.read_image()[..., :3], image)
            read = record.read_label_map()
            assert read.dtype == np.int32
            np.testing.assert_array_equal(read, labels)
    assert "2 images; stage1_train has 670" in caplog.text


def test_given_the_stage_itself(tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair]) -> None:
    root = layouts.write(tmp_path, stage(layouts, pairs) | stage(layouts, pairs, "stage2_final"))
    assert len(list(dsb2018.records(root / "stage1_train", "train"))) == 4
    assert dsb2018.splits(root) == ("train",)


def test_masks_of_the_corrected_edition(tmp_path: Path, layouts: ModuleType) -> None:
    """RGB, anti-aliased, two that overlap, one of 0 and 1; a hole is filled, unless it is another object's place."""
    masks = {name: np.zeros((8, 10), np.uint8) for name in ("a", "b", "c")}
    masks["a"][0:6, 0:6], masks["a"][1, 1], masks["a"][3:5, 3:5] = 255, 0, 0
    masks["a"][0:6, 6] = 80  # what anti-aliasing left
    masks["b"][5:8, 4:9] = 200
    masks["c"][3:5, 3:5] = 1
    folder = f"stage1_train/{'0' * 64}"
    files = {f"{folder}/images/{'0' * 64}.png": layouts.png(np.zeros((8, 10, 3), np.uint8))}
    files |= {f"{folder}/masks/{name}.png": layouts.png(mask) for name, mask in masks.items()}
    files[f"{folder}/masks/b.png"] = layouts.png(np.stack([masks["b"], masks["b"] // 4, masks["b"] * 0], axis=2))
    root = layouts.write(tmp_path, files)
    expected = np.zeros((8, 10), np.int32)
    expected[0:6, 0:6], expected[5:8, 4:9], expected[3:5, 3:5] = 1, 2, 3
    (record,) = dsb2018.records(root, "train")
    np.testing.assert_array_equal(record.read_label_map(), expected)
    (record,) = dsb2018.records(root, "train", fill_holes=False)
    expected[1, 1] = 0
    np.testing.assert_array_equal(record.read_label_map(), expected)


def test_run_lengths_by_hand(tmp_path: Path, layouts: ModuleType) -> None:
    """Pixels 2, 3 and 6 of 3 rows: down the first column, the end of the second; a row that is ignored; no nuclei."""
    files = stage(layouts, {"a": (np.zeros((3, 2, 3), np.uint8), np.zeros((3, 2), np.int32))}, "stage1_test", False)
    files |= stage(layouts, {"b": (np.zeros((3, 2, 3), np.uint8), np.zeros((3, 2), np.int32))}, "stage1_test", False)
    files["stage1_solution.csv"] = (HEADER + "a,2 2 6 1,3,2,Public\na,1 1,3,2,Ignored\nb,,3,2,Private\n").encode()
    a, b = dsb2018.records(layouts.write(tmp_path, files), "test")
    assert a.read_label_map().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert b.read_label_map().tolist() == [[0, 0], [0, 0], [0, 0]]


def test_image_type() -> None:
    grey = np.full((4, 4, 3), 30, np.uint8)
    assert dsb2018.image_type_of(grey) == "fluorescence"
    assert dsb2018.image_type_of(grey + 150) == "brightfield"
    assert (
        dsb2018.image_type_of(np.dstack([grey, np.full((4, 4), 255, np.uint8)])) == "fluorescence"
    )  # alpha is no colour
    grey[1, 1, 2] = 31
    assert dsb2018.image_type_of(grey) == "histology"


def test_one_type_stretched(tmp_path: Path, layouts: ModuleType) -> None:
    """A dark grey image, a bright one and one in colour: only the dark one is prepared, and it fills the scale."""
    labels = layouts.apart(0)[1]
    dark = (10 + 30 * (labels > 0)).astype(np.uint8)[..., None].repeat(3, axis=2)
    colour = dark.copy()
    colour[..., 0] += 100
    styles = {"a": (dark, labels), "b": (dark + np.uint8(150), labels), "c": (colour, labels)}
    root = layouts.write(tmp_path, stage(layouts, styles))
    options = {"image_type": "fluorescence", "normalisation": "stretch"}
    prepare("dsb2018", root, tmp_path / "out", Selection(splits=["train"], options=options))
    (file,) = (tmp_path / "out/dsb2018/train/images").iterdir()
    assert file.name == "a.png"
    assert set(np.unique(np.asarray(Image.open(file)))) == {0, 255}
    for option, remedy in {
        "image_type": "one of fluorescence, histology",
        "normalisation": "as_is or stretch",
    }.items():
        with pytest.raises(InputError, match=f"option {option}=x: give {remedy}"):
            prepare("dsb2018", root, tmp_path / "other", Selection(splits=["train"], options={option: "x"}))


def test_shipped_lists() -> None:
    lists = shipped("dsb2018_objectguided")
    assert [len(lists[split]) for split in dsb2018.SCHEMES["objectguided"]] == [402, 134, 134]
    assert len({i for split in dsb2018.SCHEMES["objectguided"] for i in lists[split]}) == 670
    assert Counter(split for _, split in dsb2018.bbbc039_fields().values()) == {"train": 25, "val": 9, "test": 9}
    held_out = shipped("dsb2018_nuclei")["val"]
    assert len(set(held_out)) == len(held_out) == 80
    assert set(held_out) < {i for split in dsb2018.SCHEMES["objectguided"] for i in lists[split]}
    assert not set(held_out) & dsb2018.bbbc039_fields().keys()


def test_the_split_of_the_shipped_model(tmp_path: Path, layouts: ModuleType) -> None:
    """What is held out is listed; all other images train, but for the fields of BBBC039."""
    held_out = shipped("dsb2018_nuclei")["val"]
    field = min(dsb2018.bbbc039_fields())
    others = ["0" * 64, "f" * 64]
    root = layouts.write(tmp_path / "all", stage(layouts, {i: layouts.apart(0) for i in [*held_out, field, *others]}))
    assert dsb2018.splits(root, scheme="nuclei") == ("train", "val")
    assert [r.image_id for r in dsb2018.records(root, "train", scheme="nuclei")] == others
    assert [r.image_id for r in dsb2018.records(root, "val", scheme="nuclei")] == held_out
    less = layouts.write(tmp_path / "less", stage(layouts, {i: layouts.apart(0) for i in held_out[1:]}))
    assert dsb2018.splits(less, scheme="nuclei") == ("val",)
    with pytest.raises(InputError, match=rf"images of nuclei val missing: 1, {held_out[0]} first; .* partial=true"):
        list(dsb2018.records(less, "val", scheme="nuclei"))


def test_objectguided_and_shared_fields(tmp_path: Path, layouts: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    lists = shipped("dsb2018_objectguided")
    shared = dsb2018.bbbc039_fields()
    chosen = [next(i for i in lists["val"] if i in shared), next(i for i in lists["val"] if i not in shared)]
    root = layouts.write(tmp_path, stage(layouts, {i: layouts.apart(0) for i in chosen}))
    assert dsb2018.splits(root, scheme="objectguided") == ("val",)
    with pytest.raises(InputError, match=r"images of objectguided val missing: 132, .* partial=true"):
        list(dsb2018.records(root, "val", scheme="objectguided"))
    found = [r.image_id for r in dsb2018.records(root, "val", scheme="objectguided", partial=True)]
    assert found == [i for i in lists["val"] if i in chosen]
    assert "objectguided val missing: 132" in caplog.text
    found = [r.image_id for r in dsb2018.records(root, "train", exclude_bbbc039=True)]
    assert found == chosen[1:]
    prepare(
        "dsb2018", root, tmp_path / "out", Selection(scheme="objectguided", splits=["val"], options={"partial": "true"})
    )
    data = json.loads((tmp_path / "out/dsb2018/objectguided_val/instances.json").read_text())
    assert data["info"]["options"] == {
        "partial": True,
        "exclude_bbbc039": False,
        "exclude_bad": False,
        "fill_holes": True,
        "image_type": "",
        "normalisation": "as_is",
    }
    assert data["images"][0]["image_type"] == "histology"


def test_images_of_bad_truth(tmp_path: Path, layouts: ModuleType) -> None:
    """All six are in the original edition; one of them is here, beside another image."""
    lists = [i for split in shipped("dsb2018_objectguided").values() for i in split]
    assert len([i for i in lists if i.startswith(dsb2018.BAD)]) == len(dsb2018.BAD) == 6
    chosen = sorted([next(i for i in lists if i.startswith("7b38c917")), lists[0]])
    root = layouts.write(tmp_path, stage(layouts, {i: layouts.apart(0) for i in chosen}))
    assert [r.image_id for r in dsb2018.records(root, "train")] == chosen
    assert [r.image_id for r in dsb2018.records(root, "train", exclude_bad=True)] == [lists[0]]


def _no_masks(files: dict[str, Any]) -> None:
    del files[next(name for name in files if "stage1_train" in name and "/masks/" in name)]


def _no_image(files: dict[str, Any]) -> None:
    del files[next(name for name in files if "stage1_train" in name and "/images/" in name)]


def _twice(files: dict[str, Any]) -> None:
    name = next(name for name in files if "stage1_train" in name and "/images/" in name)
    files[f"again/{name}"] = files[name]


def _csv(text: str) -> Any:
    return lambda files: files.update({"stage1_solution.csv": text.encode()})


@pytest.mark.parametrize(
    ("split", "damage", "message"),
    [
        ("train", _no_masks, "has no masks"),
        ("train", _no_image, "has masks but no image"),
        ("train", _twice, "is there twice"),
        ("dev", lambda files: None, "unknown split 'dev'"),
        ("test", _csv(HEADER + "t,1 1,5,6,Public\nx,1 1,5,6,Public\n"), "images of its rows missing: 1, x first"),
        ("test", _csv(HEADER), "has no row"),
        ("test", _csv("ImageId,EncodedPixels\nt,1 1\n"), "has no column Height"),
        ("test", _csv(HEADER + "t,1 1,five,6,Public\n"), "line 2, image t: Height and Width are no whole numbers"),
        ("test", _csv(HEADER + "t,1 1,5\n"), "line 2, image t: Height and Width"),
        ("test", _csv(HEADER + "t,30 2,5,6,Public\n"), "leave the image of 5 x 6"),
        ("test", _csv(HEADER + "t,0 2,5,6,Public\n"), "leave the image"),
        ("test", _csv(HEADER + "t,3,5,6,Public\n"), "leave the image"),
        ("test", _csv(HEADER + "t,1 x,5,6,Public\n"), "no whole numbers"),
        ("test", _csv(HEADER + "t,1 1,5,6,Public\nt,3 1,6,6,Public\n"), "another size than in the first row"),
        ("test", _csv(HEADER + "t,1 1,6,5,Public\n"), r"t: the image has 5 x 6 pixels .* its mask 6 x 5"),
    ],
)
def test_refusals(tmp_path: Path, layouts: ModuleType, split: str, damage: Any, message: str) -> None:
    one = np.zeros((5, 6), np.int32)
    one[1:3, 1:4] = 1
    blank = np.zeros((5, 6, 3), np.uint8)
    files = stage(layouts, {"a": (blank, one)}) | stage(layouts, {"t": (blank, one)}, "stage1_test", False)
    files["stage1_solution.csv"] = solution({"t": (blank, one)})
    damage(files)
    root = layouts.write(tmp_path / "in", files)
    with pytest.raises(InputError, match=message) as caught:
        prepare("dsb2018", root, tmp_path / "out", Selection(splits=[split]))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.png"))
    assert not list((tmp_path / "out").rglob(".*"))


def test_masks_that_are_none(tmp_path: Path, layouts: ModuleType) -> None:
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3, 1:3] = 255
    folder = "stage1_train/a"
    for name, content, message in (
        ("size", layouts.png(mask[:4]), r"z\.png: 4 x 6 pixels where the other masks of the image have 5 x 6"),
        ("empty", layouts.png(mask * 0), r"z\.png: holds no object"),
        ("depth", layouts.png(mask.astype(np.uint16)), r"z\.png: holds uint16 values"),
        ("cut", layouts.png(mask)[:-30], r"z\.png: cannot be read"),
    ):
        files = {
            f"{folder}/images/a.png": layouts.png(np.zeros((5, 6, 3), np.uint8)),
            f"{folder}/masks/b.png": layouts.png(mask),
            f"{folder}/masks/z.png": content,
        }
        (record,) = dsb2018.records(layouts.write(tmp_path / name, files), "train")
        with pytest.raises(InputError, match=message):
            record.read_label_map()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no files"):
        dsb2018.splits(tmp_path)
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(InputError, match=r"put stage1_train\.zip there"):
        dsb2018.splits(tmp_path)
    with pytest.raises(InputError, match=r"holds no stage1_test/"):
        list(dsb2018.records(tmp_path, "test"))


def test_real_masks(caplog: pytest.LogCaptureFixture) -> None:
    """Of 397 images: as many objects as mask files, and on every 20th each object is its mask with its holes filled."""
    caplog.set_level(logging.ERROR)
    data = Path(os.environ.get("PFFNET_DATA", "")) / "dsb2018"
    if not os.environ.get("PFFNET_DATA") or not data.is_dir():
        pytest.skip("PFFNET_DATA is not set to a folder with dsb2018/")
    found = list(dsb2018.records(data, "train"))
    assert len(found) == 397
    files = dsb2018._masks(data, dsb2018.list_files(data))
    assert sum(map(len, files.values())) == 16_941
    for record in found[::20]:
        labels = record.read_label_map()
        own = files["train", record.image_id]
        assert labels.max() == len(own)
        for i, file in enumerate(own, 1):
            mask = file.image() > 80
            np.testing.assert_array_equal(labels == i, binary_fill_holes(mask))


def test_the_source_is_the_current_folder(
    tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever names it: stage1_test stays the test set."""
    test = dict(list(pairs.items())[2:])
    files = stage(layouts, test, "stage1_test", masks=False) | {"stage1_solution.csv": solution(test)}
    monkeypatch.chdir(layouts.write(tmp_path, files))
    assert dsb2018.splits(Path()) == dsb2018.splits(tmp_path) == ("test",)
    monkeypatch.chdir(tmp_path / "stage1_test")
    assert {stage for stage, _ in dsb2018._images(Path(), dsb2018.list_files(Path()))} == {"test"}
