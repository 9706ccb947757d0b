from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pffnet_d2.data.readers import tnbc
from pffnet_d2.errors import InputError


@pytest.fixture(scope="module")
def patients(layouts: ModuleType) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Phantoms of the patients of val and test, and one of the brain tumours that the later download has."""
    stems = [f"{p}_{i + 1}" for p in (*tnbc.PATIENTS["val"], *tnbc.PATIENTS["test"]) for i in range(tnbc.IMAGES[p])]
    return {stem: layouts.spaced(i) for i, stem in enumerate([*stems, "12_1"])}


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_read_what_was_written(tmp_path: Path, layouts: ModuleType, patients: dict, form: str) -> None:
    root = layouts.write(tmp_path, layouts.tnbc_files(patients), form)
    assert tnbc.splits(root) == ("val", "test")
    objects = 0
    for split, size in (("val", 7), ("test", 13)):
        found = list(tnbc.records(root, split))
        assert len(found) == size
        assert sorted({r.split_group for r in found}) == tnbc.PATIENTS[split]
        for record in found:
            image, labels = patients[record.image_id]
            np.testing.assert_array_equal(record.read_image()[..., :3], image)
            read = record.read_label_map()
            assert read.dtype == np.int32
            np.testing.assert_array_equal(read, labels)
            objects += int(labels.max())
    assert objects > 30


def test_lists() -> None:
    assert [sum(tnbc.IMAGES[p] for p in patients) for patients in tnbc.PATIENTS.values()] == [30, 7, 13]
    assert sorted(p for patients in tnbc.PATIENTS.values() for p in patients) == list(tnbc.IMAGES)


def test_objects() -> None:
    """A ring with a speck in its hole, a diagonal pair (one object), a stray pixel."""
    foreground = np.array(
        [[int(c) for c in row] for row in ("11111000", "10001010", "10101000", "10001001", "11111010")], np.bool_
    )
    assert tnbc.objects(foreground, 1).tolist() == [
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 2, 0],
        [1, 1, 3, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 4],
        [1, 1, 1, 1, 1, 0, 4, 0],
    ]
    assert tnbc.objects(foreground, 2).max() == 2  # the specks are below it, the diagonal pair is not
    assert tnbc.objects(foreground, 24).max() == 1  # 24 pixels: filled but for the speck
    assert tnbc.objects(foreground, 25).max() == 0


def test_bad_downloads(tmp_path: Path, layouts: ModuleType, patients: dict) -> None:
    files = layouts.tnbc_files(patients)
    base = "TNBC_NucleiSegmentation"
    image, truth = f"{base}/Slide_08/08_2.png", f"{base}/GT_08/08_2.png"

    def read(name: str, change: dict[str, bytes | None]) -> list:
        changed = {path: content for path, content in {**files, **change}.items() if content is not None}
        return list(tnbc.records(layouts.write(tmp_path / name, changed), "val"))

    with pytest.raises(InputError, match=r"08_2\.png: GT_08/08_2\.png is missing"):
        read("a", {truth: None})
    with pytest.raises(InputError, match=r"08_2\.png: Slide_08/08_2\.png is missing"):
        read("b", {image: None})
    with pytest.raises(InputError, match="3 images of patient 08 instead of 4"):
        read("c", {image: None, truth: None})
    with pytest.raises(InputError, match="has the same name; remove one of them"):
        read("d", {"copy/GT_08/08_2.png": files[truth]})
    found = {
        r.image_id: r
        for r in read(
            "e",
            {
                truth: layouts.png(np.zeros((64, 80, 3), np.uint8)),
                f"{base}/GT_08/08_3.png": files[f"{base}/GT_08/08_3.png"][:60],
                f"{base}/Slide_08/08_3.png": files[f"{base}/Slide_08/08_3.png"][:-500],
            },
        )
    }
    with pytest.raises(InputError, match=r"08_2\.png: not black and white in 8 bits"):
        found["08_2"].read_label_map()
    with pytest.raises(InputError, match=r"GT_08/08_3\.png: cannot be read as an image"):
        found["08_3"].read_label_map()
    with pytest.raises(InputError, match=r"Slide_08/08_3\.png: cannot be read as an image"):
        found["08_3"].read_image()


def test_wrong_places(tmp_path: Path, layouts: ModuleType) -> None:
    root = layouts.write(tmp_path, {"Slide_01/01_1.png": b"", "notes.txt": b""})
    with pytest.raises(InputError, match="all Slide_<patient> folders of none of the splits train, val, test"):
        tnbc.splits(root)
    with pytest.raises(InputError, match="unknown split 'validation'"):
        next(tnbc.records(root, "validation"))
    with pytest.raises(InputError, match="unknown split scheme 'kumar'"):
        next(tnbc.records(root, "val", scheme="kumar"))


def test_real_data(pffnet_data: Callable[[str], Path]) -> None:
    """Objects of patients 01 to 08; the smallest six of all 4,028 are among theirs."""
    root = pffnet_data("tnbc")
    found = {r.image_id: r for split in ("train", "val") for r in tnbc.records(root, split)}
    counts: dict[str, int] = {}
    for record in found.values():
        counts[record.split_group] = counts.get(record.split_group, 0) + int(record.read_label_map().max())
    assert counts == {"01": 458, "02": 188, "03": 287, "04": 596, "05": 420, "06": 204, "07": 555, "08": 445}
    for min_size, total in ((0, 3157), (16, 3153), (30, 3151)):
        read = [r for split in ("train", "val") for r in tnbc.records(root, split, min_size=min_size)]
        assert sum(int(r.read_label_map().max()) for r in read) == total
    assert found["01_1"].read_image().shape == (512, 512, 4)
