"""``pffnet predict --format cvppp``: the one file that the CVPPP leaf segmentation challenge scores."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError

FORMAT, ANSWER = "cvppp", "answer.h5"
Plant = tuple[str, str]  # subset and name, as in ("A1", "plant003")


def need_h5py() -> Any:
    """The module; raises InputError, saying what to install, where it is missing."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise InputError(f"format {FORMAT}: h5py is not installed; type: pip install 'h5py>=3.8'") from error


def plants_of(paths: Iterable[Path]) -> list[Plant]:
    """Which plants of the challenge images show, by their names: A1/plant003_rgb.png, or A1_plant003.png as
    ``pffnet prepare cvppp`` writes them.

    Raises:
        InputError: another name, or two images of one plant.
    """
    owners: dict[Plant, Path] = {}
    for path in paths:
        folder = path.absolute().parent.name
        match = re.fullmatch(r"(?:(A\d)_)?(plant\d+)(?:_rgb)?", path.stem)
        subset = match and (match[1] or folder)
        if not match or not subset or not re.fullmatch(r"A\d", subset):
            raise InputError(
                f"{path}: not named as an image of the challenge; --format {FORMAT} wants names such as "
                "A1/plant003_rgb.png or A1_plant003.png"
            )
        plant = (subset, match[2])
        if plant in owners:
            raise InputError(f"{owners[plant]} and {path}: both are {subset}/{match[2]}; predict one of them")
        owners[plant] = path
    return list(owners)


def write_answer(path: Path, label_files: Mapping[Plant, Path]) -> None:
    """Write what the challenge scores: /<subset>/<plant>/label, (H, W) uint8, and label_filename.

    The challenge takes a plant that is not in the file for one without leaves.

    Args:
        path: the file, answer.h5.
        label_files: the label TIFF of each plant, 0 background, objects from 1 on.

    Raises:
        InputError: h5py is missing, more than 255 objects, or a file that cannot be written.
    """
    h5py = need_h5py()
    with whole_file(path, "w+b") as file, h5py.File(file, "w") as answer:
        for (subset, name), label_file in sorted(label_files.items()):
            labels = tifffile.imread(label_file)
            if labels.max(initial=0) > 255:
                raise InputError(
                    f"{label_file}: {labels.max()} objects do not fit the challenge's 8 bits; raise --threshold"
                )
            plant = answer.create_group(f"{subset}/{name}")
            plant.create_dataset("label", data=labels.astype(np.uint8), compression="gzip")
            plant["label_filename"] = f"{name}_label.png"
