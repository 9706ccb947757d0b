"""Outlines of objects as truth: GeoJSON, as QuPath exports it, and ROIs of ImageJ and Fiji.

GeoJSON: https://qupath.readthedocs.io, "Exporting annotations"; coordinates are in pixels, (0, 0) is the outer corner
of the first pixel. ROIs are read by roifile; a zip of them, as the ROI Manager saves it, counts as a folder.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.data.readers.source import SourceFile
from pffnet_d2.errors import InputError
from pffnet_d2.masks.instance_mask import InstanceMask
from pffnet_d2.masks.outlines import filled

GEOJSON, ROI = ".geojson", ".roi"
CELL_OUTLINES = {"cell": "geometry", "nucleus": "nucleusGeometry"}
# Exceptions of roifile for damaged files and for curves that it does not read.
_DAMAGED_ROI = (ValueError, LookupError, TypeError, RuntimeError, OSError)

Parts = list[list[NDArray[np.float64]]]  # polygons of one or more rings, each (n, 2) x, y


def read_outlines(files: Sequence[SourceFile], height: int, width: int, outline: str = "") -> list[InstanceMask]:
    """The masks of one image: one per feature of a GeoJSON, or one per ROI, in the order of the files.

    A pixel belongs to an object if its centre lies inside the outline.

    Args:
        files: one GeoJSON, or any number of ROIs.
        height, width: of the image.
        outline: "cell" or "nucleus", for cells of QuPath, which have both.

    Raises:
        InputError: naming the file: it cannot be read; an outline is no area, or covers no pixel of the image; a cell
            has two outlines and no choice was made; roifile is not installed.
    """
    masks = []
    for file in files:
        found = _features(file, outline) if file.suffix == GEOJSON else [("its outline", _roi(file))]
        for name, parts in found:
            mask = filled(parts, height, width)
            if not mask.area:
                raise InputError(
                    f"{file}: {name} covers no pixel of the image, {height} x {width} pixels (height x width); remove "
                    "it, or put the outlines beside their own image"
                )
            masks.append(mask)
    return masks


# --- GeoJSON --------------------------------------------------------------------------------------------------------


def _features(file: SourceFile, outline: str) -> Iterator[tuple[str, Parts]]:
    """Name and polygons of every feature of a FeatureCollection, a list of features, or a single feature."""
    try:
        data = json.loads(file.read())
    except ValueError as error:
        raise InputError(f"{file}: is not GeoJSON ({error}); export it again") from error
    features = data.get("features", [data]) if isinstance(data, dict) else data
    if not isinstance(features, list):
        raise InputError(f"{file}: holds no features; export a FeatureCollection")
    for i, feature in enumerate(features):
        name = f"feature {i}"
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise InputError(f"{file}: {name} is no GeoJSON feature; export a FeatureCollection")
        yield name, _polygons(file, name, _geometry(file, name, feature, outline))


def _geometry(file: SourceFile, name: str, feature: dict[str, Any], outline: str) -> Any:
    if feature.get("nucleusGeometry") is None:
        return feature.get("geometry")
    if outline not in CELL_OUTLINES:
        raise InputError(
            f"{file}: {name} is a cell with a nucleus; say which outline is the object, --option outline=cell or "
            "outline=nucleus"
        )
    return feature[CELL_OUTLINES[outline]]


def _polygons(file: SourceFile, name: str, geometry: Any) -> Parts:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"{file}: {name} is a {kind}, not an area; remove it, or draw it as a polygon")
    polygons = [geometry.get("coordinates")] if kind == "Polygon" else geometry.get("coordinates")
    try:
        parts = [[np.array(ring, dtype=np.float64)[:, :2] for ring in polygon] for polygon in polygons]
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"{file}: {name} has coordinates that are no polygon; export it again") from error
    rings = [ring for part in parts for ring in part]
    if (
        not parts
        or not all(parts)
        or any(ring.shape[1:] != (2,) or len(ring) < 3 or not np.isfinite(ring).all() for ring in rings)
    ):
        raise InputError(f"{file}: {name} has coordinates that are no polygon; export it again")
    return parts


# --- ROIs -----------------------------------------------------------------------------------------------------------


def _roi(file: SourceFile) -> Parts:
    """The rings of an ROI. ImageJ fills the rings of a composite ROI by the even-odd rule."""
    try:
        roifile = importlib.import_module("roifile")
    except ImportError as error:
        raise InputError(f"{file}: needs roifile; type: pip install 'pffnet_d2[export]'") from error
    areas = {roifile.ROI_TYPE[name] for name in ("POLYGON", "RECT", "OVAL", "FREEHAND", "TRACED")}
    try:
        roi = roifile.ImagejRoi.frombytes(file.read())
        if roi.roitype not in areas:
            raise InputError(
                f"{file}: is a {roi.roitype.name.lower()}, not an area; remove it, or draw it as a polygon"
            )
        rings = [np.asarray(ring, dtype=np.float64) for ring in roi.coordinates(multi=True)]
    except InputError:
        raise
    except _DAMAGED_ROI as error:
        raise InputError(f"{file}: cannot be read as an ROI of ImageJ; it is damaged, save it again") from error
    if not rings or any(len(ring) < 3 for ring in rings):
        raise InputError(f"{file}: its outline has fewer than three corners; remove it")
    # 16 bits: roifile reads coordinates above 32,767 as negative ones. Only an ROI that left the image begins below 0.
    lowest = np.concatenate(rings).min(axis=0)
    wrapped = np.where(lowest < -(2**14), 2**16, 0)
    return [[ring + wrapped for ring in rings]]
