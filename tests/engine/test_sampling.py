"""engine/sampling.py: images of small groups are drawn more often, and the order still follows from the seed."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import TrainingSampler

from pffnet_d2.config import config_path, read_config
from pffnet_d2.data import catalog
from pffnet_d2.data.catalog import Origin
from pffnet_d2.engine import loader
from pffnet_d2.engine.sampling import repeat_factors
from pffnet_d2.errors import InputError

IMAGES = [Origin("a", "light")] * 8 + [Origin("a", "stained")] * 2 + [Origin("b", "")]


def test_factors_by_hand() -> None:
    assert repeat_factors(IMAGES, 0.0, 4.0) == [1.0] * 11
    assert repeat_factors(IMAGES, 0.5, 4.0) == pytest.approx([1.0] * 8 + [2.0] * 2 + [8**0.5])
    assert repeat_factors(IMAGES, 1.0, 100.0) == [1.0] * 8 + [4.0] * 2 + [8.0]  # every group 8 draws
    assert repeat_factors(IMAGES, 1.0, 5.0) == [1.0] * 8 + [4.0] * 2 + [5.0]
    assert repeat_factors(IMAGES, 0.0, 4.0, ["stained=3", "b=2"]) == [1.0] * 8 + [3.0] * 2 + [2.0]
    assert repeat_factors(IMAGES, 0.0, 4.0, ["a=0.5", "stained=3"]) == [1.0] * 8 + [3.0] * 2 + [2.0]
    with pytest.raises(InputError, match=r"WEIGHTS brown=2: no training image .*choose from a, b, light, stained$"):
        repeat_factors(IMAGES, 0.0, 4.0, ["brown=2"])


@pytest.fixture
def two_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two prepared data sets, sampling_a with 6 fluorescence and 2 histology images and sampling_b with 1 histology
    image, and a config that trains on both."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    types = {"sampling_a": ["fluorescence"] * 6 + ["histology"] * 2, "sampling_b": ["histology"]}
    for dataset, own in types.items():
        images = [
            {"id": i, "file_name": f"{i}.png", "width": 9, "height": 9, "image_type": kind}
            for i, kind in enumerate(own, 1)
        ]
        info = {"dataset": dataset, "split": "train", "reader": "own", "category": "nucleus"}
        content = {"info": info, "images": images, "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
        (tmp_path / dataset / "train").mkdir(parents=True)
        (tmp_path / dataset / "train/instances.json").write_text(json.dumps(content))
    catalog.register_all()
    yield read_config(
        str(config_path("demo/PFFNet_R18_FPN.yaml")),
        [
            *("DATASETS.TRAIN", "('sampling_a_train', 'sampling_b_train')"),
            *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "SOLVER.IMS_PER_BATCH", "2", "SEED", "3"),
        ],
    )
    for dataset in types:
        DatasetCatalog.remove(f"{dataset}_train")
        MetadataCatalog.remove(f"{dataset}_train")


def name(entry: dict[str, Any]) -> dict[str, Any]:
    """Stands in for a mapper."""
    parts = Path(entry["file_name"]).parts
    return {"image": (parts[-4], parts[-1])}


def batches(cfg: Any, number: int, start: int = 0) -> list[list[tuple[str, str]]]:
    train_loader = loader.build_train_loader(cfg, name)
    train_loader.start = start
    return [[x["image"] for x in batch] for batch in itertools.islice(train_loader, number)]


def test_rare_types_of_several_data_sets_are_drawn_more_often(two_sets: Any, caplog: pytest.LogCaptureFixture) -> None:
    two_sets.DATALOADER.PFFNET.BALANCE = 1.0
    with caplog.at_level(logging.INFO):
        drawn = Counter(image for batch in batches(two_sets, 60) for image in batch)
    # 6 of fluorescence, and 3 of histology twice as often: 120 draws are ten epochs of 12
    assert {drawn["sampling_a", f"{i}.png"] for i in range(1, 7)} == {10}
    assert drawn["sampling_a", "7.png"] == drawn["sampling_a", "8.png"] == drawn["sampling_b", "1.png"] == 20
    assert "sampling_a_train histology: 2 images, 33.3% of the draws" in caplog.text
    two_sets.DATALOADER.PFFNET.BALANCE = 0.5
    drawn = Counter(image for batch in batches(two_sets, 600) for image in batch)
    ratio = 2 * (drawn["sampling_b", "1.png"] + drawn["sampling_a", "7.png"] + drawn["sampling_a", "8.png"])
    ratio /= sum(drawn["sampling_a", f"{i}.png"] for i in range(1, 7))
    assert ratio == pytest.approx(2**0.5, rel=0.06)


def test_the_order_follows_from_the_seed_and_resumes(two_sets: Any) -> None:
    two_sets.DATALOADER.PFFNET.BALANCE = 0.5
    two_sets.DATALOADER.PFFNET.WEIGHTS = ["sampling_b_train=1.7"]
    every = batches(two_sets, 30)
    assert batches(two_sets, 19, start=11) == every[11:]
    two_sets.SEED = 4
    assert batches(two_sets, 30) != every


def test_without_the_keys_the_order_is_the_old_one(two_sets: Any) -> None:
    sampler = loader.build_train_loader(two_sets, name).sampler
    assert list(itertools.islice(sampler, 30)) == list(itertools.islice(TrainingSampler(9, seed=3), 30))


def test_copy_paste_gets_two_images_of_one_data_set_and_type(two_sets: Any) -> None:
    two_sets.INPUT.PFFNET.AUGMENTATIONS = ["flip", "copy_paste"]

    def pair(entry: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        return {"pair": (name(entry)["image"], name(other)["image"])}

    def pairs(number: int, start: int = 0) -> list[Any]:
        train_loader = loader.build_train_loader(two_sets, pair)
        train_loader.start = start
        return [[x["pair"] for x in batch] for batch in itertools.islice(train_loader, number)]

    drawn = pairs(60)
    partners: dict[Any, set[Any]] = {}
    for image, other in itertools.chain(*drawn):
        partners.setdefault(image, set()).add(other)
    fluorescence = {("sampling_a", f"{i}.png") for i in range(1, 7)}
    histology = {("sampling_a", "7.png"), ("sampling_a", "8.png")}
    assert set().union(*(partners[image] for image in fluorescence)) == fluorescence
    assert partners["sampling_a", "7.png"] == partners["sampling_a", "8.png"] == histology
    assert partners["sampling_b", "1.png"] == {("sampling_b", "1.png")}
    assert pairs(40, start=20) == drawn[20:]


def test_data_sets_that_others_registered_are_one_group_each() -> None:
    DatasetCatalog.register("sampling_other", lambda: [{"file_name": "x.png"}, {"file_name": "y.png"}])
    try:
        expected = {"x.png": ("sampling_other", ""), "y.png": ("sampling_other", "")}
        assert catalog.origins(["sampling_other", "sampling_other"]) == expected
    finally:
        DatasetCatalog.remove("sampling_other")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("BALANCE", "1.5", "give a number from 0 to 1"),
        ("MAX_REPEAT", "0.5", "give a number of 1 or more"),
        ("WEIGHTS", "['histology']", "NAME=FACTOR with a factor from 0.01 to 100"),
        ("WEIGHTS", "['histology=0']", "NAME=FACTOR with a factor from 0.01 to 100"),
        ("WEIGHTS", "['=2']", "NAME=FACTOR with a factor from 0.01 to 100"),
    ],
)
def test_values_are_checked(key: str, value: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_config(str(config_path("PFFNet_R101_FPN.yaml")), [f"DATALOADER.PFFNET.{key}", value])
