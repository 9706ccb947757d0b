"""What CPM15, CPM17 and CoNSeP share: images with truth in the digital pathology challenges' text files or in the
MATLAB files of the HoVer-Net authors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pffnet_d2.data.readers.labels import decode_mat, decode_text
from pffnet_d2.data.readers.record import Record
from pffnet_d2.data.readers.source import SourceFile, list_files
from pffnet_d2.errors import InputError

REPACKED = {"cpm15", "cpm17", "consep", "kumar", "tnbc"}  # folders of the HoVer-Net authors

Pairs = dict[str, tuple[SourceFile, SourceFile]]


def files_of(root: Path, name: str) -> list[SourceFile]:
    """The files of one data set under ``root``.

    They are those in a folder or zip called ``name`` where there is one, as in the folder with several data sets that
    the HoVer-Net authors share, otherwise those outside the folders of the other data sets.
    """
    files = list_files(root)
    named = [file for file in files if name in _folders(file, root)]
    return named or [file for file in files if not _folders(file, root) & REPACKED]


def pairs_of(files: Iterable[SourceFile]) -> Pairs:
    """Image and truth by the image's name, in the order of the numbers in the names.

    <name>.png with <name>_mask.txt beside it, or Images/<name>.png with Labels/<name>.mat. Renderings
    (<name>_poly.png, Overlay/) are left out.

    Raises:
        InputError: an image without truth, truth without image, two of one name.
    """
    images: dict[str, SourceFile] = {}
    truths: dict[str, SourceFile] = {}
    for file in files:
        folder = file.parts[-2].lower() if len(file.parts) > 1 else ""
        if file.suffix == ".png" and folder != "overlay" and not file.stem.endswith("_poly"):
            found, stem = images, file.stem
        elif file.suffix == ".mat" or file.name.endswith("_mask.txt"):
            found, stem = truths, file.stem.removesuffix("_mask")
        else:
            continue
        if stem in found:
            raise InputError(f"{file}: {found[stem]} has the same name; remove one of them")
        found[stem] = file
    for stem, file in images.items():
        if stem not in truths:
            raise InputError(f"{file}: neither {stem}_mask.txt nor {stem}.mat is there; extract the download again")
    for stem, file in truths.items():
        if stem not in images:
            raise InputError(f"{file}: its image {stem}.png is missing; extract the download again")
    return {stem: (images[stem], truths[stem]) for stem in sorted(images, key=_number)}


def folder_splits(root: Path, name: str, wanted: Iterable[str]) -> tuple[str, ...]:
    """The splits whose folders are under ``root``; Train or training will do for train. Raises InputError where there
    are none."""
    files = files_of(root, name)
    found = tuple(split for split in wanted if _in_folder(files, root, split))
    if not found:
        raise InputError(f"{root}: holds no folder {' or '.join(wanted)}; put the downloaded zip or its folders there")
    return found


def folder_records(root: Path, name: str, split: str, counts: dict[str, int]) -> Iterator[Record]:
    """The records in the folder of a split, which must hold the published number of images. Ids begin with the split.

    Raises:
        InputError: an unknown split; an image or truth that is missing. Reading a record: a damaged file.
    """
    if split not in counts:
        raise InputError(f"unknown split {split!r} of {name}; choose one of {', '.join(counts)}")
    pairs = pairs_of(_in_folder(files_of(root, name), root, split))
    check_count(pairs, counts[split], f"{name} {split}", root)
    yield from pair_records(
        {stem if stem.startswith(split) else f"{split}_{stem}": pair for stem, pair in pairs.items()}
    )


def check_count(pairs: Pairs, count: int, title: str, root: Path) -> None:
    if len(pairs) != count:
        raise InputError(f"{root}: {len(pairs)} images of {title} instead of {count}; extract the download again")


def pair_records(pairs: Pairs) -> Iterator[Record]:
    """Records of histology images. It is not published which of them are of one patient."""
    for stem, (image, truth) in pairs.items():
        yield Record(
            image_id=stem,
            read_image=image.image,
            read_label_map=partial(_read_label_map, truth),
            image_type="histology",
        )


def _folders(file: SourceFile, root: Path) -> set[str]:
    """Names of the folders and archives between ``root`` and the file, in lower case."""
    parts = file.parts[len(root.parts) : -1]
    return {part.lower().removesuffix(".zip").removesuffix("_dataset") for part in parts}


def _in_folder(files: Iterable[SourceFile], root: Path, split: str) -> list[SourceFile]:
    return [file for file in files if _folders(file, root) & {split, f"{split}ing"}]


def _number(stem: str) -> tuple[str, int]:
    match = re.search(r"\d+$", stem)
    return (stem[: match.start()], int(match[0])) if match else (stem, 0)


def _read_label_map(file: SourceFile) -> npt.NDArray[np.int32]:
    if file.suffix == ".mat":
        return decode_mat(file.read(), str(file), "inst_map")
    return decode_text(file.read(), str(file))
