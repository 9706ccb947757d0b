"""From what a publisher distributes to images/, semantic/ and instances.json, once.

    ROOT/<name>/<split>/images/<id>.png     8-bit RGB
                        semantic/<id>.png   8 bit, 0 background, 1 object
                        instances.json      COCO with run lengths; ``info`` says how the images were normalised

<split> is the split's name, with a scheme that is not the reader's default ``<scheme>_<split>``, and of folds
``fold<i>of<K>_train`` and ``fold<i>of<K>_val``. The data set's name in the catalogs is ``<name>_<that>``.

A split is built in a folder beside its place and moved when whole, so that what is there is complete. One that is there
already, made of the same images with the same options, is left alone. One process at a time makes a split; others may
make other splits meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pffnet_d2.atomic_write import touched, work_folder, write_text
from pffnet_d2.data import readers, synthetic
from pffnet_d2.data.prepared import write_instances, write_semantic
from pffnet_d2.data.readers import READERS
from pffnet_d2.data.readers.record import Record
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import Normalisation, to_rgb8
from pffnet_d2.masks.coco import (
    label_map_to_annotations,
    masks_to_annotations,
    masks_to_label_map,
)

Read = Callable[[], Iterator[Record]]

FORMAT = 3  # of the prepared files; a split of another one is made again
LONGEST_NAME = 255  # bytes, of most file systems
OWN = "own"  # the reader of a user's images, prepared under a name of their own


def known_splits() -> dict[str, dict[str, str]]:
    """Of every data set the folders that ``prepare`` makes unless asked otherwise, each with the arguments that make
    it."""
    known = {"phantoms": dict.fromkeys(synthetic.SPLITS, "")}
    for name in READERS:
        if name != OWN:
            default, *_ = readers.schemes(name)
            known[name] = {
                _folder(scheme, split, default): "" if scheme == default else f" --scheme {scheme}"
                for scheme, splits in readers.schemes(name).items()
                for split in splits
            }
    return known


def category(name: str) -> str:
    """What the objects of a data set are."""
    return synthetic.CATEGORY if name == "phantoms" else READERS[name].CATEGORY


def prepare(
    name: str,
    source: Path | None,
    out: Path,
    *,
    splits: Sequence[str] | None = None,
    scheme: str | None = None,
    options: Mapping[str, str] | None = None,
    folds: int | None = None,
    fold: int | None = None,
    seed: int = 0,
    dataset: str | None = None,
    count: int | None = None,
    force: bool = False,
    workers: int | None = None,
) -> list[str]:
    """Prepare a data set under ``out / name`` and print what was made.

    Args:
        name: "phantoms" or a key of ``READERS``.
        source: the folder with the publisher's files; phantoms need none.
        splits: which; None takes all that ``source`` holds.
        scheme: one of the reader's split schemes; None takes its default.
        options: the reader's options, values as text.
        folds: K >= 2 divides all labelled images into K parts, groups kept whole, and makes the splits
            fold<i>of<K>_val (part i) and fold<i>of<K>_train (the others) instead; the lists are written to
            folds<K>_seed<S>.json beside them.
        fold: i, from 0; None makes all K.
        seed: of the division.
        dataset: name of the prepared data set, and the one way to name a user's own; None takes ``name``.
        count: images a split. Phantoms: how many to make (80 and 16 unless given); others: only the first so many, for
            a trial.
        force: make it again even if it is complete.
        workers: threads; None takes one a processor, at most 8.

    Returns:
        The splits, by the names of their folders.

    Raises:
        InputError: whatever is wrong with the arguments or the source; another process makes the same split. Nothing
            half-made is left.
    """
    if name != "phantoms" and name not in READERS:
        raise InputError(f"unknown data set {name!r}; choose one of phantoms, {', '.join(READERS)}")
    dataset = _dataset_name(name, dataset)
    if count is not None and count < 1:
        raise InputError(f"count {count}: give at least one image")
    check_folds(folds, seed)
    made_by: dict[str, Any] = {}
    lists: dict[str, Any] = {}
    if name == "phantoms":
        if scheme or options or folds is not None:
            raise InputError("phantoms have no schemes, options or folds: they are made, as many as you like (--count)")
        reads, normalisation = _phantom_splits(splits, count), synthetic.NORMALISATION
    else:
        if source is None:
            raise InputError(f"{name} needs --source: the folder with the files (see datasets/README.md)")
        if "seed" in readers.options(name):
            options = {"seed": str(seed), **(options or {})}
        made_by = {"scheme": _scheme(name, scheme), "options": _options(name, options or {})}
        given = {key: made_by["options"][key] for key in options or {}}
        if scheme and scheme != next(iter(readers.schemes(name))):
            given["scheme"] = scheme
        normalise = getattr(READERS[name], "normalisation", None)
        normalisation = normalise(**given) if normalise else READERS[name].NORMALISATION
        if folds is None:
            if fold is not None:
                raise InputError(f"--fold {fold} needs --folds: how many there are")
            reads = _reader_splits(name, source, splits, made_by["scheme"], given, count)
        else:
            if splits:
                raise InputError("--folds makes splits of its own; give either --splits or --folds")
            made_by |= {"folds": folds, "seed": seed}
            lists, reads = _fold_splits(name, source, made_by["scheme"], given, folds, fold, seed, count)
    for split, read in reads.items():
        info = {
            "description": f"{dataset} {split}, prepared by pffnet",
            "format": FORMAT,
            "dataset": dataset,
            "split": split,
            "reader": name,
            "category": made_by.get("options", {}).get("category", category(name)),
            **made_by,
            "count": count,
            "normalisation": normalisation.info(),
        }
        _prepare_split(out / dataset / split, read, info, normalisation, force, workers)
    if folds is not None:
        _write_json(out / dataset / f"folds{folds}_seed{seed}.json", {"folds": folds, "seed": seed, **lists})
    return list(reads)


def check_folds(folds: int | None, seed: int | None) -> None:
    """Raises InputError for numbers that divide nothing."""
    if folds is not None and folds < 2:
        raise InputError(f"--folds {folds}: give at least 2")
    if seed is not None and seed < 0:
        raise InputError(f"--seed {seed}: give 0 or a larger whole number")


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
    if dataset != name and dataset in ("phantoms", *READERS):
        raise InputError(f"--name {dataset}: that is the name of a published data set; choose another")
    return dataset


def _folder(scheme: str, split: str, default: str) -> str:
    return split if scheme == default else f"{scheme}_{split}"


def _phantom_splits(splits: Sequence[str] | None, count: int | None) -> dict[str, Read]:
    for split in splits or ():
        if split not in synthetic.SPLITS:
            raise InputError(f"unknown split {split!r} of phantoms; choose one of {', '.join(synthetic.SPLITS)}")
    return {split: partial(synthetic.records, split, count) for split in splits or synthetic.SPLITS}


def _scheme(name: str, scheme: str | None) -> str:
    known = readers.schemes(name)
    if scheme is not None and scheme not in known:
        choice = f"choose one of {', '.join(known)}" if len(known) > 1 else "it has none, leave --scheme out"
        raise InputError(f"unknown split scheme {scheme!r} of {name}; {choice}")
    return scheme or next(iter(known))


def _options(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """All options of a reader: the chosen ones in the type of their default, the others at it."""
    known = readers.options(name)
    values = {key: default for key, (default, _) in known.items()}
    for key, text in options.items():
        if key not in known:
            choice = f"choose from {', '.join(known)}" if known else "it has none"
            raise InputError(f"unknown option {key!r} of {name}; {choice}")
        kind = type(known[key][0])
        try:
            values[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            wanted = "true or false" if kind is bool else {int: "a whole number", float: "a number"}[kind]
            raise InputError(f"option {key}={text} of {name}: give {wanted}") from error
    return values


def _reader_splits(
    name: str, source: Path, splits: Sequence[str] | None, scheme: str, given: dict[str, Any], count: int | None
) -> dict[str, Read]:
    """The wanted splits by the name of their folder."""
    default = next(iter(readers.schemes(name)))
    known = readers.schemes(name)[scheme]
    if not known or not splits:
        found = READERS[name].splits(source, **given)
        known = known or found  # a user's own are what the options make them
    for split in splits or ():
        if split not in known:
            raise InputError(f"unknown split {split!r} of {name}; choose one of {', '.join(known)}")
    for split in known if not splits else ():
        if split not in found:
            print(f"{name} {split}: left out, {source} does not hold what it needs")
    return {
        _folder(scheme, split, default): partial(_first_records, name, source, split, given, count)
        for split in splits or found
    }


def _first_records(name: str, source: Path, split: str, given: dict[str, Any], count: int | None) -> Iterator[Record]:
    group = getattr(READERS[name], "REPORT_GROUPS", {}).get(split)
    records = islice(READERS[name].records(source, split, **given), count)
    return records if group is None else (replace(record, report_group=group) for record in records)


def _fold_splits(
    name: str,
    source: Path,
    scheme: str,
    given: dict[str, Any],
    folds: int,
    fold: int | None,
    seed: int,
    count: int | None,
) -> tuple[dict[str, Any], dict[str, Read]]:
    """The lists of all folds, and the splits to make."""
    if fold is not None and not 0 <= fold < folds:
        raise InputError(f"--fold {fold}: give 0 to {folds - 1}, or leave it out for all of them")
    reader = READERS[name]
    every = [r for split in reader.splits(source, **given) for r in reader.records(source, split, **given)]
    labelled = [record for record in every if record.read_label_map is not None]
    _check_ids(labelled, f"{name}, all splits")
    part = fold_of(labelled, folds, seed)
    default = next(iter(readers.schemes(name)))
    lists: dict[str, Any] = {}
    reads: dict[str, Read] = {}
    for i in range(folds):
        halves = {
            f"fold{i}of{folds}_train": [r for r in labelled if part[r.image_id] != i],
            f"fold{i}of{folds}_val": [r for r in labelled if part[r.image_id] == i],
        }
        for split, own in halves.items():
            folder = _folder(scheme, split, default)
            lists[folder] = [record.image_id for record in own]
            if fold in (None, i):
                reads[folder] = partial(islice, own, count)
    return lists, reads


def fold_of(records: Sequence[Record], folds: int, seed: int) -> dict[str, int]:
    """The part 0..folds-1 of every image id. Groups stay whole (an image without group is one of its own); they are
    dealt out, in an order drawn from ``seed``, each to the part that has the fewest images so far.

    The order of the records does not matter.

    Raises:
        InputError: fewer groups than folds, or less than two folds.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        groups[(record.split_group, "") if record.split_group else ("", record.image_id)].append(record.image_id)
    if not 2 <= folds <= len(groups):
        raise InputError(f"--folds {folds}: give 2 to {len(groups)}, the number of images or groups of them")
    keys = sorted(groups)
    part: dict[str, int] = {}
    sizes = [0] * folds
    for k in np.random.default_rng(seed).permutation(len(keys)):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(groups[keys[k]])
        part.update(dict.fromkeys(groups[keys[k]], smallest))
    return part


def _prepare_split(
    folder: Path,
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
    old = folder.with_name(f".{folder.name}.old")
    # Where nothing can be written, what is complete is of use nevertheless.
    if not force and not touched(folder) and not old.exists() and _is_complete(folder, info, records):
        print(f"{title}: complete in {folder}, left alone (--force makes it again)")
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder.parent}: cannot be made ({error.strerror}); choose another --out") from error
    with work_folder(folder) as new:
        _undo_replacing(old, folder)
        if not force and _is_complete(folder, info, records):
            print(f"{title}: complete in {folder}, left alone (--force makes it again)")
            return
        if folder.exists() and _read_json(folder).get("info", {}).get("dataset") != info["dataset"]:
            raise InputError(
                f"{folder}: exists and was not made by pffnet prepare; move it away or choose another --out"
            )
        (new / "images").mkdir()
        if info["labelled"]:
            (new / "semantic").mkdir()
        images, annotations = _convert_all(records, new, normalisation, title, workers)
        write_instances(new / "instances.json", images, annotations, info, info["category"])
        _replace_folder(new, folder, old)
    empty = len(images) - len({annotation["image_id"] for annotation in annotations})
    seconds = time.perf_counter() - started
    found = f"({empty} empty), {len(annotations)} objects" if info["labelled"] else "without published truth"
    print(f"{title}: {len(images)} images {found} -> {folder} ({seconds:.1f} s)")


def _convert_all(
    records: list[Record], folder: Path, normalisation: Normalisation, title: str, workers: int | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Threads suffice: decoding, percentiles and PNG compression release the interpreter's lock."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    convert = partial(_convert, folder=folder, normalisation=normalisation)
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


def _convert(record: Record, folder: Path, normalisation: Normalisation) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the PNG files of a record; the COCO entries without ids."""
    image = record.read_image()
    height, width = image.shape[:2]
    try:
        rgb = to_rgb8(image, normalisation)
    except InputError as error:
        raise InputError(f"{record.image_id}: {error}") from error
    annotations: list[dict[str, Any]] = []
    file_name = f"{record.image_id}.png"
    if record.read_label_map is not None:
        if record.read_masks is not None:
            masks = record.read_masks()
            try:
                annotations = masks_to_annotations(masks, height, width, overlap=record.overlap)
            except InputError as error:
                raise InputError(f"{record.image_id}: {error}; fetch it again") from error
            label_map = masks_to_label_map(masks, height, width)
        else:
            label_map = record.read_label_map()
            if label_map.shape != (height, width):
                raise InputError(
                    f"{record.image_id}: the image has {_size(image)} pixels (height x width), "
                    f"its mask {_size(label_map)}; fetch both again"
                )
            annotations = label_map_to_annotations(label_map)
        write_semantic(folder / "semantic" / file_name, label_map)
    Image.fromarray(rgb).save(folder / "images" / file_name, compress_level=1)
    entry = {"id": 0, "file_name": file_name, "height": height, "width": width, "split_group": record.split_group}
    told = {"report_group": record.report_group, "image_type": record.image_type}
    return {**entry, **{key: each if isinstance(each, str) else each(image) for key, each in told.items()}}, annotations


def _size(array: np.ndarray[Any, Any]) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"


def _check_ids(records: list[Record], title: str) -> None:
    if not records:
        raise InputError(f"{title}: no images; check the source")
    seen: set[str] = set()
    for record in records:
        if not record.image_id or record.image_id.startswith(".") or set(record.image_id) & set("/\\\0"):
            raise InputError(f"{title}: an image is called {record.image_id!r}, which is no file name; rename it")
        if len(os.fsencode(f"{record.image_id}.png")) > LONGEST_NAME:
            raise InputError(
                f"{title}: {record.image_id[:40]}... has {len(record.image_id)} characters with its folders, too many "
                "for a file name; shorten them"
            )
        if record.image_id in seen:
            raise InputError(f"{title}: two images are called {record.image_id}; rename one")
        seen.add(record.image_id)


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_complete(folder: Path, info: dict[str, Any], records: list[Record]) -> bool:
    """Whether the split is there, made of the same images with the same options, and no file was removed since."""
    prepared = _read_json(folder)
    if prepared.get("info") != json.loads(json.dumps(info)):
        return False
    names = [f"{record.image_id}.png" for record in records]
    parts = ("images", "semantic") if info["labelled"] else ("images",)
    return names == [image["file_name"] for image in prepared["images"]] and all(
        (folder / part).is_dir() and set(names) == set(os.listdir(folder / part)) for part in parts
    )


def read_info(instances_json: Path) -> dict[str, Any]:
    """The ``info`` of a prepared split, read from the head of its json; {} where that is something else."""
    try:
        with instances_json.open(encoding="utf-8") as file:
            head = file.read(1 << 16)
        start = '{"info": '
        info, _ = json.JSONDecoder().raw_decode(head, len(start)) if head.startswith(start) else ({}, 0)
    except (OSError, ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) and "dataset" in info and "reader" in info else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def _replace_folder(new: Path, place: Path, old: Path) -> None:
    """Move ``new`` to ``place``, where never a mixture is: what was there goes to ``old`` first, then away."""
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)


def _undo_replacing(old: Path, place: Path) -> None:
    """Put in order what a process left that was killed in ``_replace_folder``: the new folder stays where it has its
    place already, else the old one gets it back."""
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.replace(old, place)
