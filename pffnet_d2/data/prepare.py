"""From what a publisher distributes to images/, semantic/ and instances.json, once.

    ROOT/<name>/<split>/images/<id>.png     8-bit RGB
                        semantic/<id>.png   8 bit, 0 background, 1 object
                        instances.json      COCO with run lengths; ``info`` says how the images were normalised

A split is built in a folder beside its place and moved when whole, so that what is there is complete. One that is there
already, made with the same options, is left alone.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pffnet_d2.data import phantoms
from pffnet_d2.data.coco import label_map_to_annotations, write_coco, write_semantic
from pffnet_d2.data.images import Normalisation, to_rgb8
from pffnet_d2.data.readers import READERS
from pffnet_d2.data.readers.record import Record
from pffnet_d2.errors import InputError

Read = Callable[[], Iterator[Record]]

FORMAT = 1  # of the prepared files; a split of another one is made again
CATEGORIES = {"phantoms": "nucleus", "bbbc039": "nucleus"}
SPLITS: dict[str, tuple[str, ...]] = {
    "phantoms": phantoms.SPLITS,
    **{name: reader.SPLITS for name, reader in READERS.items()},
}


def prepare(
    name: str,
    source: Path | None,
    out: Path,
    *,
    splits: Sequence[str] | None = None,
    count: int | None = None,
    force: bool = False,
    workers: int | None = None,
) -> None:
    """Prepare a data set under ``out / name`` and print what was made. One call at a time for a data set.

    Args:
        name: a key of ``SPLITS``.
        source: the folder with the publisher's files; phantoms need none.
        splits: which; None takes all that ``source`` holds.
        count: images a split. Phantoms: how many to make (80 and 16 unless given); others: only the first so many, for
            a trial.
        force: make it again even if it is complete.
        workers: threads; None takes one a processor, at most 8.

    Raises:
        InputError: an unknown data set or split, or whatever is wrong with the source; nothing half-made is left.
    """
    if name not in SPLITS:
        raise InputError(f"unknown data set {name!r}; choose one of {', '.join(SPLITS)}")
    for split in splits or ():
        if split not in SPLITS[name]:
            raise InputError(f"unknown split {split!r} of {name}; choose one of {', '.join(SPLITS[name])}")
    if count is not None and count < 1:
        raise InputError(f"count {count}: give at least one image")
    if name == "phantoms":
        normalisation, wanted = phantoms.NORMALISATION, tuple(splits or phantoms.SPLITS)
    else:
        if source is None:
            raise InputError(f"{name} needs --source: the folder with the publisher's files (see datasets/README.md)")
        normalisation, wanted = READERS[name].NORMALISATION, tuple(splits or READERS[name].splits(source))
        for split in SPLITS[name]:
            if split not in wanted and not splits:
                print(f"{name} {split}: left out, its list is not in {source}")
    for split in wanted:
        if name == "phantoms":
            read: Read = partial(phantoms.records, split, count)
        else:
            assert source is not None  # refused above
            read = partial(_first_records, name, source, split, count)
        info = {
            "description": f"{name} {split}, prepared by pffnet",
            "format": FORMAT,
            "dataset": name,
            "split": split,
            "count": count,
            "normalisation": normalisation.info(),
        }
        _prepare_split(out / name / split, read, info, normalisation, force, workers)


def _first_records(name: str, source: Path, split: str, count: int | None) -> Iterator[Record]:
    return islice(READERS[name].records(source, split), count)


def _prepare_split(
    folder: Path,
    read: Read,
    info: dict[str, Any],
    normalisation: Normalisation,
    force: bool,
    workers: int | None,
) -> None:
    title = f"{info['dataset']} {info['split']}"
    prepared = _read_json(folder)
    if not force and _is_complete(prepared, folder, info):
        print(f"{title}: complete in {folder}, left alone (--force makes it again)")
        return
    if folder.exists() and prepared.get("info", {}).get("dataset") != info["dataset"]:
        raise InputError(f"{folder}: exists and was not made by pffnet prepare; move it away or choose another --out")
    started = time.perf_counter()
    records = list(read())
    _check_ids(records, title)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder.parent}: cannot be made ({error.strerror}); choose another --out") from error
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)  # of a run that was killed
    try:
        (partial_folder / "images").mkdir(parents=True)
        (partial_folder / "semantic").mkdir()
        images, annotations = _convert_all(records, partial_folder, normalisation, title, workers)
        write_coco(partial_folder / "instances.json", images, annotations, info, CATEGORIES[info["dataset"]])
        _replace_folder(partial_folder, folder)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise
    empty = len(images) - len({annotation["image_id"] for annotation in annotations})
    seconds = time.perf_counter() - started
    print(f"{title}: {len(images)} images ({empty} empty), {len(annotations)} objects -> {folder} ({seconds:.1f} s)")


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
    """Write the two PNG of a record; the COCO entries without ids."""
    image, label_map = record.read_image(), record.read_label_map()
    if image.shape[:2] != label_map.shape:
        raise InputError(
            f"{record.image_id}: the image has {_size(image)} pixels (height x width), "
            f"its mask {_size(label_map)}; fetch both again"
        )
    try:
        rgb = to_rgb8(image, normalisation)
    except InputError as error:
        raise InputError(f"{record.image_id}: {error}") from error
    file_name = f"{record.image_id}.png"
    Image.fromarray(rgb).save(folder / "images" / file_name, compress_level=1)
    write_semantic(folder / "semantic" / file_name, label_map)
    entry = {"id": 0, "file_name": file_name, "height": image.shape[0], "width": image.shape[1]}
    return {**entry, "group": record.group, "image_type": record.image_type}, label_map_to_annotations(label_map)


def _size(array: np.ndarray[Any, Any]) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"


def _check_ids(records: list[Record], title: str) -> None:
    if not records:
        raise InputError(f"{title}: no images; check the source")
    seen: set[str] = set()
    for record in records:
        if record.image_id in seen:
            raise InputError(f"{title}: two images are called {record.image_id}; rename one")
        seen.add(record.image_id)


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_complete(prepared: dict[str, Any], folder: Path, info: dict[str, Any]) -> bool:
    """Whether the split is there, made with the same options, and no file was removed since."""
    if prepared.get("info") != info:
        return False
    names = {image["file_name"] for image in prepared["images"]}
    return all((folder / part).is_dir() and names == set(os.listdir(folder / part)) for part in ("images", "semantic"))


def _replace_folder(new: Path, place: Path) -> None:
    """Move ``new`` to ``place``, where never a mixture is: what was there is moved aside first and removed after."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)
