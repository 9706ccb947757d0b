from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pffnet_d2.cli import main as cli
from pffnet_d2.data.check import check_datasets
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.readers.dsb2018 import bbbc039_fields
from pffnet_d2.errors import InputError
from pffnet_d2.masks.coco import label_map_to_annotations, masks_to_annotations
from pffnet_d2.masks.instance_mask import InstanceMask


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    prepare("phantoms", None, root, Selection(count=5))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "datasets"))


def change(folder: Path, edit: Any) -> None:
    path = folder / "instances.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def split(root: Path, name: str, image: np.ndarray, labels: np.ndarray, reader: str, stem: str = "x") -> Path:
    """A prepared split of one image."""
    folder = root / name
    for part in ("images", "semantic"):
        (folder / part).mkdir(parents=True)
    Image.fromarray(image).save(folder / f"images/{stem}.png")
    Image.fromarray((labels > 0).astype(np.uint8)).save(folder / f"semantic/{stem}.png")
    dataset, part = name.split("/")
    entry = {"id": 1, "file_name": f"{stem}.png", "height": labels.shape[0], "width": labels.shape[1]}
    data = {
        "info": {"dataset": dataset, "split": part, "reader": reader},
        "images": [entry],
        "annotations": label_map_to_annotations(labels),
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    (folder / "instances.json").write_text(json.dumps(data))
    return folder


def test_nothing_wrong(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_datasets(root, sheets=tmp_path / "sheets") == 0
    text = capsys.readouterr().out
    assert "2 splits, no errors" in text
    data = json.loads((root / "phantoms/train/instances.json").read_text())
    counts = [sum(a["image_id"] == image["id"] for a in data["annotations"]) for image in data["images"]]
    areas = [a["area"] for a in data["annotations"]]
    assert f"{sum(counts)} objects, {min(counts)} to {max(counts)} (median {np.median(counts):.0f}) an image" in text
    assert f"{min(areas)} to {max(areas):,} (median {np.median(areas):.0f}) pixels an object" in text
    pixels = np.concatenate(
        [np.asarray(Image.open(p)).reshape(-1, 3) for p in sorted((root / "phantoms/train/images").iterdir())]
    )
    mean, std = (" ".join(f"{v:.1f}" for v in values) for values in (pixels.mean(0), pixels.std(0)))
    assert f"phantoms train: 5 images, RGB mean {mean}, standard deviation {std}" in text
    sheet = np.asarray(Image.open(tmp_path / "sheets/phantoms_train.png"))
    assert sheet.shape == (2 * 274, 4 * 520, 3)
    assert check_datasets(root / "phantoms", detections=max(counts) - 1) == 0  # of one data set; no sheets
    assert f"1 images hold more than {max(counts) - 1} objects" in capsys.readouterr().out
    assert check_datasets(root / "phantoms" / "val") == 0  # of one split


def _image(array: np.ndarray) -> Any:
    return lambda folder, name: Image.fromarray(array).save(folder / "images" / name)


def _semantic(folder: Path, name: str) -> None:
    path = folder / "semantic" / name
    semantic = np.array(Image.open(path))
    semantic[0, :3] ^= 1
    Image.fromarray(semantic).save(path)


def _annotation(**fields: Any) -> Any:
    return lambda folder, name: change(folder, lambda data: data["annotations"][0].update(fields))


def _json(edit: Any) -> Any:
    return lambda folder, name: change(folder, edit)


def _cut_rle(data: dict[str, Any]) -> None:
    rle = data["annotations"][0]["segmentation"]
    rle["counts"] = rle["counts"][:-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder, name: (folder / "images" / name).unlink(), "images/{name}: cannot be read"),
        (lambda folder, name: (folder / "semantic" / name).unlink(), "semantic/{name}: cannot be read"),
        (lambda folder, name: (folder / "images" / name).write_bytes(b"\x89PNG"), "images/{name}: cannot be read as"),
        (
            _image(np.zeros((9, 9, 3), np.uint8)),
            "images/{name}: uint8 of shape (9, 9, 3) where 8-bit RGB of (256, 256)",
        ),
        (_image(np.zeros((256, 256), np.uint16)), "images/{name}: uint16 of shape (256, 256) where"),
        (lambda folder, name: (folder / "images/stray.png").write_bytes(b""), "images/stray.png: is not in inst"),
        (_semantic, "semantic/{name}: differs from the union of the objects in 3 pixels"),
        (
            lambda folder, name: Image.fromarray(np.full((256, 256), 255, np.uint8)).save(folder / "semantic" / name),
            "semantic/{name}: is not an 8-bit map of 0 and 1",
        ),
        (_annotation(bbox=[0, 0, 1, 1]), "annotation 1 has bbox [0, 0, 1, 1], its mask ["),
        (_annotation(area=-1), "annotation 1 has area -1, its mask "),
        (_annotation(category_id=2), "annotation 1 has category_id 2, its mask 1"),
        (_annotation(iscrowd=1), "annotation 1 has iscrowd 1"),
        (_annotation(segmentation={"size": [256, 256], "counts": [65536]}), "annotation 1 has no pixels"),
        (
            _annotation(segmentation={"size": [256, 255], "counts": [3]}),
            "{name}: annotation 1 of image 1: its mask is for",
        ),
        (_json(_cut_rle), "{name}: annotation 1 of image 1: its run lengths do not fill 256 x 256 pixels"),
        (_annotation(image_id=77), "instances.json: annotation 1 is of image 77, which is not there"),
        (_annotation(id=2), "instances.json: annotation 2 is there twice"),
        (_json(lambda data: data["images"][1].update(id=1)), "instances.json: image 1 is there twice"),
        (_json(lambda data: data["images"].clear() or data["annotations"].clear()), "instances.json: has no images"),
        (_json(lambda data: data.pop("categories")), "instances.json: is not the JSON of a prepared data set"),
        (lambda folder, name: (folder / "instances.json").write_text("{"), "instances.json: is not the JSON"),
    ],
)
def test_damage_is_named(root: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "phantoms" / "train"
    name = json.loads((folder / "instances.json").read_text())["images"][0]["file_name"]
    damage(folder, name)
    assert check_datasets(root) > 0
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert any(str(folder) in line and message.format(name=name) in line for line in errors), errors


def test_the_same_image_in_two_splits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Within one division an error, however it is compressed; between folds and with other data sets none."""
    folder = root / "phantoms"
    a = json.loads((folder / "train/instances.json").read_text())["images"][1]["file_name"]
    b = json.loads((folder / "val/instances.json").read_text())["images"][1]["file_name"]
    shutil.copytree(folder / "train", folder / "fold0of2_train")
    shutil.copytree(folder / "train", folder / "fold1of2_train")
    shutil.copytree(folder / "train", root / "other" / "train")
    change(root / "other/train", lambda data: data["info"].update(reader="own"))
    assert check_datasets(root) == 0
    assert "note: other train: 5 images are also in phantoms train" in capsys.readouterr().out
    Image.open(folder / "train/images" / a).save(folder / "val/images" / b, compress_level=9)
    assert check_datasets(root) == 1
    assert f"error: {folder}/train/images/{a}: is also {folder}/val/images/{b}; leave" in capsys.readouterr().out


def test_copies_overlaps_and_shared_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[2:8, 2:8], labels[10:15, 10:15] = 1, 2
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    stem, (field, part) = next(iter(bbbc039_fields().items()))
    folder = split(tmp_path, "bowl/train", image, labels, "dsb2018", stem)
    shutil.copy(folder / f"images/{stem}.png", folder / "images/copy.png")
    shutil.copy(folder / f"semantic/{stem}.png", folder / "semantic/copy.png")
    big = np.ones((6, 6), np.bool_)

    def edit(data: dict[str, Any]) -> None:
        data["images"].append({"id": 2, "file_name": "copy.png", "height": 20, "width": 30})
        regions = [InstanceMask(2, 2, big), InstanceMask(2, 3, big[:3, :2]), InstanceMask(10, 10, big[:5, :5])]
        data["annotations"] += masks_to_annotations(regions, 20, 30, 2, 3)

    change(folder, edit)
    assert check_datasets(tmp_path) == 0
    text = capsys.readouterr().out
    assert "note: bowl train: 1 images are copies of others" in text
    assert "note: bowl train: objects overlap in 1 images, 6 pixels" in text
    assert f"1 images are fields of BBBC039 (1 {part})" in text
    assert f"BBBC039 {part}: {field}" in text


def test_many_errors_are_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(data: dict[str, Any]) -> None:
        for annotation in data["annotations"]:
            annotation["area"] = 0

    change(root / "phantoms/train", edit)
    errors = check_datasets(root)
    assert errors == len(json.loads((root / "phantoms/train/instances.json").read_text())["annotations"]) > 25
    text = capsys.readouterr().out
    assert text.count("error: ") == 21
    assert f"{errors - 20} more errors" in text


def test_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheets = ["--sheets", str(tmp_path / "sheets")]
    assert cli.main(["check", str(root), *sheets, "--detections", "1"]) == 0
    assert "set TEST.DETECTIONS_PER_IMAGE to" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == ["phantoms_train.png", "phantoms_val.png"]
    (root / "phantoms/val/instances.json").write_text("")
    assert cli.main(["check", str(root), *sheets]) == 2
    assert cli.main(["check", str(tmp_path / "none"), *sheets]) == 2
    assert "none: holds no prepared data set" in capsys.readouterr().err
    with pytest.raises(InputError):
        check_datasets(tmp_path / "none")
