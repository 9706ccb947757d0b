"""Registers the prepared data sets as ``<name>_<split>`` with Detectron2; nothing is read before it is asked for."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json

from pffnet_d2.data.prepare import CATEGORIES, SPLITS
from pffnet_d2.errors import InputError


def root() -> Path:
    """The folder of the prepared data sets: $DETECTRON2_DATASETS, as for Detectron2's own, else ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


class PreparedMetadata(Metadata):
    """Metadata whose paths are made when asked for, so that the root may be set after the package is imported."""

    dataset: str
    split: str

    @property
    def folder(self) -> Path:
        return root() / self.dataset / self.split

    @property
    def json_file(self) -> str:
        return str(self.folder / "instances.json")

    @property
    def image_root(self) -> str:
        return str(self.folder / "images")

    @property
    def sem_seg_root(self) -> str:
        return str(self.folder / "semantic")


def register_all() -> None:
    """Register every data set that ``pffnet prepare`` can make, prepared or not; names already there are left alone."""
    for dataset, splits in SPLITS.items():
        category = CATEGORIES[dataset]
        for split in splits:
            name = f"{dataset}_{split}"
            if name in DatasetCatalog.list():
                continue
            MetadataCatalog[name] = PreparedMetadata(
                name=name,
                dataset=dataset,
                split=split,
                evaluator_type="pffnet",
                thing_classes=[category],
                thing_dataset_id_to_contiguous_id={1: 0},
                stuff_classes=["background", category],
                stuff_dataset_id_to_contiguous_id={0: 0, 1: 1},
                ignore_label=255,
            )
            DatasetCatalog.register(name, partial(load, name))


def load(name: str) -> list[dict[str, Any]]:
    """Detectron2's dicts of a prepared data set, empty images with ``annotations`` [] and all with
    ``sem_seg_file_name``.

    Raises:
        InputError: the data set is not prepared, or its json is damaged.
    """
    meta = MetadataCatalog.get(name)
    if not os.path.isfile(meta.json_file):
        source = "" if meta.dataset == "phantoms" else " --source FOLDER"
        raise InputError(
            f"data set {name} is not prepared: {meta.json_file} is missing; "
            f"run `pffnet prepare {meta.dataset}{source} --out {root()}`"
        )
    try:
        dicts: list[dict[str, Any]] = load_coco_json(meta.json_file, meta.image_root, name)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"{meta.json_file}: not the json of a prepared data set; delete its folder and prepare it again"
        ) from error
    for entry in dicts:
        entry["sem_seg_file_name"] = os.path.join(meta.sem_seg_root, os.path.basename(entry["file_name"]))
    return dicts
