"""The files of a prepared data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pffnet_d2.data.prepared import (
    PreparedSplit,
    find_splits,
    read_images,
    root,
    write_image,
    write_instances,
    write_semantic,
)
from pffnet_d2.errors import InputError
from pffnet_d2.masks.coco import label_map_to_annotations


def test_files(tmp_path: Path) -> None:
    label_map = np.array([[0, 1, 1], [2, 2, 0]], np.int32)
    write_semantic(tmp_path / "s.png", label_map)
    assert np.asarray(Image.open(tmp_path / "s.png")).tolist() == [[0, 1, 1], [1, 1, 0]]
    path = tmp_path / "instances.json"
    image = {"id": 1, "file_name": "s.png", "height": 2, "width": 3}
    write_instances(path, [image], label_map_to_annotations(label_map), {"description": "d"}, "nucleus")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert json.loads(path.read_text())["categories"] == [{"id": 1, "name": "nucleus", "supercategory": "nucleus"}]
    coco = COCO(str(path))
    np.testing.assert_array_equal(coco.annToMask(coco.anns[2]), label_map == 2)


def test_info(tmp_path: Path) -> None:
    split = PreparedSplit(tmp_path)
    path = split.json_file
    for content in ("", "{", "[]", '{"info": 3, ', '{"info": {"year": 2014}, "images": []}', '{"images": []}'):
        path.write_text(content)
        assert split.info() == {}
    assert PreparedSplit(tmp_path / "none").info() == {}


@pytest.fixture
def split(tmp_path: Path) -> PreparedSplit:
    """Two images, the second without objects."""
    split = PreparedSplit(tmp_path / "root" / "cells" / "train")
    for folder in split.folders(labelled=True):
        folder.mkdir(parents=True)
    label_map = np.array([[0, 1, 1], [2, 2, 0]], np.int32)
    names = ["a.png", "b.png"]
    for name, labels in zip(names, (label_map, 0 * label_map), strict=True):
        write_image(split.images / name, np.zeros((2, 3, 3), np.uint8))
        write_semantic(split.semantic / name, labels)
    images = [
        {"id": i, "file_name": name, "height": 2, "width": 3, "report_group": name[0]} for i, name in enumerate(names)
    ]
    info = {"dataset": "cells", "reader": "own", "labelled": True}
    write_instances(split.json_file, images, label_map_to_annotations(label_map, image_id=0), info, "cell")
    return split


def test_what_is_written_is_read(split: PreparedSplit) -> None:
    assert split.title == "cells train"
    assert split.info() == {"dataset": "cells", "reader": "own", "labelled": True}
    contents = split.read()
    assert contents.info == split.info()
    assert contents.images == read_images(split.json_file)
    assert {i: len(own) for i, own in contents.annotations.items()} == {0: 2, 1: 0}
    a, b = split.labelled_images()
    assert (a.name, a.file, a.group) == ("a", split.images / "a.png", "a")
    assert a.truth().tolist() == [[0, 1, 1], [2, 2, 0]]
    assert not b.truth().any()
    for folder in (split.folder, split.folder.parent, split.folder.parent.parent):
        assert find_splits(folder) == [split]
    assert find_splits(split.folder, depths=(2,)) == []


def test_complete(split: PreparedSplit) -> None:
    info, names = split.info(), ["a.png", "b.png"]
    assert split.is_complete(info, names)
    assert not split.is_complete({**info, "count": 1}, names)
    assert not split.is_complete(info, names[::-1])
    (split.semantic / "a.png").unlink()
    assert not split.is_complete(info, names)
    split.json_file.write_text("[]")
    assert not split.is_complete(info, names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["images"][1].update(id=0), "image 0 is there twice"),
        (lambda data: data["images"][1].update(file_name="a.png"), "image a.png is there twice"),
        (lambda data: data["images"][1].update(file_name="a.jpg"), "two images are called a"),
        (lambda data: data["images"][1].update(file_name=3), "is not the JSON of a prepared data set"),
        (lambda data: data["images"][1].update(width=0), "is not the JSON of a prepared data set"),
        (lambda data: data["annotations"][1].update(id=1), "annotation 1 is there twice"),
        (lambda data: data["annotations"][1].update(image_id=9), "annotation 2 is of image 9, which is not there"),
        (lambda data: data.update(info=[]), "is not the JSON of a prepared data set"),
        (
            lambda data: data.pop("annotations"),
            "is not the JSON of a prepared data set, or is damaged; move its folder",
        ),
    ],
)
def test_damage_is_named(split: PreparedSplit, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    data = json.loads(split.json_file.read_text())
    change(data)
    split.json_file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"train/instances\.json: {message}"):
        list(split.labelled_images())


def test_no_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instances\.json: is not there; give the folder of a split"):
        PreparedSplit(tmp_path).read()


def test_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert root() == Path.home() / "data"
