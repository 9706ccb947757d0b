"""Scores label images in folders, made by any tool: ``pffnet score --truth DIR --prediction DIR``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from pffnet_d2.data.prepared import PreparedSplit
from pffnet_d2.data.readers.labels import components, parts_of_one_id
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.evaluation.error_kinds import Fates, fates_of
from pffnet_d2.evaluation.scores import Row, score
from pffnet_d2.imaging.read import read_label_image

SUFFIXES = (".png", ".tif", ".tiff")


# Endings that tools and people add to the name of an image for its label image. The first is this package's, the third
# Cellpose's.
ENDINGS = ("_labels", "_label", "_cp_masks", "_masks", "_mask")
OVERLAY = "_overlay"  # of the picture that `pffnet predict` writes beside a label image
OBJECTS = ("auto", "ids", "components")


class Truth(NamedTuple):
    """The truth of an image: its file, a function that reads it as (H, W), and the image's group in reports."""

    file: Path
    read: Callable[[], NDArray[Any]]
    group: str = ""


class Scored(NamedTuple):
    """The scores of an image, and what became of its objects."""

    row: Row
    fates: Fates


def score_folders(truth: Path, prediction: Path, objects: str = "auto") -> Iterator[Scored]:
    """Score each image. Truth and prediction have the name of the image, with or without one of ``ENDINGS``.

    Args:
        truth: a folder of label images, or a prepared split (a folder with instances.json).
        prediction: a folder of label images, as `pffnet predict` writes them: one (H, W) map of integers per file, PNG
            of 8 or 16 bit (with a palette, its indices are read) or TIFF of 8, 16 or 32 bit.
        objects: how to read an image with a single id in several separate parts: as one object ("ids"), as the mask of
            all objects ("components": every 8-connected part is an object), or as a mistake ("auto").

    Raises:
        InputError: a folder contains no label images; an image has no partner or several; or an image cannot be read,
            is not a label map (floats, negative ids, several planes), has another size than its partner, or is a mask
            of all objects. The error names the file.
    """
    if objects not in OBJECTS:
        raise InputError(f"--objects {objects}: give one of {', '.join(OBJECTS)}")
    split = PreparedSplit(truth)
    if split.json_file.is_file():
        truths = {each.name: Truth(split.json_file, each.truth, each.group) for each in split.labelled_images()}
    else:
        truths = {
            name: Truth(file, partial(_read_objects, file, objects)) for name, file in _label_images(truth).items()
        }
    predictions = _label_images(prediction)
    numbered = False  # whether a prediction has an id above 1; ids then number the objects
    doubtful: Path | None = None
    for name, (file, read, group), predicted in _pairs(truths, truth, predictions, prediction):
        gt, found = read(), read_label_image(predicted)
        if objects == "auto" and found.max(initial=0) == 1:  # the only object found may have several parts
            doubtful = doubtful or (predicted if parts_of_one_id(found) > 1 else None)
        else:
            found = _objects(found, predicted, objects)
            numbered = numbered or bool(found.max(initial=0) > 1)
        try:
            table = ContingencyTable.from_labels(gt, found)
        except InputError as error:
            raise InputError(f"{file} and {predicted}: {error}") from error
        yield Scored(score(name, gt, found, group, table=table), fates_of(table))
    if doubtful and not numbered:
        _objects(read_label_image(doubtful), doubtful, objects)


def _read_objects(path: Path, objects: str) -> NDArray[Any]:
    return _objects(read_label_image(path), path, objects)


def _objects(labels: NDArray[Any], path: Path, objects: str) -> NDArray[Any]:
    """Return the labels of an image. ``objects`` says how to read a single id in several parts."""
    parts = parts_of_one_id(labels) if objects != "ids" else 0
    if parts < 2:
        return labels
    if objects == "components":
        return components(labels != 0)
    raise InputError(
        f"{path}: one id, {labels.max()}, in {parts} separate parts; say --objects components if it is the mask of all "
        "objects, --objects ids if it is one object"
    )


def _pairs(
    truths: Mapping[str, Truth], truth: Path, predictions: Mapping[str, Path], prediction: Path
) -> Iterator[tuple[str, Truth, Path]]:
    """Return the image name, truth and prediction of every pair: files with the same stem, then files whose stems are
    the same without ``ENDINGS``.

    Args:
        truths: the truths by stem; ``truth`` is their folder.
        predictions: the predictions by stem; ``prediction`` is their folder.

    Raises:
        InputError: a file has no partner, or could have several.
    """
    named = defaultdict(list)
    for stem in predictions:
        for name in _names(stem) if stem not in truths else ():
            named[name].append(stem)
    pairs: dict[str, tuple[str, str]] = {}  # stem of the prediction: name of the image and stem of the truth
    used: dict[str, str] = {}  # name of the image: stem of the prediction
    for stem in truths:
        name = next((name for name in _names(stem) if name in named), stem)
        found = [stem] if stem in predictions else named.get(name, [])
        name = stem if stem in predictions else name
        if not found:
            raise InputError(
                f"{truths[stem].file}: {prediction} has no label image {stem} or {stem}{ENDINGS[0]}; every image "
                "needs its partner"
            )
        if len(found) > 1:
            raise InputError(
                f"{predictions[found[0]]}: {predictions[found[1]].name} may be {name} too; keep one of them"
            )
        if found[0] in pairs:
            raise InputError(
                f"{predictions[found[0]]}: {pairs[found[0]][1]} and {stem} of {truth} may both be its truth; keep one"
            )
        if name in used:
            raise InputError(
                f"{predictions[found[0]]}: {predictions[used[name]].name} may be {name} too; keep one of them"
            )
        pairs[found[0]], used[name] = (name, stem), found[0]
    for stem in [stem for stem in predictions if stem not in pairs]:
        twin = next((used[name] for name in _names(stem) if name in used), None)
        if twin:
            raise InputError(f"{predictions[twin]}: {predictions[stem].name} may be the same image; keep one of them")
        raise InputError(
            f"{predictions[stem]}: {truth} has no label image {_names(stem)[-1]}; every image needs its partner"
        )
    for predicted, (name, stem) in pairs.items():
        yield name, truths[stem], predictions[predicted]


def _names(stem: str) -> tuple[str, ...]:
    """Return the possible image names of a label image: its stem, and that without .ome and without an ending."""
    bare = stem[:-4] if stem.lower().endswith(".ome") else stem
    cut = next((bare.removesuffix(ending) for ending in ENDINGS if bare.endswith(ending)), bare)
    return tuple(dict.fromkeys(name for name in (stem, bare, cut) if name))


def _label_images(folder: Path) -> dict[str, Path]:
    """Return the label images of a folder by stem, sorted. The overlays of `pffnet predict` are not label images."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of label images")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith(".") or file.is_dir():
            continue
        if file.stem in files:
            raise InputError(f"{file}: {files[file.stem].name} has the same name; keep one of the two")
        files[file.stem] = file
    overlays = [
        stem
        for stem, file in files.items()
        if stem.endswith(OVERLAY)
        and file.suffix == ".png"
        and (stem.removesuffix(OVERLAY) + ENDINGS[0] in files or all(other.endswith(OVERLAY) for other in files))
    ]
    if overlays and len(overlays) == len(files):
        raise InputError(f"{folder}: contains overlays, not label images; predict with --format label-tiff")
    for stem in overlays:
        del files[stem]
    if not files:
        raise InputError(f"{folder}: contains no label images ({', '.join(SUFFIXES)}); subfolders are not searched")
    return files
