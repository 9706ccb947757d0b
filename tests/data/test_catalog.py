from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from pffnet_d2.data import catalog
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.errors import InputError
from pffnet_d2.masks.coco import annotations_to_label_map


def test_names_and_registering_twice() -> None:
    catalog.register_all()
    before = MetadataCatalog.get("phantoms_train")
    catalog.register_all()
    names = {"phantoms_train", "phantoms_val", "bbbc039_train", "bbbc039_val", "bbbc039_test"}
    names |= {"dsb2018_train", "dsb2018_test", "dsb2018_objectguided_val", "dsb2018_nuclei_train"}
    assert names <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("phantoms_train") is before
    assert before.thing_classes == ["nucleus"]
    assert before.stuff_classes == ["background", "nucleus"]
    assert before.evaluator_type == "pffnet"


def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("phantoms", None, tmp_path / "a", Selection(splits=["train"], count=10))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "a"))
    dicts = DatasetCatalog.get("phantoms_train")
    assert len(dicts) == 10
    empty = 0
    for i, entry in enumerate(dicts):
        labels = synthetic_image(1, i)[1]
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
        i for i in range(10) if not synthetic_image(1, i)[1].any()
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
        with pytest.raises(InputError, match=r"instances\.json: is not the JSON of a prepared data set"):
            DatasetCatalog.get("phantoms_val")


def test_what_is_prepared_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own data and folds, by their folders; what others put there is left alone."""
    source = tmp_path / "source"
    for part in ("images", "labels"):
        (source / part).mkdir(parents=True)
    for i in range(4):
        image, labels = synthetic_image(1, i, size=(40, 50))
        Image.fromarray(image).save(source / f"images/{i}.png")
        Image.fromarray(labels.astype(np.uint16)).save(source / f"labels/{i}.png")
    root = tmp_path / "root"
    options = {"category": "cell", "fractions": "train=0.75,val=0.25"}
    prepare("own", source, root, Selection(options=options), dataset="mine_0")
    prepare("own", source, root, Selection(options=options, folds=2, fold=1), dataset="mine_0")
    for stray in ("mine_0/copied", "theirs/train", "coco/annotations"):
        (root / stray).mkdir(parents=True)
    (root / "mine_0/copied/instances.json").write_text((root / "mine_0/val/instances.json").read_text())
    (root / "theirs/train/instances.json").write_text('{"images": []}')
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    before = set(DatasetCatalog.list())
    catalog.register_all()
    new = set(DatasetCatalog.list()) - before
    try:
        assert new == {"mine_0_train", "mine_0_val", "mine_0_fold1of2_train", "mine_0_fold1of2_val"}
        assert [len(DatasetCatalog.get(f"mine_0_{split}")) for split in ("train", "val")] == [3, 1]
        meta = MetadataCatalog.get("mine_0_train")
        assert meta.thing_classes == ["cell"]
        assert meta.evaluator_type == "pffnet"
        shutil.rmtree(root / "mine_0")
        with pytest.raises(InputError, match=r"`pffnet prepare own --name mine_0 --source FOLDER --out "):
            DatasetCatalog.get("mine_0_train")
        with pytest.raises(InputError, match=r"`pffnet prepare own --name mine_0 --folds 2 --source FOLDER --out "):
            DatasetCatalog.get("mine_0_fold1of2_val")
    finally:
        for name in new:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_scheme_that_is_not_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(
        InputError, match=r"objectguided_val/instances\.json is missing; run `pffnet prepare dsb2018 --scheme obj"
    ):
        DatasetCatalog.get("dsb2018_objectguided_val")


def test_without_published_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("phantoms", None, tmp_path, Selection(splits=["val"], count=2))
    path = tmp_path / "phantoms/val/instances.json"
    path.write_text(path.read_text().replace('"labelled": true', '"labelled": false'))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for entry in DatasetCatalog.get("phantoms_val"):
        assert "sem_seg_file_name" not in entry
        assert "annotations" not in entry


def test_a_root_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says, and for names that are registered already."""
    for name in ("phantoms_train", "phantoms_val"):
        monkeypatch.setitem(MetadataCatalog.data, name, MetadataCatalog[name])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "elsewhere"))
    prepare("phantoms", None, tmp_path / "here", Selection(splits=["train"], count=2))
    with pytest.raises(InputError, match=f"--out {tmp_path}/elsewhere"):
        DatasetCatalog.get("phantoms_train")
    catalog.register_prepared(tmp_path / "here")
    assert len(DatasetCatalog.get("phantoms_train")) == 2
    assert MetadataCatalog.get("phantoms_val").json_file.startswith(str(tmp_path / "elsewhere"))
