"""The files of a prepared data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from pffnet_d2.data.prepared import PreparedSplit, write_instances, write_semantic
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
