"""From the files that a publisher distributes to prepared data sets (``prepared``), once.

The folder of a split has the name of the split. With a scheme that is not the reader's default it is
``<scheme>_<split>``; folds are ``fold<i>of<K>_train`` and ``fold<i>of<K>_val``. In Detectron2's catalogs a split is
called ``<data set>_<folder>``.

A split is built in a folder beside its place and moved there when it is complete. A complete split that was made from
the same images with the same options is left alone. One process at a time makes a split; other processes may make
other splits meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pffnet_d2.atomic_write import touched, work_folder, write_text
from pffnet_d2.data import readers, synthetic
from pffnet_d2.data.folds import check_folds, divide
from pffnet_d2.data.prepared import FORMAT, PreparedSplit, write_image, write_instances, write_semantic
from pffnet_d2.data.readers import READERS
from pffnet_d2.data.readers.record import Record
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import Normalisation, to_rgb8
from pffnet_d2.masks.coco import label_map_to_annotations, masks_to_annotations, masks_to_label_map

Read = Callable[[], Iterator[Record]]

LONGEST_NAME = 255  # bytes, of most file systems
OWN = "own"  # the reader of custom data sets, which are prepared under names of their own


@dataclass(frozen=True)
class Selection:
    """Which images of a data set to prepare, and as which splits.

    Attributes:
        splits: their names; None takes all for which there are files.
        scheme: one of the reader's split schemes; None takes its default.
        options: the reader's options, values as text.
        folds: K >= 2 divides all labelled images into K parts, groups kept whole, and makes the splits
            fold<i>of<K>_val (part i) and fold<i>of<K>_train (the others) instead; the lists are written to
            folds<K>_seed<S>.json beside them.
        fold: i, from 0; None makes all K.
        seed: of the division.
        count: images per split. Synthetic images: how many to make (80 and 16 unless given); others: only the first
            so many, for a trial.
    """

    splits: Sequence[str] | None = None
    scheme: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    folds: int | None = None
    fold: int | None = None
    seed: int = 0
    count: int | None = None


@dataclass(frozen=True)
class _Plan:
    """What ``prepare`` makes.

    Attributes:
        reads: what reads the records of each split, by the name of its folder.
        normalisation: of the images.
        made_by: further entries of the json's ``info``.
        category: of the objects.
        lists: the image ids of the splits of all folds.
    """

    reads: dict[str, Read]
    normalisation: Normalisation
    made_by: dict[str, Any]
    category: str
    lists: dict[str, list[str]] = field(default_factory=dict)


def known_splits() -> dict[str, dict[str, str]]:
    """The folders that ``prepare`` makes by default, by data set, each with the arguments of the command that make
    it."""
    known = {synthetic.NAME: dict.fromkeys(synthetic.SPLITS, "")}
    for name in READERS:
        if name != OWN:
            default, *_ = readers.schemes(name)
            known[name] = {
                readers.folder_name(scheme, split, default): "" if scheme == default else f" --scheme {scheme}"
                for scheme, splits in readers.schemes(name).items()
                for split in splits
            }
    return known


def category(name: str) -> str:
    """What the objects of a data set are."""
    return synthetic.CATEGORY if name == synthetic.NAME else READERS[name].CATEGORY


def prepare(
    name: str,
    source: Path | None,
    out: Path,
    selection: Selection | None = None,
    *,
    dataset: str | None = None,
    force: bool = False,
    workers: int | None = None,
) -> list[str]:
    """Prepare a data set under ``out / name`` and print what was made.

    Args:
        name: "phantoms" (synthetic images) or a key of ``READERS``.
        source: the folder with the publisher's files; synthetic images need none.
        out: the folder of the prepared data sets.
        selection: which images, and as which splits; None takes all.
        dataset: name of the prepared data set; None takes ``name``. Custom data sets need one.
        force: make it again even if it is complete.
        workers: threads; None takes one per processor, at most 8.

    Returns:
        The names of the splits' folders.

    Raises:
        InputError: the arguments or the source are wrong; another process makes the same split. No half-made split is
            left.
    """
    selection = selection or Selection()
    if name != synthetic.NAME and name not in READERS:
        raise InputError(f"unknown data set {name!r}; choose one of {synthetic.NAME}, {', '.join(READERS)}")
    dataset = _dataset_name(name, dataset)
    if selection.count is not None and selection.count < 1:
        raise InputError(f"count {selection.count}: give at least one image")
    check_folds(selection.folds, selection.seed)
    plan = _plan_synthetic(selection) if name == synthetic.NAME else _plan_published(name, source, selection)
    for split, read in plan.reads.items():
        info = {
            "description": f"{dataset} {split}, prepared by pffnet",
            "format": FORMAT,
            "dataset": dataset,
            "split": split,
            "reader": name,
            "category": plan.category,
            **plan.made_by,
            "count": selection.count,
            "normalisation": plan.normalisation.info(),
        }
        _prepare_split(PreparedSplit(out / dataset / split), read, info, plan.normalisation, force, workers)
    if selection.folds is not None:
        division = {"folds": selection.folds, "seed": selection.seed}
        file = out / dataset / f"folds{selection.folds}_seed{selection.seed}.json"
        write_text(file, json.dumps({**division, **plan.lists}, indent=1) + "\n")
    return list(plan.reads)


def read_options(texts: Sequence[str]) -> dict[str, str]:
    """The ``--option KEY=VALUE``s of a command. Raises InputError for one without "="."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option {text}: give KEY=VALUE")
        pairs[key] = value
    return pairs


def _dataset_name(name: str, dataset: str | None) -> str:
    if dataset is None:
        if name == OWN:
            raise InputError("own needs --name: what your data set is to be called")
        return name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", dataset):
        raise InputError(f"--name {dataset!r}: use letters, digits, _ and -, beginning with a letter or digit")
    if dataset != name and dataset in (synthetic.NAME, *READERS):
        raise InputError(f"--name {dataset}: that is the name of a published data set; choose another")
    return dataset


def _plan_synthetic(selection: Selection) -> _Plan:
    name = synthetic.NAME
    if selection.scheme or selection.options or selection.folds is not None:
        raise InputError(f"{name} have no schemes, options or folds: they are made, as many as you like (--count)")
    for split in selection.splits or ():
        if split not in synthetic.SPLITS:
            raise InputError(f"unknown split {split!r} of {name}; choose one of {', '.join(synthetic.SPLITS)}")
    splits = selection.splits or synthetic.SPLITS
    reads: dict[str, Read] = {split: partial(synthetic.records, split, selection.count) for split in splits}
    return _Plan(reads, synthetic.NORMALISATION, {}, synthetic.CATEGORY)


def _plan_published(name: str, source: Path | None, selection: Selection) -> _Plan:
    """What to make of a publisher's files.

    Raises:
        InputError: no source; the reader does not have the scheme, split, fold or option.
    """
    if source is None:
        raise InputError(f"{name} needs --source: the folder with the files (see datasets/README.md)")
    options = dict(selection.options)
    if "seed" in readers.options(name):
        options = {"seed": str(selection.seed), **options}
    files = readers.published_files(name, source, selection.scheme, options)
    normalise = getattr(READERS[name], "normalisation", None)
    normalisation = normalise(**files.given) if normalise else READERS[name].NORMALISATION
    made_by: dict[str, Any] = {"scheme": files.scheme, "options": files.options}
    objects = files.options.get("category", category(name))
    if selection.folds is None:
        if selection.fold is not None:
            raise InputError(f"--fold {selection.fold} needs --folds: how many there are")
        return _Plan(_split_reads(files, selection), normalisation, made_by, objects)
    if selection.splits:
        raise InputError("--folds makes splits of its own; give either --splits or --folds")
    reads, lists = _fold_reads(files, selection, selection.folds)
    made_by |= {"folds": selection.folds, "seed": selection.seed}
    return _Plan(reads, normalisation, made_by, objects, lists)


def _split_reads(files: readers.PublishedFiles, selection: Selection) -> dict[str, Read]:
    """What reads the chosen splits, or all for which there are files, by the names of their folders."""
    known = readers.schemes(files.name)[files.scheme]
    wanted = selection.splits
    if not known or not wanted:
        found = files.splits()
        known = known or found  # those of custom data sets follow from the options
    for split in wanted or ():
        if split not in known:
            raise InputError(f"unknown split {split!r} of {files.name}; choose one of {', '.join(known)}")
    for split in known if not wanted else ():
        if split not in found:
            print(f"{files.name} {split}: left out, {files.root} does not hold what it needs")
    return {files.folder_name(split): partial(files.first_records, split, selection.count) for split in wanted or found}


def _fold_reads(
    files: readers.PublishedFiles, selection: Selection, folds: int
) -> tuple[dict[str, Read], dict[str, list[str]]]:
    """What reads the splits of the chosen folds, and the image ids of the splits of all folds."""
    if selection.fold is not None and not 0 <= selection.fold < folds:
        raise InputError(f"--fold {selection.fold}: give 0 to {folds - 1}, or leave it out for all of them")
    every = [record for split in files.splits() for record in files.records(split)]
    labelled = [record for record in every if record.read_label_map is not None]
    _check_ids(labelled, f"{files.name}, all splits")
    reads: dict[str, Read] = {}
    lists: dict[str, list[str]] = {}
    for i, splits in enumerate(divide(labelled, folds, selection.seed)):
        for split, records in splits.items():
            lists[files.folder_name(split)] = [record.image_id for record in records]
            if selection.fold in (None, i):
                reads[files.folder_name(split)] = partial(islice, records, selection.count)
    return reads, lists


def _prepare_split(
    split: PreparedSplit,
    read: Read,
    info: dict[str, Any],
    normalisation: Normalisation,
    force: bool,
    workers: int | None,
) -> None:
    title = f"{info['dataset']} {info['split']}"
    started = time.perf_counter()
    records = list(read())
    _check_ids(records, title)
    info["labelled"] = records[0].read_label_map is not None
    names = [f"{record.image_id}.png" for record in records]
    folder = split.folder
    old = folder.with_name(f".{folder.name}.old")
    # A complete split is of use even where nothing can be written.
    if not force and not touched(folder) and not old.exists() and split.is_complete(info, names):
        print(f"{title}: complete in {folder}, left alone (--force makes it again)")
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder.parent}: cannot be made ({error.strerror}); choose another --out") from error
    with work_folder(folder) as new:
        _undo_replacing(old, folder)
        if not force and split.is_complete(info, names):
            print(f"{title}: complete in {folder}, left alone (--force makes it again)")
            return
        if folder.exists() and split.info().get("dataset") != info["dataset"]:
            raise InputError(
                f"{folder}: exists and was not made by pffnet prepare; move it away or choose another --out"
            )
        made = PreparedSplit(new)
        for part in made.folders(info["labelled"]):
            part.mkdir()
        images, annotations = _convert_all(records, made, normalisation, title, workers)
        write_instances(made.json_file, images, annotations, info, info["category"])
        _replace_folder(new, folder, old)
    empty = len(images) - len({annotation["image_id"] for annotation in annotations})
    seconds = time.perf_counter() - started
    found = f"({empty} empty), {len(annotations)} objects" if info["labelled"] else "without published truth"
    print(f"{title}: {len(images)} images {found} -> {folder} ({seconds:.1f} s)")


def _convert_all(
    records: list[Record], split: PreparedSplit, normalisation: Normalisation, title: str, workers: int | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the PNG files of all records; the entries of the json. Threads are enough: decoding, percentiles and PNG
    compression release the interpreter's lock."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    convert = partial(_convert, split=split, normalisation=normalisation)
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
    try:
        results = pool.map(convert, records)
        for image, found in tqdm(results, total=len(records), desc=title, unit="image", disable=None):
            image["id"] = len(images) + 1
            images.append(image)
            for annotation in found:
                annotation["image_id"] = image["id"]
                annotation["id"] = len(annotations) + 1
                annotations.append(annotation)
    finally:
        pool.shutdown(cancel_futures=True)
    return images, annotations


def _convert(
    record: Record, split: PreparedSplit, normalisation: Normalisation
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the PNG files of a record; its entries of the json, without ids."""
    image = record.read_image()
    height, width = image.shape[:2]
    try:
        rgb = to_rgb8(image, normalisation)
    except InputError as error:
        raise InputError(f"{record.image_id}: {error}") from error
    annotations: list[dict[str, Any]] = []
    file_name = f"{record.image_id}.png"
    if record.read_label_map is not None:
        annotations, label_map = _truth(record, record.read_label_map, height, width)
        write_semantic(split.semantic / file_name, label_map)
    write_image(split.images / file_name, rgb)
    entry = {"id": 0, "file_name": file_name, "height": height, "width": width, "split_group": record.split_group}
    told = {"report_group": record.report_group, "image_type": record.image_type}
    return {**entry, **{key: each if isinstance(each, str) else each(image) for key, each in told.items()}}, annotations


def _truth(
    record: Record, read_label_map: Callable[[], npt.NDArray[np.int32]], height: int, width: int
) -> tuple[list[dict[str, Any]], npt.NDArray[np.int32]]:
    """The annotations of an image without ids, and a label map of the union of its objects."""
    if record.read_masks is not None:
        masks = record.read_masks()
        try:
            annotations = masks_to_annotations(masks, height, width, overlap=record.overlap)
        except InputError as error:
            raise InputError(f"{record.image_id}: {error}; fetch it again") from error
        return annotations, masks_to_label_map(masks, height, width)
    label_map = read_label_map()
    if label_map.shape != (height, width):
        raise InputError(
            f"{record.image_id}: the image has {height} x {width} pixels (height x width), "
            f"its mask {label_map.shape[0]} x {label_map.shape[1]}; fetch both again"
        )
    return label_map_to_annotations(label_map), label_map


def _check_ids(records: list[Record], title: str) -> None:
    if not records:
        raise InputError(f"{title}: no images; check the source")
    seen: set[str] = set()
    for record in records:
        if not record.image_id or record.image_id.startswith(".") or set(record.image_id) & set("/\\\0"):
            raise InputError(f"{title}: an image is called {record.image_id!r}, which is not a file name; rename it")
        if len(os.fsencode(f"{record.image_id}.png")) > LONGEST_NAME:
            raise InputError(
                f"{title}: {record.image_id[:40]}... has {len(record.image_id)} characters with its folders, too many "
                "for a file name; shorten them"
            )
        if record.image_id in seen:
            raise InputError(f"{title}: two images are called {record.image_id}; rename one")
        seen.add(record.image_id)


def _replace_folder(new: Path, place: Path, old: Path) -> None:
    """Move ``new`` to ``place`` so that ``place`` never holds a mixture: what was there moves to ``old`` first, which
    is then removed."""
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)


def _undo_replacing(old: Path, place: Path) -> None:
    """Clean up after a process that was killed in ``_replace_folder``: the new folder stays if it is in place already,
    otherwise the old one moves back."""
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.replace(old, place)
