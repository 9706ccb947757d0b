"""CVPPP 2017 Leaf Segmentation Challenge (LSC; "CVPPP 2019" is the same): rosette plants from above, every leaf. A1
(Arabidopsis, 530 x 500 pixels) has 128 labelled plants with 2,088 leaves, and 33 test plants whose truth the challenge
keeps; A2 and A4 are Arabidopsis too, A3 is tobacco.

Download page: https://www.plant-phenotyping.org/datasets-download and
https://competitions.codalab.org/competitions/18405.

Licence: research with citation, no redistribution (A4: see its authors).

Citation: Minervini et al., "Finely-grained annotated datasets for image-based plant phenotyping", Pattern Recognition
Letters 81, 2016; Scharr et al., "Annotated image datasets of rosette plants", 2014; A4: Bell and Dee, "Aberystwyth leaf
evaluation dataset", 2016.

Layout, in folders or zips of any depth: <A1 to A4>/<plant>_rgb.png and, where labelled, <plant>_label.png. Or HDF5
(needs h5py): CVPPP2017_{training,testing}_images.h5 with /<A1 to A4>/<plant>/rgb and CVPPP2017_training_truth.h5 with
.../label. With both, the PNG are read.

Split schemes: ``a1`` (the default) to ``a4`` and ``all``, each with train (labelled) and test (not labelled), and
``challenge``: A1 with 28 of its labelled plants as val and 100 as train, as for PFFNet's entry to the challenge, whose
paper gives the numbers but not the plants. Of the 128 in the order of their names, plant i (from 0) is for validation
where 28 (i + 1) / 128, rounded down, exceeds 28 i / 128, rounded down: every fourth or fifth.

Ids begin with the subset, as in A1_plant003, because plants of different subsets share names. A1 is checked against the
official lists; the other subsets are what the files hold. Images of the test splits have no truth: ``pffnet predict
--format cvppp`` writes what the challenge scores, and ``write_submission`` fills the challenge's own example.

Traps. A label image has a palette, and the index is the id; OpenCV, imageio and ``convert`` expand it to colours, which
are no ids. A leaf that another one crosses has several components but stays one object. Leaves touch.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pffnet_d2.data.readers.labels import label_map
from pffnet_d2.data.readers.record import Record
from pffnet_d2.data.readers.source import SourceFile, list_files, shipped
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS
from pffnet_d2.imaging.read import decode_label_image

SUBSETS = ("A1", "A2", "A3", "A4")
SPLITS: tuple[str, ...] = ("train", "test")
CHALLENGE = "challenge"
SCHEMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("a1", "a2", "a3", "a4", "all"), SPLITS),
    CHALLENGE: ("train", "val", "test"),
}
CATEGORY = "leaf"
NORMALISATION = AS_IS
LISTS: dict[str, dict[str, list[str]]] = shipped("cvppp")
PUBLISHED = {"A1": LISTS["A1"]}  # subset -> split -> plants; only A1


@dataclass(frozen=True)
class Hdf5Data:
    """One data set of an HDF5 file."""

    path: Path
    key: str

    def read(self) -> npt.NDArray[Any]:
        try:
            with _h5py().File(self.path, "r") as file:
                return np.asarray(file[self.key])
        except (OSError, KeyError, RuntimeError) as error:
            raise InputError(f"{self}: cannot be read; the file is truncated or damaged, fetch it again") from error

    def __str__(self) -> str:
        return f"{self.path}:{self.key}"


Part = SourceFile | Hdf5Data


@dataclass
class Plant:
    """The files of a plant."""

    rgb: Part | None = None
    label: Part | None = None


def splits(root: Path, *, scheme: str = "a1") -> tuple[str, ...]:
    """The splits of which there are images under ``root``."""
    plants = _plants(root, scheme)
    found = tuple(
        s for s in SCHEMES[scheme] if any(_in_split(name, plant, s, scheme) for name, plant in plants.items())
    )
    if not found:
        wanted = ", ".join(_subsets(scheme))
        raise InputError(
            f"{root}: no <plant>_rgb.png in a folder {wanted}, and no HDF5 file of the challenge with it; put the "
            "downloaded zip or h5 files there"
        )
    return found


def records(root: Path, split: str, *, scheme: str = "a1") -> Iterator[Record]:
    """The plants of a split, subset by subset, in the order of their names. Those of test have no label map.

    Raises:
        InputError: an unknown split; an image without its label image or a label image without image; a plant of A1
        that is missing. Reading a record: a damaged file; a label image in colours.
    """
    plants = _plants(root, scheme)
    if split not in SCHEMES[scheme]:
        raise InputError(f"unknown split {split!r} of cvppp; choose one of {', '.join(SCHEMES[scheme])}")
    for (subset, name), plant in plants.items():
        if plant.rgb is None:
            raise InputError(f"{plant.label}: its image {subset}/{name}_rgb is missing; extract the download again")
    chosen = {key: plant for key, plant in plants.items() if _in_split(key, plant, split, scheme)}
    for subset in _subsets(scheme):
        for name in _published(scheme).get(subset, {}).get(split, ()):
            if (subset, name) not in chosen:
                raise InputError(f"{root}: {subset}/{name}_rgb of split {split} is missing; extract the download again")
    for (subset, name), plant in chosen.items():
        if split != "test" and plant.label is None:
            raise InputError(f"{plant.rgb}: {subset}/{name}_label is missing; extract the download again")
        assert plant.rgb is not None  # refused above
        yield Record(
            image_id=f"{subset}_{name}",
            read_image=partial(_read_image, plant.rgb),
            read_label_map=partial(_read_label_map, plant.label) if plant.label and split != "test" else None,
            split_group=f"{subset}_{name}",
            report_group=subset,
            image_type="plant",
        )


def write_submission(template: Path, out: Path, label_maps: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """Write the file that the challenge evaluates (answer.h5): the template with /<subset>/<plant>/label replaced.

    Plants of the template without a label map get an empty one, which is what the evaluator takes a missing one for.

    Args:
        template: the challenge's submission_example.h5; it is not changed.
        out: the file to write; it is moved to its place when whole.
        label_maps: by image id (A1_plant003), (H, W) whole numbers, 0 background, at most 255 objects.

    Returns:
        The ids of the template that got an empty map.

    Raises:
        InputError: a template without such plants, an id that is not in it, a map of another size or with more than 255
        objects.
    """
    if out.exists() and template.exists() and out.samefile(template):
        raise InputError(f"{out}: is the template; give another name for the submission")
    beside = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, beside)
        with _h5py().File(beside, "r+") as file:
            places = {f"{subset}_{name}": plant for subset, name, plant in _groups(file) if "label" in plant}
            _fill_template(places, label_maps, template)
        os.replace(beside, out)
    except OSError as error:
        raise InputError(f"{template} -> {out}: not the challenge's submission_example.h5, or not writable") from error
    finally:
        beside.unlink(missing_ok=True)
    return sorted(places.keys() - label_maps.keys())


def _fill_template(places: dict[str, Any], label_maps: Mapping[str, npt.NDArray[Any]], template: Path) -> None:
    """Check everything, then write the labels of the open groups ``places``."""
    if not places:
        raise InputError(f"{template}: holds no <subset>/<plant>/label; use the challenge's submission_example.h5")
    for image_id, array in label_maps.items():
        if image_id not in places:
            raise InputError(f"{image_id}: is not in {template}; name plants as in A1_plant003")
        labels, place = label_map(array, image_id), places[image_id]["label"]
        if labels.shape != place.shape:
            raise InputError(
                f"{image_id}: a label map of {_size(labels.shape)} pixels, the challenge's has {_size(place.shape)}"
            )
        if labels.max() > 255:
            raise InputError(f"{image_id}: {labels.max()} objects do not fit the challenge's 8 bits; drop the smallest")
    for image_id, plant in places.items():
        place = plant["label"]
        if image_id in label_maps:
            values = label_map(label_maps[image_id], image_id)
        else:
            values = np.zeros(place.shape, np.int32)
        if place.dtype.kind in "ui":
            place[...] = values
        else:  # a template that holds bool or float placeholders: as the published submission scripts do
            del plant["label"]
            plant["label"] = values.astype(np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _subsets(scheme: str) -> tuple[str, ...]:
    if scheme not in SCHEMES:
        raise InputError(f"unknown split scheme {scheme!r} of cvppp; choose one of {', '.join(SCHEMES)}")
    return SUBSETS if scheme == "all" else ("A1",) if scheme == CHALLENGE else (scheme.upper(),)


def _published(scheme: str) -> dict[str, dict[str, list[str]]]:
    """The plants of each split of a scheme, for the subsets with official lists."""
    if scheme != CHALLENGE:
        return PUBLISHED
    labelled, val = PUBLISHED["A1"]["train"], LISTS["A1 challenge"]["val"]
    train = [name for name in labelled if name not in val]
    return {"A1": {"train": train, "val": val, "test": PUBLISHED["A1"]["test"]}}


def _in_split(key: tuple[str, str], plant: Plant, split: str, scheme: str) -> bool:
    subset, name = key
    published = _published(scheme)
    if subset in published:
        return name in published[subset][split]
    return (plant.label is not None) == (split == "train")


def _plants(root: Path, scheme: str) -> dict[tuple[str, str], Plant]:
    """The files of each plant, by subset and name, sorted."""
    subsets = _subsets(scheme)
    found: dict[tuple[str, str], Plant] = {}
    files = list_files(root)
    for file in files:
        match = re.fullmatch(r"(plant\d+)_(rgb|label)\.png", file.name)
        if match and len(file.parts) > 1 and file.parts[-2] in subsets:
            plant = found.setdefault((file.parts[-2], match[1]), Plant())
            if getattr(plant, match[2]) is not None:
                raise InputError(f"{file}: {getattr(plant, match[2])} is the same plant; remove one of them")
            setattr(plant, match[2], file)
    if not found:
        for file in files:
            if file.suffix in (".h5", ".hdf5") and "submission" not in file.name and "testing_truth" not in file.name:
                if file.member:
                    raise InputError(f"{file}: HDF5 files are read where they lie; extract the zip first")
                _add_hdf5(found, file.path, subsets)
        _check_truth(found)
    return dict(sorted(found.items()))


def _add_hdf5(found: dict[tuple[str, str], Plant], path: Path, subsets: tuple[str, ...]) -> None:
    try:
        with _h5py().File(path, "r") as file:
            keys = [
                (subset, name, part)
                for subset, name, plant in _groups(file)
                for part in ("rgb", "label")
                if subset in subsets and part in plant
            ]
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as HDF5; it is truncated or damaged, fetch it again") from error
    for subset, name, part in keys:
        setattr(found.setdefault((subset, name), Plant()), part, Hdf5Data(path, f"{subset}/{name}/{part}"))


def _check_truth(found: dict[tuple[str, str], Plant]) -> None:
    """Training images whose truth was not downloaded are not to pass for test images."""
    for (subset, name), plant in found.items():
        if plant.label is None and isinstance(plant.rgb, Hdf5Data) and "training" in plant.rgb.path.name:
            raise InputError(
                f"{plant.rgb}: no HDF5 file beside it holds {subset}/{name}/label; "
                "download CVPPP2017_training_truth.h5 into that folder"
            )


def _groups(file: Any) -> Iterator[tuple[str, str, Any]]:
    """Subset, name and open group of every plant of an open HDF5 file."""
    group = _h5py().Group
    for subset, plants in file.items():
        for name, plant in plants.items() if isinstance(plants, group) else ():
            if isinstance(plant, group):
                yield subset, name, plant


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise InputError("h5py is not installed, which HDF5 files need; run `pip install h5py`") from error


def _read_image(part: Part) -> npt.NDArray[Any]:
    return part.read() if isinstance(part, Hdf5Data) else part.image()


def _read_label_map(part: Part) -> npt.NDArray[np.int32]:
    if isinstance(part, Hdf5Data):
        return label_map(part.read(), str(part))
    data = part.read()
    labels = decode_label_image(data, str(part))
    with Image.open(io.BytesIO(data)) as image:
        grey = image.mode in ("L", "LA", "RGB", "RGBA")
    if grey and labels.max() > len(np.unique(labels)):  # of palette colours; two leaves may have the same grey value
        raise InputError(
            f"{part}: grey values with gaps up to {labels.max()}, a rendering of the labels, not the labels; "
            "use the publisher's palette PNG unchanged"
        )
    return label_map(labels, str(part))
