"""``cvppp``: the single file that the CVPPP leaf segmentation challenge scores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export.base import CollectionExporter, required
from pffnet_d2.inference.export.label_tiff import LabelTiff

Plant = tuple[str, str]  # subset and name, as in ("A1", "plant003")


class Cvppp(CollectionExporter):
    """See :func:`write_answer`."""

    name = "cvppp"
    about = "all label maps for the CVPPP challenge"
    file_name = "answer.h5"
    made_of = LabelTiff.name

    def require(self) -> None:
        _h5py()

    def check_images(self, images: Sequence[Path]) -> None:
        plants_of(images)

    def write(self, path: Path, files: Mapping[Path, Path]) -> None:
        write_answer(path, dict(zip(plants_of(files), files.values(), strict=True)))


def _h5py() -> Any:
    return required("h5py", Cvppp.name, "h5py>=3.8")


def plants_of(paths: Iterable[Path]) -> list[Plant]:
    """The plants that the images show, found from their names: A1/plant003_rgb.png as in the challenge, or
    A1_plant003.png as ``pffnet prepare cvppp`` writes them.

    Raises:
        InputError: an image has another name, or two images show the same plant.
    """
    owners: dict[Plant, Path] = {}
    for path in paths:
        folder = path.absolute().parent.name
        match = re.fullmatch(r"(?:(A\d)_)?(plant\d+)(?:_rgb)?", path.stem)
        subset = match and (match[1] or folder)
        if not match or not subset or not re.fullmatch(r"A\d", subset):
            raise InputError(
                f"{path}: not named like an image of the challenge; --format {Cvppp.name} needs names such as "
                "A1/plant003_rgb.png or A1_plant003.png"
            )
        plant = (subset, match[2])
        if plant in owners:
            raise InputError(f"{owners[plant]} and {path}: both are {subset}/{match[2]}; predict one of them")
        owners[plant] = path
    return list(owners)


def write_answer(path: Path, label_files: Mapping[Plant, Path]) -> None:
    """Write the file that the challenge scores: /<subset>/<plant>/label, (H, W) uint8, and label_filename.

    The challenge treats a plant that is missing from the file as a plant without leaves.

    Args:
        path: the file, answer.h5.
        label_files: the label TIFF of each plant, 0 background, objects from 1 on.

    Raises:
        InputError: h5py is missing; an image has more than 255 objects; the file cannot be written.
    """
    h5py = _h5py()
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
