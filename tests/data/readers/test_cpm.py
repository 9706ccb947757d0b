from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pffnet_d2.data.readers import consep, cpm15, cpm17
from pffnet_d2.errors import InputError

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def fifteen(layouts: ModuleType) -> Pairs:
    """Of different sizes, as those of CPM15."""
    return {f"image{i:02d}": layouts.apart(i, (40 + 2 * i, 60 - i)) for i in range(1, 16)}


@pytest.fixture(scope="module")
def pairs(layouts: ModuleType) -> list[tuple[np.ndarray, np.ndarray]]:
    return [layouts.apart(i, (48, 56)) for i in range(64)]


def check(records: list, written: Pairs) -> None:
    assert [r.image_id for r in records] == list(written)
    for record, (image, labels) in zip(records, written.values(), strict=True):
        np.testing.assert_array_equal(record.read_image()[..., :3], image)
        read = record.read_label_map()
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, labels)
    assert sum(int(labels.max()) for _, labels in written.values()) > 20


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_cpm15(tmp_path: Path, layouts: ModuleType, fifteen: Pairs, form: str) -> None:
    root = layouts.write(tmp_path, layouts.challenge_files(fifteen, "CPM15/"), form)
    assert cpm15.splits(root) == ("all",)
    check(list(cpm15.records(root, "all")), fifteen)


def test_cpm15_masks_exchanged_as_published(tmp_path: Path, layouts: ModuleType, fifteen: Pairs) -> None:
    files = layouts.challenge_files(fifteen, "")
    files["image04_mask.txt"], files["image05_mask.txt"] = files["image05_mask.txt"], files["image04_mask.txt"]
    check(list(cpm15.records(layouts.write(tmp_path, files), "all")), fifteen)


def test_repack(tmp_path: Path, layouts: ModuleType, fifteen: Pairs, pairs: list) -> None:
    """All in one folder, as the HoVer-Net authors share them; names repeat between data sets and splits."""
    fifteen = {f"image_{i:02d}": pair for i, pair in enumerate(fifteen.values())}
    train = {f"image_{i:02d}": pair for i, pair in enumerate(pairs[:32])}
    test = {f"image_{i:02d}": pair for i, pair in enumerate(pairs[32:])}
    files = {
        **layouts.repack_files(fifteen, "cpm15/"),
        **layouts.repack_files(train, "cpm17/train/"),
        **layouts.repack_files(test, "cpm17/test/"),
    }
    root = layouts.write(tmp_path / "test", files)  # a folder above, whatever its name, is none of a split
    check(list(cpm15.records(root, "all")), fifteen)
    assert cpm17.splits(root) == ("train", "test")
    check(list(cpm17.records(root, "train")), {f"train_{name}": pair for name, pair in train.items()})
    check(list(cpm17.records(root, "test")), {f"test_{name}": pair for name, pair in test.items()})


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_cpm17_of_the_challenge(tmp_path: Path, layouts: ModuleType, pairs: list, form: str) -> None:
    train = {f"image{i + 1:02d}": pair for i, pair in enumerate(pairs[:32])}
    root = layouts.write(tmp_path, layouts.challenge_files(train, "Training/"), form)
    assert cpm17.splits(root) == ("train",)
    check(list(cpm17.records(root, "train")), {f"train_{name}": pair for name, pair in train.items()})


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_consep(tmp_path: Path, layouts: ModuleType, pairs: list, form: str) -> None:
    train = {f"train_{i + 1}": pair for i, pair in enumerate(pairs[:27])}  # 10 comes after 9
    test = {f"test_{i + 1}": pair for i, pair in enumerate(pairs[27:41])}
    files = {**layouts.repack_files(train, "CoNSeP/Train/"), **layouts.repack_files(test, "CoNSeP/Test/")}
    root = layouts.write(tmp_path, files, form)
    assert consep.splits(root) == ("train", "test")
    check(list(consep.records(root, "train")), train)
    check(list(consep.records(root, "test")), test)


def test_bad_downloads(tmp_path: Path, layouts: ModuleType, fifteen: Pairs) -> None:
    files = layouts.challenge_files(fifteen, "")

    def read(name: str, change: dict[str, bytes | None]) -> list:
        changed = {path: content for path, content in {**files, **change}.items() if content is not None}
        return list(cpm15.records(layouts.write(tmp_path / name, changed), "all"))

    with pytest.raises(InputError, match=r"image03\.png: neither image03_mask\.txt nor image03\.mat is there"):
        read("a", {"image03_mask.txt": None})
    with pytest.raises(InputError, match=r"image03_mask\.txt: its image image03\.png is missing"):
        read("b", {"image03.png": None})
    with pytest.raises(InputError, match="14 images of cpm15 instead of 15"):
        read("c", {"image03.png": None, "image03_mask.txt": None})
    with pytest.raises(InputError, match="has the same name; remove one of them"):
        read("d", {"Images/image03.png": files["image03.png"]})
    damaged = read("e", {"image03_mask.txt": files["image03_mask.txt"][:500]})[2]
    with pytest.raises(InputError, match=r"image03_mask\.txt: \d+ values for the 46 x 57 pixels"):
        damaged.read_label_map()
    with pytest.raises(InputError, match="unknown split 'train' of cpm15; choose one of all"):
        list(cpm15.records(tmp_path / "a", "train"))


def test_wrong_places(tmp_path: Path, layouts: ModuleType) -> None:
    root = layouts.write(tmp_path, layouts.repack_files({"train_1": layouts.apart(1)}, "CoNSeP/Train/"))
    with pytest.raises(InputError, match="holds no folder train or test"):
        cpm17.splits(root)  # CoNSeP's folders are not CPM17's
    with pytest.raises(InputError, match="1 images of consep train instead of 27"):
        list(consep.records(root, "train"))
    for reader in (cpm17, consep):
        with pytest.raises(InputError, match="unknown split 'val'"):
            list(reader.records(root, "val"))
