"""Registering the prepared data sets with Detectron2, as ``<name>_<split>``. Nothing is read before it is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json

from pffnet_d2.data import synthetic
from pffnet_d2.data.prepare import category, known_splits
from pffnet_d2.data.prepared import PreparedSplit, find_splits, not_prepared, read_images, root
from pffnet_d2.errors import InputError


class PreparedMetadata(Metadata):
    """Metadata whose paths are made when they are asked for, so that the root may be set after the package is
    imported."""

    root: Path | None  # of this data set; None takes the root of all
    dataset: str
    split: str
    prepare_arguments: str  # of `pffnet prepare`, for the message when the split is missing

    @property
    def files(self) -> PreparedSplit:
        return PreparedSplit((self.root or root()) / self.dataset / self.split)

    @property
    def json_file(self) -> str:
        return str(self.files.json_file)

    @property
    def image_root(self) -> str:
        return str(self.files.images)

    @property
    def sem_seg_root(self) -> str:
        return str(self.files.semantic)


def register_all() -> None:
    """Register every data set that ``pffnet prepare`` can make, prepared or not, and what else is prepared under the
    root: custom data sets and folds. Names that are registered already are left alone."""
    register_published()
    register_prepared()


def register_published() -> None:
    """Register every data set that ``pffnet prepare`` can make from a publisher's files, without looking for files."""
    for dataset, splits in known_splits().items():
        for split, arguments in splits.items():
            source = "" if dataset == synthetic.NAME else " --source FOLDER"
            _register(dataset, split, category(dataset), f"{dataset}{arguments}{source}")


def register_prepared(under: Path | None = None) -> None:
    """Register what is prepared under a root: published data sets, custom ones and folds.

    Args:
        under: the root of these data sets from now on, also of those that are registered already; None takes the root
            of all, and leaves names that are registered already alone.
    """
    for files in find_splits(under or root(), depths=(2,)):
        info = files.info()
        dataset, split = files.folder.parts[-2:]
        if (info.get("dataset"), info.get("split")) == (dataset, split):
            name = "" if info["reader"] == dataset else f" --name {dataset}"
            folds = f" --folds {info['folds']}" if "folds" in info else ""
            arguments = f"{info['reader']}{name}{folds} --source FOLDER"
            _register(dataset, split, str(info.get("category", "object")), arguments, under)


def _register(dataset: str, split: str, thing: str, arguments: str, under: Path | None = None) -> None:
    name = f"{dataset}_{split}"
    if name in DatasetCatalog.list():
        if under is None or not isinstance(MetadataCatalog.get(name), PreparedMetadata):
            return
    else:
        DatasetCatalog.register(name, partial(load, name))
    MetadataCatalog[name] = PreparedMetadata(
        name=name,
        root=under,
        dataset=dataset,
        split=split,
        prepare_arguments=arguments,
        evaluator_type="pffnet",
        thing_classes=[thing],
        thing_dataset_id_to_contiguous_id={1: 0},
        stuff_classes=["background", thing],
        stuff_dataset_id_to_contiguous_id={0: 0, 1: 1},
        ignore_label=255,
    )


def load(name: str) -> list[dict[str, Any]]:
    """Detectron2's dicts of a prepared data set. All have ``normalised`` True, ``sem_seg_file_name`` and
    ``annotations``, which are [] for images without objects; splits without published truth lack the last two.

    Raises:
        InputError: the data set is not prepared, or its json is damaged.
    """
    meta = MetadataCatalog.get(name)
    if not os.path.isfile(meta.json_file):
        raise InputError(
            f"data set {name} is not prepared: {meta.json_file} is missing; "
            f"run `pffnet prepare {meta.prepare_arguments} --out {meta.root or root()}`"
        )
    try:
        dicts: list[dict[str, Any]] = load_coco_json(
            meta.json_file, meta.image_root, name, extra_annotation_keys=["z_order"]
        )
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise not_prepared(meta.files.json_file) from error
    labelled = meta.files.info().get("labelled", True)
    for entry in dicts:
        entry["normalised"] = True  # by preparing; models that normalise raw images leave it alone (AsTrained)
        if not labelled:
            entry.pop("annotations", None)
            continue
        entry["sem_seg_file_name"] = os.path.join(meta.sem_seg_root, os.path.basename(entry["file_name"]))
    return dicts


class Origin(NamedTuple):
    """Where an image comes from: the name of its data set, and its type ("histology", ...; "" where none is known)."""

    dataset: str
    image_type: str


def origins(names: Sequence[str]) -> dict[str, Origin]:
    """The ``Origin`` of every image of these data sets, by its ``file_name``. All of them must be prepared.

    Prepared data sets name the type of each image in their json; data sets that others registered have no types.
    """
    found: dict[str, Origin] = {}
    for name in dict.fromkeys(names):
        meta = MetadataCatalog.get(name)
        if isinstance(meta, PreparedMetadata):
            for image in read_images(meta.files.json_file):
                found[os.path.join(meta.image_root, image["file_name"])] = Origin(
                    name, str(image.get("image_type") or "")
                )
        else:
            found.update((entry["file_name"], Origin(name, "")) for entry in DatasetCatalog.get(name))
    return found
