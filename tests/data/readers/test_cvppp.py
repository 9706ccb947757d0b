from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pffnet_d2.data.readers import cvppp
from pffnet_d2.errors import InputError

Plants = dict[str, tuple[np.ndarray, np.ndarray | None]]


@pytest.fixture(scope="module")
def plants(layouts: ModuleType) -> Plants:
    """All plants of A1 and some of A2 and A4, which have names in common with A1's. One leaf is in two parts."""
    keys = [f"A1/{name}" for names in cvppp.PUBLISHED["A1"].values() for name in names]
    tests = {f"A1/{name}" for name in cvppp.PUBLISHED["A1"]["test"]} | {"A2/plant002", "A4/plant0009"}
    keys += ["A2/plant001", "A2/plant002", "A2/plant010", "A4/plant0001", "A4/plant0009"]
    out: Plants = {}
    for i, key in enumerate(keys):
        image, labels = layouts.apart(i % 7, (32, 40))
        labels = np.zeros_like(labels) if i == 0 else labels + 0
        if i == 0:
            labels[2:20, 3:6], labels[8:11, 3:30], labels[15:20, 3:6] = 1, 2, 1
        out[key] = (image, None if key in tests else labels)
    return out


def check(root: Path, plants: Plants) -> None:
    assert cvppp.splits(root) == ("train", "test")
    found = list(cvppp.records(root, "train"))
    assert [r.image_id for r in found] == [f"A1_{name}" for name in cvppp.PUBLISHED["A1"]["train"]]
    for record in found:
        image, labels = plants[record.image_id.replace("_", "/")]
        np.testing.assert_array_equal(record.read_image()[..., :3], image)
        assert record.read_label_map is not None
        read = record.read_label_map()
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, labels)
        assert (record.split_group, record.image_type) == (record.image_id, "plant")
        assert record.report_group == record.image_id[:2]
    tests = list(cvppp.records(root, "test"))
    assert [r.image_id for r in tests] == [f"A1_{name}" for name in cvppp.PUBLISHED["A1"]["test"]]
    assert all(r.read_label_map is None for r in tests)
    np.testing.assert_array_equal(tests[0].read_image()[..., :3], plants["A1/plant003"][0])
    assert [r.image_id for r in cvppp.records(root, "train", scheme="a2")] == ["A2_plant001", "A2_plant010"]
    assert [r.image_id for r in cvppp.records(root, "test", scheme="a4")] == ["A4_plant0009"]
    everything = [r.image_id for r in cvppp.records(root, "train", scheme="all")]
    assert len(everything) == len(set(everything)) == 131
    with pytest.raises(InputError, match=r"no <plant>_rgb\.png in a folder A3"):
        cvppp.splits(root, scheme="a3")


def test_lists() -> None:
    lists = cvppp.PUBLISHED["A1"]
    assert [len(names) for names in lists.values()] == [128, 33]
    assert sorted(lists["train"] + lists["test"]) == [f"plant{i:03d}" for i in range(1, 162)]


def test_the_challenges_100_and_28(tmp_path: Path, layouts: ModuleType, plants: Plants) -> None:
    """The list follows the documented rule, and train, val and test are A1 without remainder."""
    root = layouts.write(tmp_path, layouts.cvppp_files(plants))
    assert cvppp.splits(root, scheme="challenge") == ("train", "val", "test")
    found = {s: list(cvppp.records(root, s, scheme="challenge")) for s in ("train", "val", "test")}
    ids = {split: [r.image_id for r in records] for split, records in found.items()}
    assert [len(names) for names in ids.values()] == [100, 28, 33]
    labelled = [f"A1_{name}" for name in cvppp.PUBLISHED["A1"]["train"]]
    assert ids["val"] == [name for i, name in enumerate(labelled) if 28 * (i + 1) // 128 > 28 * i // 128]
    assert sorted(ids["train"] + ids["val"]) == labelled
    assert ids["test"] == [r.image_id for r in cvppp.records(root, "test")]
    assert all(r.read_label_map is not None for r in found["train"] + found["val"])
    assert all(r.read_label_map is None for r in found["test"])
    with pytest.raises(InputError, match="unknown split 'val' of cvppp; choose one of train, test"):
        list(cvppp.records(root, "val"))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_png(tmp_path: Path, layouts: ModuleType, plants: Plants, form: str) -> None:
    check(layouts.write(tmp_path, layouts.cvppp_files(plants), form), plants)


def test_hdf5(tmp_path: Path, layouts: ModuleType, plants: Plants) -> None:
    pytest.importorskip("h5py", reason="h5py is optional")
    check(layouts.cvppp_hdf5(tmp_path, plants), plants)


def test_hdf5_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "CVPPP2017_training_images.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="h5py is not installed, which HDF5 files need; run `pip install h5py`"):
        cvppp.splits(tmp_path)


def test_damaged_hdf5(tmp_path: Path, layouts: ModuleType, plants: Plants) -> None:
    pytest.importorskip("h5py", reason="h5py is optional")
    few = {key: plants[key] for key in ("A2/plant001", "A2/plant002", "A2/plant010")}
    images = layouts.cvppp_hdf5(tmp_path / "a", few) / "CVPPP2017_training_images.h5"
    (first, _) = cvppp.records(tmp_path / "a", "train", scheme="a2")
    images.write_bytes(images.read_bytes()[: images.stat().st_size // 2])
    with pytest.raises(InputError, match=r"CVPPP2017_training_images\.h5:A2/plant001/rgb: cannot be read"):
        first.read_image()
    with pytest.raises(InputError, match=r"CVPPP2017_training_images\.h5: cannot be read as HDF5"):
        cvppp.splits(tmp_path / "a", scheme="a2")
    root = layouts.cvppp_hdf5(tmp_path / "b", few)
    (root / "CVPPP2017_training_truth.h5").unlink()
    with pytest.raises(InputError, match=r"A2/plant001/rgb: .*download CVPPP2017_training_truth\.h5"):
        list(cvppp.records(root, "test", scheme="a2"))  # they are no test images
    root = layouts.write(tmp_path / "c", {"CVPPP2017_training_images.h5": b"h5"}, "zip")
    with pytest.raises(InputError, match="HDF5 files are read where they lie; extract the zip first"):
        cvppp.splits(root)


def rendering(label_map: np.ndarray, layouts: ModuleType, mode: str) -> bytes:
    """What comes out when a palette image is converted."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(layouts.png(label_map.astype(np.uint8), "P"))) as image:
        image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_bad_label_images(tmp_path: Path, layouts: ModuleType, plants: Plants) -> None:
    labels = plants["A1/plant001"][1]
    files = layouts.cvppp_files({f"A2/plant{i}": plants["A1/plant001"] for i in range(6)})
    for i, mode in enumerate(("RGB", "RGBA", "L")):
        files[f"training/A2/plant{i}_label.png"] = rendering(labels, layouts, mode)
    files["training/A2/plant3_label.png"] = files["training/A2/plant3_label.png"][:-40]
    files["training/A2/plant4_label.png"] = layouts.png(labels.astype(np.uint8))  # grey without palette: ids
    with Image.open(io.BytesIO(files["training/A2/plant2_label.png"])) as grey:
        files["training/A2/plant5_label.png"] = layouts.png(np.array(grey.convert("RGB")))
    found = list(cvppp.records(layouts.write(tmp_path, files), "train", scheme="a2"))
    words = (
        "plant0_label.png: shows labels in colours.*label image unchanged",
        "plant1_label.png: shows labels in colours",
        "plant2_label.png: grey values with gaps up to .*palette PNG unchanged",
        "plant3_label.png: cannot be read as an image",
    )
    for record, message in zip(found, words, strict=False):
        with pytest.raises(InputError, match=message):
            record.read_label_map()
    np.testing.assert_array_equal(found[4].read_label_map(), labels)
    with pytest.raises(InputError, match=r"plant5_label\.png: grey values with gaps up to "):
        found[5].read_label_map()


def test_missing_files(tmp_path: Path, layouts: ModuleType, plants: Plants) -> None:
    files = layouts.cvppp_files(plants)

    def read(name: str, *without: str, split: str = "train") -> list:
        root = layouts.write(tmp_path / name, {k: v for k, v in files.items() if not k.endswith(without or ("-",))})
        return list(cvppp.records(root, split))

    with pytest.raises(InputError, match=r"A1/plant007_rgb\.png: A1/plant007_label is missing"):
        read("a", "A1/plant007_label.png")
    with pytest.raises(InputError, match=r"A1/plant007_label\.png: its image A1/plant007_rgb is missing"):
        read("b", "A1/plant007_rgb.png")
    with pytest.raises(InputError, match="A1/plant007_rgb of split train is missing"):
        read("c", "A1/plant007_rgb.png", "A1/plant007_label.png")
    with pytest.raises(InputError, match="A1/plant003_rgb of split test is missing"):
        read("d", "A1/plant003_rgb.png", split="test")
    with pytest.raises(InputError, match="unknown split 'val' of cvppp"):
        read("e", split="val")
    with pytest.raises(InputError, match="unknown split scheme 'a5'"):
        cvppp.splits(tmp_path / "e", scheme="a5")
    layouts.write(tmp_path / "e", {"copy/A1/plant001_rgb.png": b""})
    with pytest.raises(InputError, match="is the same plant; remove one of them"):
        cvppp.splits(tmp_path / "e")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_submission(tmp_path: Path, layouts: ModuleType, plants: Plants, dtype: type) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is optional")
    template = layouts.cvppp_hdf5(tmp_path, plants, dtype) / "submission_example.h5"
    before = template.read_bytes()
    label_map = np.zeros((32, 40), np.int32)
    label_map[3:9, 2:7], label_map[20:, 30:] = 1, 2
    out = tmp_path / "results" / "answer.h5"
    empty = cvppp.write_submission(template, out, {"A1_plant003": label_map, "A4_plant0009": label_map * 7})
    assert len(empty) == 33  # 35 test plants of the template but two
    assert template.read_bytes() == before
    assert [p.name for p in out.parent.iterdir()] == ["answer.h5"]
    with h5py.File(out) as answer, h5py.File(template) as example:
        names: list[str] = []
        example.visit(names.append)
        assert {n for n in names if answer[n].name} == set(names)
        assert answer["A1/plant003/label_filename"][()] == example["A1/plant003/label_filename"][()]
        assert answer["A1/plant003/label"].dtype == (np.uint8 if dtype == np.float64 else dtype)
        np.testing.assert_array_equal(answer["A1/plant003/label"], label_map)
        np.testing.assert_array_equal(answer["A4/plant0009/label"], label_map)  # contiguous
        assert not np.any(answer["A1/plant004/label"])  # not what the example has


def test_bad_submissions(tmp_path: Path, layouts: ModuleType, plants: Plants) -> None:
    pytest.importorskip("h5py", reason="h5py is optional")
    template = layouts.cvppp_hdf5(tmp_path, plants) / "submission_example.h5"
    labels = np.zeros((32, 40), np.int32)
    many = np.arange(32 * 40).reshape(32, 40)
    cases = (
        (template, {"plant003": labels}, "plant003: is not in .*name plants as in A1_plant003"),
        (
            template,
            {"A1_plant003": labels.T},
            "A1_plant003: a label map of 40 x 32 pixels, the challenge's has 32 x 40",
        ),
        (template, {"A1_plant003": many}, "A1_plant003: 1279 objects do not fit"),
        (template, {"A1_plant003": labels - 1}, "A1_plant003: negative labels"),
        (template, {"A1_plant003": labels + 0.5}, "A1_plant003: labels that are no whole numbers"),
        (tmp_path / "CVPPP2017_training_images.h5", {}, "holds no <subset>/<plant>/label"),
        (tmp_path / "nowhere.h5", {}, r"nowhere\.h5 -> .*not the challenge's submission_example\.h5"),
        (Path(__file__), {}, "not the challenge's submission_example"),
    )
    for source, label_maps, words in cases:
        with pytest.raises(InputError, match=words):
            cvppp.write_submission(source, tmp_path / "out" / "answer.h5", label_maps)
        assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(InputError, match="is the template; give another name"):
        cvppp.write_submission(template, template, {})
