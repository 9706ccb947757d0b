"""Predictions as files that other programs open: label TIFF, overlay, COCO, GeoJSON (QuPath), ROIs (ImageJ), CSV.

Every writer takes a label map and, where the format has a place for them, scores as columns: ``{"score": (n,), ...}``,
entry i of the i-th label in ascending order. Objects are written one after the other, so that a file of 100,000 takes
no more memory than one of few beside the label map. A file is written beside its place and moved there when whole.
"""

from __future__ import annotations

import csv
import json
import struct
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.measure import regionprops_table

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError
from pffnet_d2.inference import cvppp
from pffnet_d2.masks.coco import CATEGORY_ID, label_map_to_annotations
from pffnet_d2.masks.outlines import Part, outlines
from pffnet_d2.visualization.overlay import overlay, write_png

Scores = Mapping[str, NDArray[Any]]

# What the columns are called in GeoJSON, where QuPath shows them to people.
MEASUREMENTS = {"score": "Score", "class_score": "Class score", "mask_quality": "Mask quality"}
# Measured by skimage.measure.regionprops_table; the powers of the pixel size in their units.
SHAPES = {
    "area": 2,
    "perimeter": 1,
    "eccentricity": 0,
    "axis_major_length": 1,
    "axis_minor_length": 1,
    "equivalent_diameter_area": 1,
}
# Side of the tiles of a label image that is written as it is found.
LABEL_TILE = 256
INTENSITIES = ("intensity_mean", "intensity_min", "intensity_max", "intensity_std")


@dataclass(frozen=True)
class Export:
    """One predicted image, as every format of ``FORMATS`` takes it."""

    file_name: str  # of the image, without folders
    image: NDArray[np.uint8]  # (H, W, 3) RGB as the network saw it
    pixels: NDArray[Any]  # (H, W) or (H, W, C), the values of the file
    label_map: NDArray[np.int32]  # (H, W), ids 1..n
    scores: Scores = field(default_factory=dict)
    pixel_size: tuple[float, float] | None = None  # height and width of a pixel, micrometres
    resolution: tuple[Any, Any, int] | None = None  # tags XResolution, YResolution, ResolutionUnit of a TIFF


def write_label_tiff(
    path: Path,
    label_map: NDArray[Any],
    *,
    pixel_size: tuple[float, float] | None = None,
    resolution: tuple[Any, Any, int] | None = None,
) -> None:
    """The label map as a deflated TIFF, 16 bit up to 65535 objects, else 32 bit.

    Args:
        path: the file.
        label_map: (H, W) integers >= 0.
        pixel_size: height and width of a pixel in micrometres: written as pixels a centimetre.
        resolution: where no pixel size is known, the tags XResolution, YResolution and ResolutionUnit as they are.
    """
    dtype = np.uint16 if label_map.max(initial=0) < 2**16 else np.uint32
    with whole_file(path, "w+b") as file:
        tifffile.imwrite(
            file,
            label_map.astype(dtype),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
            **_scale(pixel_size, resolution),
        )


def write_label_rows(
    path: Path,
    rows: Iterator[NDArray[np.int32]],
    shape: tuple[int, int],
    *,
    pixel_size: tuple[float, float] | None = None,
    resolution: tuple[Any, Any, int] | None = None,
) -> None:
    """:func:`write_label_tiff` of rows as they come, as a tiled BigTIFF of 32 bit.

    Args:
        path: the file.
        rows: (n, W) each, H rows together.
        shape: H, W.
        pixel_size: as there.
        resolution: as there.
    """

    def tiles() -> Iterator[NDArray[np.uint32]]:
        columns = -(-shape[1] // LABEL_TILE)
        band = np.zeros((LABEL_TILE, columns * LABEL_TILE), np.uint32)
        filled = done = 0
        for some in rows:
            while len(some):
                some, part = some[LABEL_TILE - filled :], some[: LABEL_TILE - filled]
                band[filled : filled + len(part), : shape[1]] = part
                filled += len(part)
                done += len(part)
                if filled == LABEL_TILE or done == shape[0]:
                    band[filled:] = 0
                    for i in range(columns):
                        yield band[:, i * LABEL_TILE : (i + 1) * LABEL_TILE].copy()
                    filled = 0

    with whole_file(path, "w+b") as file, tifffile.TiffWriter(file, bigtiff=True) as writer:
        writer.write(
            tiles(),
            shape=shape,
            dtype=np.uint32,
            tile=(LABEL_TILE, LABEL_TILE),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
            **_scale(pixel_size, resolution),
        )


def _scale(pixel_size: tuple[float, float] | None, resolution: tuple[Any, Any, int] | None) -> dict[str, Any]:
    """The tags of a TIFF for the size of its pixels."""
    if pixel_size:
        return {"resolution": (1e4 / pixel_size[1], 1e4 / pixel_size[0]), "resolutionunit": 3}
    return {"resolution": resolution[:2], "resolutionunit": resolution[2]} if resolution else {}


def write_coco(
    path: Path, label_map: NDArray[np.int32], scores: Scores | None = None, *, file_name: str, category: str = "object"
) -> None:
    """One image as a COCO data set: run lengths, area and bounding box of each object, and the scores.

    It is both truth (to correct and train on: ``images``, ``annotations``, ``categories``) and, its ``annotations``
    alone, a list of results.
    """
    height, width = label_map.shape
    head = {
        "info": {"description": "predicted by pffnet_d2"},
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "categories": [{"id": CATEGORY_ID, "name": category, "supercategory": category}],
    }
    rows = _rows(scores)
    with whole_file(path, encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for i, annotation in enumerate(label_map_to_annotations(label_map)):
            file.write((",\n" if i else "\n") + json.dumps(annotation | rows(i)))
        file.write("\n]}\n")


def write_geojson(
    path: Path,
    label_map: NDArray[np.int32],
    scores: Scores | None = None,
    *,
    pixel_size: tuple[float, float] | None = None,
    category: str = "object",
) -> None:
    """A FeatureCollection that QuPath (0.4 and later) imports as detections.

    Coordinates are pixels of the image, (0, 0) the outer corner of the first pixel. An object of several parts is a
    MultiPolygon. Exteriors turn clockwise as one looks at the image, y pointing down. Measurements: the label, the
    scores and the area.
    """
    with geojson_file(path, pixel_size=pixel_size, category=category) as add:
        add(label_map, scores)


@contextmanager
def geojson_file(
    path: Path, *, pixel_size: tuple[float, float] | None = None, category: str = "object"
) -> Iterator[Callable[..., None]]:
    """:func:`write_geojson` in parts: gives ``add(label_map, scores, first=1, origin=(0, 0))`` for parts of an image,
    the label map's 1 being the object ``first`` and its first pixel the image's at ``origin`` (y, x)."""
    name = path.name.encode("utf-8", "backslashreplace").decode()  # a file's name need not be UTF-8
    unit, factor = ("um^2", pixel_size[0] * pixel_size[1]) if pixel_size else ("px^2", 1)
    written = 0

    def add(
        label_map: NDArray[np.int32], scores: Scores | None = None, first: int = 1, origin: tuple[int, int] = (0, 0)
    ) -> None:
        nonlocal written
        areas = np.bincount(label_map.ravel())
        rows = _rows(scores)
        start = np.array(origin[::-1])
        for i, (own, parts) in enumerate(outlines(label_map)):
            label = own + first - 1
            rings = [[(ring + start).tolist() for ring in part] for part in parts]
            polygons = [[[*ring, ring[0]] for ring in part] for part in rings]
            single = len(polygons) == 1
            measurements = {"Label": label} | {MEASUREMENTS.get(k, k): v for k, v in rows(i).items()}
            feature = {
                "type": "Feature",
                # QuPath wants a UUID; the same prediction gets the same.
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {label} {polygons[0][0]}")),
                "geometry": {
                    "type": "Polygon" if single else "MultiPolygon",
                    "coordinates": polygons[0] if single else polygons,
                },
                "properties": {
                    "objectType": "detection",
                    "name": str(label),
                    "classification": {"name": category, "color": [230, 75, 53]},
                    "measurements": measurements | {f"Area {unit}": float(areas[own] * factor)},
                },
            }
            file.write((",\n" if written else "\n") + json.dumps(feature))
            written += 1

    with whole_file(path, encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        yield add
        file.write("\n]}\n")


def write_rois(path: Path, label_map: NDArray[np.int32], scores: Scores | None = None) -> None:
    """A zip of ROIs for ImageJ's ROI Manager, named by label ("00001.roi"), scores among their properties.

    An object in one part without holes is a traced polygon, any other a composite ROI. Its pixels are exactly those
    that ImageJ fills.

    Raises:
        InputError: roifile is not installed; an image of more than 65,535 pixels a side, which ROIs cannot hold.
    """
    need_roifile()
    # ImageJ keeps coordinates in 16 bit.
    if max(label_map.shape) > 2**16 - 1:
        raise InputError(
            f"{path}: ImageJ's ROIs end at 65,535 pixels, the image has {label_map.shape[0]} x {label_map.shape[1]}; "
            "use geojson or label-tiff"
        )
    rows = _rows(scores)
    digits = max(5, len(str(label_map.max(initial=0))))
    with whole_file(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, (label, parts) in enumerate(outlines(label_map)):
            name = f"{label:0{digits}d}"
            properties = "".join(f"{key}: {value:.6g}\n" for key, value in rows(i).items())
            # A date of its own would make every file another.
            entry = zipfile.ZipInfo(f"{name}.roi", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, _roi(parts, name, properties))


def need_roifile() -> None:
    """Raises InputError, saying what to install, where roifile is missing."""
    try:
        import roifile  # noqa: F401
    except ImportError as error:
        raise InputError("format roi: roifile is not installed; type: pip install 'roifile>=2023.2.12'") from error


def _roi(parts: list[Part], name: str, properties: str) -> bytes:
    """One object in ImageJ's format."""
    from roifile import ROI_TYPE, ImagejRoi

    exteriors = np.concatenate([part[0] for part in parts])
    (left, top), (right, bottom) = exteriors.min(axis=0).tolist(), exteriors.max(axis=0).tolist()
    roi = ImagejRoi(
        roitype=ROI_TYPE.TRACED, name=name, props=properties, left=left, top=top, right=right, bottom=bottom
    )
    if len(parts) == 1 and len(parts[0]) == 1:
        roi.integer_coordinates = (exteriors - (left, top)).astype(np.int32)
        roi.n_coordinates = len(exteriors)
    else:
        # Segments of java.awt.geom.PathIterator: move to x y (0), line to x y (1), close (4).
        path: list[int] = []
        for ring in (ring for part in parts for ring in part):
            for k, (x, y) in enumerate(ring.tolist()):
                path += [min(k, 1), x, y]
            path.append(4)
        roi.roitype = ROI_TYPE.RECT
        roi.multi_coordinates = np.array(path, dtype=np.float32)
        roi.shape_roi_size = len(path)
    try:
        return bytes(roi.tobytes())
    except (struct.error, OverflowError, ValueError) as error:
        raise InputError(f"object {name}: its outline does not fit ImageJ's ROI format; use geojson") from error


def write_csv(
    path: Path,
    label_map: NDArray[np.int32],
    scores: Scores | None = None,
    *,
    pixels: NDArray[Any] | None = None,
    pixel_size: tuple[float, float] | None = None,
) -> None:
    """A row an object: label, scores, place, shape and the grey values of the file.

    Columns: label; the scores; centroid_x, centroid_y (pixels, the centre of the first pixel at 0.5, as in the
    GeoJSON); bbox_x, bbox_y, bbox_width, bbox_height (pixels); SHAPES with their unit, ``_px`` or ``_um`` and a power;
    INTENSITIES of ``pixels``, with ``_0``, ``_1``, ... where there are several channels. An image without objects
    gives the header alone.

    Raises:
        InputError: ``pixel_size`` says that pixels are not square: lengths have no one unit.
    """
    with csv_file(path, pixel_size=pixel_size) as add:
        add(label_map, scores, pixels=pixels)


@contextmanager
def csv_file(path: Path, *, pixel_size: tuple[float, float] | None = None) -> Iterator[Callable[..., None]]:
    """:func:`write_csv` in parts: gives ``add(label_map, scores, first=1, origin=(0, 0), pixels=None)`` for parts of an
    image, the label map's 1 being the object ``first`` and its first pixel the image's at ``origin`` (y, x)."""
    check_square(path, pixel_size)
    header: list[str] = []
    empty: dict[str, Any] = {}

    def add(
        label_map: NDArray[np.int32],
        scores: Scores | None = None,
        first: int = 1,
        origin: tuple[int, int] = (0, 0),
        pixels: NDArray[Any] | None = None,
    ) -> None:
        nonlocal header, empty
        table = _table(label_map, scores, pixels, pixel_size)
        if not len(table["label"]):
            empty = empty or table
            return
        table["label"] = table["label"] + (first - 1)
        for names, offset in ((("centroid_y", "bbox_y"), origin[0]), (("centroid_x", "bbox_x"), origin[1])):
            for name in names:
                table[name] = table[name] + offset
        if not header:
            header = list(table)
            writer.writerow(header)
        writer.writerows(zip(*([_number(v) for v in column] for column in table.values()), strict=True))

    with whole_file(path, newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        yield add
        if not header:
            writer.writerow(empty)


def check_square(path: Path, pixel_size: tuple[float, float] | None) -> None:
    """Raises InputError where pixels are not square, so that lengths have no one unit."""
    if pixel_size and not np.isclose(pixel_size[0], pixel_size[1], rtol=0.01):
        raise InputError(
            f"{path}: pixels of {pixel_size[0]:g} x {pixel_size[1]:g} micrometres are not square; "
            "measure in pixels (--pixel-size 0)"
        )


def _table(
    label_map: NDArray[np.int32],
    scores: Scores | None,
    pixels: NDArray[Any] | None,
    pixel_size: tuple[float, float] | None,
) -> dict[str, Any]:
    """The columns of :func:`write_csv`."""
    side = (pixel_size[0] * pixel_size[1]) ** 0.5 if pixel_size else 1.0
    names = ["label", "centroid", "bbox", *SHAPES, *(INTENSITIES if pixels is not None else ())]
    # As 64-bit floats no sum of grey values overflows. A table without objects has no channels yet to name columns by.
    values = None if pixels is None else np.asarray(pixels, dtype=np.float64)
    found = regionprops_table(label_map, intensity_image=values, properties=names)

    table: dict[str, Any] = {"label": found["label"]}
    table |= {key: np.asarray(column) for key, column in (scores or {}).items()}
    table["centroid_x"], table["centroid_y"] = found["centroid-1"] + 0.5, found["centroid-0"] + 0.5
    table["bbox_x"], table["bbox_y"] = found["bbox-1"], found["bbox-0"]
    table["bbox_width"] = found["bbox-3"] - found["bbox-1"]
    table["bbox_height"] = found["bbox-2"] - found["bbox-0"]
    for key, power in SHAPES.items():
        unit = ("", "_um", "_um2")[power] if pixel_size else ("", "_px", "_px2")[power]
        table[key + unit] = found[key] * side**power
    return table | {key.replace("-", "_"): found[key] for key in found if key.startswith("intensity")}


def _number(value: Any) -> int | str:
    """Whole numbers as they are, others to six digits."""
    return int(value) if float(value).is_integer() else f"{value:.6g}"


def _rows(scores: Scores | None) -> Callable[[int], dict[str, float]]:
    """The scores of the i-th object, rounded to six digits."""
    columns = {key: np.asarray(column, dtype=np.float64) for key, column in (scores or {}).items()}
    return lambda i: {key: float(f"{column[i]:.6g}") for key, column in columns.items()}


# Format, end of the file name (after the image's name without its ending), writer.
FORMATS: dict[str, tuple[str, Callable[[Path, Export], None]]] = {
    "label-tiff": (
        "_labels.tif",
        lambda path, e: write_label_tiff(path, e.label_map, pixel_size=e.pixel_size, resolution=e.resolution),
    ),
    "overlay": ("_overlay.png", lambda path, e: write_png(path, overlay(e.image, e.label_map))),
    "geojson": (
        ".geojson",
        lambda path, e: write_geojson(path, e.label_map, e.scores, pixel_size=e.pixel_size),
    ),
    "roi": ("_rois.zip", lambda path, e: write_rois(path, e.label_map, e.scores)),
    "csv": (
        ".csv",
        lambda path, e: write_csv(path, e.label_map, e.scores, pixels=e.pixels, pixel_size=e.pixel_size),
    ),
    "coco": (".json", lambda path, e: write_coco(path, e.label_map, e.scores, file_name=e.file_name)),
}


def check_formats(names: list[str]) -> None:
    """Raises InputError for a format that is unknown or lacks its library, before anything is predicted.

    The challenge's format is one file of all images, made of their label images: inference/cvppp.py.
    """
    for name in names:
        if name == cvppp.FORMAT:
            cvppp.need_h5py()
        elif name not in FORMATS:
            raise InputError(f"format {name!r} is unknown; choose from {','.join([*FORMATS, cvppp.FORMAT])}")
        if name == "roi":
            need_roifile()
