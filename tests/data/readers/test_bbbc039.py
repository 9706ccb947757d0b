from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from skimage.measure import label

from pffnet_d2.data.readers import READERS, bbbc039
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.errors import InputError


def field(index: int, size: tuple[int, int] = (60, 80)) -> tuple[np.ndarray, np.ndarray]:
    """A 12-bit image and a label map whose objects are components, as an annotator's colouring can express."""
    image, labels = synthetic_image(9, index, size=size, style="fluorescence")
    return (image[..., 0].astype(np.uint16) * 16 + 15), np.asarray(label(labels, connectivity=2), np.int32)


def fields() -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    out = {
        "training": {f"IXMtest_A0{i}_s1_w1AB" : field(i) for i in range(3)},
        "validation": {"IXMtest_B01_s2_w1CD.x": field(7)},
        "test": {"IXMtest_C01_s3_w1EF": field(8)},
    }  # fmt: skip
    out["training"]["IXMtest_D01_s1_w1EMPTY"] = (np.full((60, 80), 130, np.uint16), np.zeros((60, 80), np.int32))
    return out


@pytest.mark.parametrize("form", ["folder", "doubled", "nested", "zip"])
def test_read_what_was_written(tmp_path: Path, writers: ModuleType, form: str) -> None:
    written = fields()
    root = writers.write_files(tmp_path / "download", writers.bbbc039_files(written), form)
    assert bbbc039.splits(root) == ("train", "val", "test")
    for split, name in (("train", "training"), ("val", "validation"), ("test", "test")):
        found = list(READERS["bbbc039"].records(root, split))
        assert [r.image_id for r in found] == list(written[name])
        for record, (image, labels) in zip(found, written[name].values(), strict=True):
            read = record.read_image()
            assert read.dtype == np.uint16
            np.testing.assert_array_equal(read, image)
            label_map = record.read_label_map()
            assert label_map.dtype == np.int32
            assert label_map.max(initial=0) == labels.max(initial=0)
            np.testing.assert_array_equal(label_map, labels)  # both number components in raster order


def test_touching_objects_are_told_apart_by_colour(tmp_path: Path, writers: ModuleType) -> None:
    """Equal values that touch only at a corner are one object; different values that touch are two."""
    mask = np.zeros((4, 5, 4), np.uint8)
    mask[..., 3] = 255
    mask[0, 0, 0], mask[1, 1, 0], mask[1, 2, 0], mask[3, 4, 0] = 1, 1, 3, 1
    files = writers.bbbc039_files({"training": {"a": (np.zeros((4, 5), np.uint16), np.zeros((4, 5), np.int32))}})
    files["masks/a.png"] = writers.png(mask)
    (record,) = bbbc039.records(writers.write_files(tmp_path, files, "folder"), "train")
    assert record.read_label_map().tolist() == [[1, 0, 0, 0, 0], [0, 1, 2, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 3]]


def test_extracted_wins_over_zip_and_lists_may_be_partial(tmp_path: Path, writers: ModuleType) -> None:
    files = writers.bbbc039_files({"validation": {"a": field(1)}})
    writers.write_files(tmp_path, files, "zip")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.tif").write_bytes(writers.tiff(np.full((60, 80), 7, np.uint16)))
    assert bbbc039.splits(tmp_path) == ("val",)
    (record,) = bbbc039.records(tmp_path, "val")
    assert (record.read_image() == 7).all()


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images/a.tif": None}, r"images/a\.tif, listed in training\.txt, is missing"),
        ({"masks/b.png": None}, r"masks/b\.png, listed in training\.txt, is missing"),
        ({"images/z.tif": b"x"}, r"z\.tif: in none of the lists training\.txt"),
        ({"masks/z.png": b"x"}, r"z\.png: in none of the lists"),
        ({"metadata/training.txt": None}, r"training\.txt is missing"),
        ({"metadata/training.txt": b"a.png\nb.png\na.png\n"}, "a is listed twice"),
        ({"metadata/training.txt": b"../a.png\n"}, "is not a file name"),
    ],
)
def test_missing_and_extra_files_are_named(
    tmp_path: Path, writers: ModuleType, form: str, change: dict, words: str
) -> None:
    files = {**writers.bbbc039_files({"training": {"a": field(0), "b": field(1)}}), **change}
    root = writers.write_files(tmp_path, {k: v for k, v in files.items() if v is not None}, form)
    with pytest.raises(InputError, match=words):
        list(bbbc039.records(root, "train"))


def test_wrong_places(tmp_path: Path, writers: ModuleType) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        list(bbbc039.records(tmp_path / "nowhere", "train"))
    with pytest.raises(InputError, match=r"neither a folder metadata/ with files nor metadata\.zip"):
        bbbc039.splits(tmp_path)
    (tmp_path / "metadata.zip").write_bytes(b"PK\3\4 cut")
    with pytest.raises(InputError, match=r"metadata\.zip: not a zip file, or truncated"):
        bbbc039.splits(tmp_path)
    with pytest.raises(InputError, match="unknown split 'validation'"):
        list(bbbc039.records(tmp_path, "validation"))
    root = writers.write_files(tmp_path / "other", {"metadata/readme.txt": b"hello"}, "folder")
    with pytest.raises(InputError, match=r"metadata holds none of training\.txt"):
        bbbc039.splits(root)


def test_damaged_files(tmp_path: Path, writers: ModuleType) -> None:
    files = writers.bbbc039_files({"training": {"a": field(0), "b": field(1)}})
    files["images/a.tif"] = files["images/a.tif"][:-900]
    files["masks/a.png"] = files["masks/a.png"][: len(files["masks/a.png"]) // 2]
    files["masks/b.png"] = writers.png(np.full((60, 80), 1, np.uint8))
    for form in ("folder", "zip"):
        a, b = bbbc039.records(writers.write_files(tmp_path / form, files, form), "train")
        with pytest.raises(InputError, match=r"a\.tif: cannot be read"):
            a.read_image()
        with pytest.raises(InputError, match=r"a\.png: cannot be read"):
            a.read_label_map()
        with pytest.raises(InputError, match=r"b\.png: not a BBBC039 mask"):
            b.read_label_map()


def test_damaged_member(tmp_path: Path, writers: ModuleType) -> None:
    root = writers.write_files(tmp_path, writers.bbbc039_files({"training": {"a": field(0)}}), "zip")
    archive = root / "images.zip"
    data = bytearray(archive.read_bytes())
    data[200:260] = bytes(60)  # inside the stored image: its checksum no longer fits
    archive.write_bytes(data)
    (record,) = bbbc039.records(root, "train")
    with pytest.raises(InputError, match=r"images\.zip:images/a\.tif: cannot be read from the zip"):
        record.read_image()


def test_real_counts() -> None:
    """The publisher's files: 11,999 and 5,896 objects, three empty fields, 12-bit images."""
    data = Path(os.environ.get("PFFNET_DATA", "")) / "bbbc039"
    if not os.environ.get("PFFNET_DATA") or not data.is_dir():
        pytest.skip("PFFNET_DATA is not set to a folder with bbbc039/")
    for split, images, objects, empty in (("train", 100, 11_999, 2), ("val", 50, 5_896, 1)):
        found = list(bbbc039.records(data, split))
        counts = [int(r.read_label_map().max()) for r in found]
        assert (len(counts), sum(counts), counts.count(0)) == (images, objects, empty)
        image = found[0].read_image()
        assert image.shape == (520, 696)
        assert image.dtype == np.uint16
        assert 500 < image.max() < 4096
