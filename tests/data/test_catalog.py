from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from pffnet_d2.data import catalog
from pffnet_d2.data.coco import annotations_to_label_map
from pffnet_d2.data.phantoms import phantom
from pffnet_d2.data.prepare import prepare
from pffnet_d2.errors import InputError


def test_names_and_registering_twice() -> None:
    catalog.register_all()
    before = MetadataCatalog.get("phantoms_train")
    catalog.register_all()
    names = {"phantoms_train", "phantoms_val", "bbbc039_train", "bbbc039_val", "bbbc039_test"}
    assert names <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("phantoms_train") is before
    assert before.thing_classes == ["nucleus"]
    assert before.stuff_classes == ["background", "nucleus"]
    assert before.evaluator_type == "pffnet"


def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("phantoms", None, tmp_path / "a", splits=["train"], count=10)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "a"))
    dicts = DatasetCatalog.get("phantoms_train")
    assert len(dicts) == 10
    empty = 0
    for i, entry in enumerate(dicts):
        labels = phantom(1, i)[1]
        assert (entry["image_id"], entry["height"], entry["width"]) == (i + 1, 256, 256)
        assert Path(entry["file_name"]).is_file()
        assert Path(entry["sem_seg_file_name"]).is_file()
        assert len(entry["annotations"]) == labels.max()
        empty += not entry["annotations"]
        np.testing.assert_array_equal(annotations_to_label_map(entry["annotations"], 256, 256), labels)
        for a in entry["annotations"]:
            assert a["category_id"] == 0
            assert a["iscrowd"] == 0
            assert a["bbox_mode"] == BoxMode.XYWH_ABS
    assert [i for i, e in enumerate(dicts) if not e["annotations"]] == [
        i for i in range(10) if not phantom(1, i)[1].any()
    ]
    meta = MetadataCatalog.get("phantoms_train")
    assert meta.json_file == str(tmp_path / "a/phantoms/train/instances.json")
    # the root follows the environment, at evaluation too
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "b"))
    assert meta.json_file == str(tmp_path / "b/phantoms/train/instances.json")
    assert meta.get("image_root") == str(tmp_path / "b/phantoms/train/images")
    assert hasattr(meta, "sem_seg_root")


def test_not_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    with pytest.raises(InputError) as caught:
        DatasetCatalog.get("bbbc039_train")
    assert str(caught.value) == (
        "data set bbbc039_train is not prepared: datasets/bbbc039/train/instances.json is missing; "
        "run `pffnet prepare bbbc039 --source FOLDER --out datasets`"
    )
    with pytest.raises(InputError, match="run `pffnet prepare phantoms --out datasets`"):
        DatasetCatalog.get("phantoms_val")
    folder = tmp_path / "datasets" / "phantoms" / "val"
    folder.mkdir(parents=True)
    for damaged in ("{", "[]", '{"images": [{}]}'):
        (folder / "instances.json").write_text(damaged)
        with pytest.raises(InputError, match=r"instances\.json: not the json of a prepared data set"):
            DatasetCatalog.get("phantoms_val")
