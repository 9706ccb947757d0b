"""Kumar (TCGA-Kumar) and MoNuSeg 2018: haematoxylin and eosin, 1000 x 1000 pixels at 40x, 30 images of seven organs
with some 17,000 outlined nuclei, and the 14 test images of the challenge.

Download page: https://monuseg.grand-challenge.org/Data/ (MoNuSeg 2018 Training Data.zip, MoNuSegTestData.zip); the same
30 images were first at http://nucleisegmentationbenchmark.weebly.com/.

Licence: CC BY-NC-SA 4.0.

Citation: Kumar et al., "A Dataset and a Technique for Generalized Nuclear Segmentation for Computational Pathology",
IEEE TMI 36(7), 2017; Kumar et al., "A Multi-Organ Nucleus Segmentation Challenge", IEEE TMI 39(5), 2020.

Layout: <id>.tif and <id>.xml (Aperio ImageScope), those of the training set in "Tissue Images" and "Annotations", those
of the test set side by side; in folders or zips at any depth. The shipped lists select the images, not what is there:
the download of 2020 has seven more.

Split schemes: ``kumar`` 12 / 4 / 8 of the same organs / 6 of others (Kumar 2017, Naylor, Qu, CIA-Net, PFFNet);
``hovernet`` 16 / 8 / 6 (the repack that HoVer-Net distributes; three of its training images are test images of
``kumar``: do not mix their numbers); ``monuseg2018`` 30 / 14.

Pixels. A region is filled as by poly2mask of the publisher's MATLAB code: vertices are in 1-based pixel centres, and a
pixel belongs to a region if its centre does, unless the centre is on a left or upper edge. Many vertices lie on pixel
centres; moving them by -0.99 instead of -1 puts those centres on the right side. Compared with published label maps
this gives IoU 0.992 to 0.996 (-1: down to 0.90). With ``polygon_offset=-0.5`` the outlines fit the stain best, but
scores are not comparable with published ones.

Traps. Vertices lie up to 3 pixels outside the image: the region is cut there. Regions of fewer than three vertices are
strokes and are dropped, as are those without a pixel in the image. A region with NegativeROA="1" is an eraser: its
pixels belong to no nucleus. Regions overlap: each annotation is whole. In the label map that scores are computed on,
the region that comes first in the xml is on top, as in the publisher's label maps (13 xml, 4,948 nuclei: mean IoU with
those maps 0.994, at least 0.941; with the smaller one on top 0.984, at least 0.232). ``overlap=smaller`` puts the
smaller one on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
import numpy.typing as npt
import skimage

from pffnet_d2.data.readers.labels import image_size
from pffnet_d2.data.readers.record import Record
from pffnet_d2.data.readers.source import SourceFile, list_files, shipped
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS
from pffnet_d2.masks.coco import OVERLAPS, masks_to_label_map
from pffnet_d2.masks.instance_mask import InstanceMask

LISTS: dict[str, dict[str, list[str]]] = shipped("kumar")
SCHEMES: dict[str, tuple[str, ...]] = {scheme: tuple(lists) for scheme, lists in LISTS.items()}
SPLITS = SCHEMES["kumar"]
CATEGORY = "nucleus"
NORMALISATION = AS_IS
OPTIONS: dict[str, tuple[Any, str]] = {
    "polygon_offset": (-0.99, "pixels added to the vertices: -0.99 as published label maps, -0.5 as the stain"),
    "overlap": ("first", "what is on top: first of the xml, as in published label maps, or smaller"),
}
# Whose organs are among those of the training images; for the schemes that have these splits.
REPORT_GROUPS = {"test_seen": "seen", "test_unseen": "unseen"}

Vertices = npt.NDArray[np.float64]


def splits(
    root: Path, *, scheme: str = "kumar", polygon_offset: float = -0.99, overlap: str = "first"
) -> tuple[str, ...]:
    """The splits all images of which are under ``root``."""
    images = _by_stem(list_files(root), (".tif", ".tiff"))
    lists = _lists(scheme)
    found = tuple(split for split, names in lists.items() if images.keys() >= set(names))
    if not found:
        raise InputError(
            f"{root}: holds all images of none of the splits {', '.join(lists)}; put the downloaded zips there"
        )
    return found


def records(
    root: Path, split: str, *, scheme: str = "kumar", polygon_offset: float = -0.99, overlap: str = "first"
) -> Iterator[Record]:
    """The images of a split in the order of its list, with the patient as the group that splits keep whole.

    Raises:
        InputError: an unknown split; an image or annotation of its list that is missing or there twice. Reading a
        record: a damaged file; an xml without regions or with a document type, which could expand without bound.
    """
    lists = _lists(scheme)
    if split not in lists:
        raise InputError(f"unknown split {split!r} of kumar ({scheme}); choose one of {', '.join(lists)}")
    if not math.isfinite(polygon_offset) or abs(polygon_offset) > 2:
        raise InputError(f"polygon_offset {polygon_offset}: give pixels between -2 and 2 (-0.99 or -0.5)")
    if overlap not in OVERLAPS:
        raise InputError(f"option overlap={overlap}: give {' or '.join(OVERLAPS)}")
    files = list_files(root)
    images, annotations = _by_stem(files, (".tif", ".tiff")), _by_stem(files, (".xml",))
    for name in lists[split]:
        for found, ending in ((images, ".tif"), (annotations, ".xml")):
            if name not in found:
                raise InputError(f"{root}: {name}{ending} of split {split} ({scheme}) is missing; download it again")
    for name in lists[split]:
        image, annotation = images[name], annotations[name]
        yield Record(
            image_id=name,
            read_image=image.image,
            read_label_map=partial(_read_label_map, annotation, image, polygon_offset, overlap),
            read_masks=partial(_read_masks, annotation, image, polygon_offset),
            split_group=name[:12],  # TCGA-<site>-<patient>
            image_type="histology",
            overlap=overlap,
        )


def _lists(scheme: str) -> dict[str, list[str]]:
    if scheme not in LISTS:
        raise InputError(f"unknown split scheme {scheme!r} of kumar; choose one of {', '.join(LISTS)}")
    return LISTS[scheme]


def _by_stem(files: list[SourceFile], endings: tuple[str, ...]) -> dict[str, SourceFile]:
    found: dict[str, SourceFile] = {}
    for file in files:
        if file.suffix in endings:
            if file.stem in found:
                raise InputError(f"{file}: {found[file.stem]} has the same name; remove one of them")
            found[file.stem] = file
    return found


def _read_label_map(annotation: SourceFile, image: SourceFile, offset: float, overlap: str) -> npt.NDArray[np.int32]:
    height, width = image_size(image.read(), str(image))
    return masks_to_label_map(_regions(annotation, height, width, offset), height, width, overlap)


def _read_masks(annotation: SourceFile, image: SourceFile, offset: float) -> list[InstanceMask]:
    return _regions(annotation, *image_size(image.read(), str(image)), offset)


def _regions(annotation: SourceFile, height: int, width: int, offset: float) -> list[InstanceMask]:
    outlines = parse_outlines(annotation.read(), str(annotation))
    _check_extent(outlines, height, width, str(annotation))
    filled = [(negative, fill(vertices + offset, height, width)) for negative, vertices in outlines]
    found = [each for negative, each in filled if each is not None and not negative]
    erasers = [each for negative, each in filled if each is not None and negative]
    if not erasers:
        return found
    kept = np.ones((height, width), np.bool_)
    for each in erasers:
        kept[each.window] &= ~each.mask
    found = [each._replace(mask=each.mask & kept[each.window]) for each in found]
    return [each for each in found if each.area]


def _check_extent(outlines: list[tuple[bool, Vertices]], height: int, width: int, name: str) -> None:
    """The xml does not tell the size of its image. One of another image shows when its outlines reach far out."""
    x, y = np.concatenate([vertices for _, vertices in outlines]).max(axis=0)
    if x > 1.1 * width + 5 or y > 1.1 * height + 5:
        raise InputError(
            f"{name}: outlines reach to row {y:.0f}, column {x:.0f}, the image has {height} x {width} pixels; "
            "the two do not belong together, fetch both again"
        )


def fill(vertices: Vertices, height: int, width: int) -> InstanceMask | None:
    """The pixels whose centre is inside the polygon, cut at the image; None where there are none.

    Args:
        vertices: (n, 2) x and y in 0-based pixel centres.
        height: of the image, as ``width`` in pixels.
    """
    rows, columns = skimage.draw.polygon(vertices[:, 1], vertices[:, 0], (height, width))
    if rows.size == 0:
        return None
    y0, x0 = int(rows.min()), int(columns.min())
    mask = np.zeros((int(rows.max()) - y0 + 1, int(columns.max()) - x0 + 1), np.bool_)
    mask[rows - y0, columns - x0] = True
    return InstanceMask(y0, x0, mask)


def parse_outlines(data: bytes, name: str) -> list[tuple[bool, Vertices]]:
    """For each region with at least three vertices: whether it is an eraser (NegativeROA), and its vertices, (n, 2) x
    and y as written. All annotation layers, in the order of the file.

    Raises:
        InputError: naming ``name``: no xml, a document type (it may declare entities that expand without bound), no
        region of three vertices, a coordinate that is not a finite number.
    """
    regions: list[tuple[bool, list[float]]] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "Region":
            regions.append((attributes.get("NegativeROA", "0") == "1", []))
        elif tag == "Vertex" and regions:
            try:
                regions[-1][1].extend((float(attributes["X"]), float(attributes["Y"])))
            except (KeyError, ValueError) as error:
                raise InputError(f"{name}: a vertex without numbers X and Y; fetch it again") from error

    def refuse(*_: Any) -> None:
        raise InputError(f"{name}: declares a document type, which no annotation of the publisher does; do not use it")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except InputError:  # is a ValueError too
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two of encodings that expat does not know
        raise InputError(f"{name}: not complete XML ({error}); it is truncated or damaged, fetch it again") from error
    outlines = [(negative, np.array(v).reshape(-1, 2)) for negative, v in regions if len(v) >= 6]
    if not outlines:
        raise InputError(f"{name}: no region with at least three vertices; it is not the annotation of an image")
    if not all(np.isfinite(vertices).all() for _, vertices in outlines):
        raise InputError(f"{name}: a vertex that is not a finite number; fetch it again")
    return outlines
