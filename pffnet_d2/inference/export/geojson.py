"""``geojson``: outlines with scores, for QuPath."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.inference.export.base import Add, Exporter, Part, Scores, SourceImage, score_rows
from pffnet_d2.masks.outlines import outlines

# Names of the score columns as QuPath displays them.
MEASUREMENTS = {"score": "Score", "class_score": "Class score", "mask_quality": "Mask quality"}
COLOUR = [230, 75, 53]  # RGB of the outlines in QuPath


class GeoJson(Exporter):
    """See :func:`write_geojson`."""

    name = "geojson"
    ending = ".geojson"
    about = "outlines for QuPath"
    streams = True

    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        return _features(path, image.pixel_size, image.class_name)


def write_geojson(
    path: Path,
    label_map: NDArray[np.int32],
    scores: Scores | None = None,
    *,
    pixel_size: tuple[float, float] | None = None,
    category: str = "object",
) -> None:
    """Write a FeatureCollection that QuPath (0.4 and later) imports as detections.

    Coordinates are in pixels; (0, 0) is the outer corner of the first pixel. An object of several parts is a
    MultiPolygon. Exteriors run clockwise as seen in the image, with y pointing down. Measurements are the label, the
    scores and the area.

    Args:
        path: the file.
        label_map: (H, W) integers, 0 background.
        scores: columns of n values, one per object.
        pixel_size: height and width of a pixel in micrometres; None gives areas in pixels.
        category: name of the objects' class in QuPath.

    Raises:
        InputError: the file cannot be written.
    """
    with _features(path, pixel_size, category) as add:
        add(Part(label_map, scores or {}))


@contextmanager
def _features(path: Path, pixel_size: tuple[float, float] | None, category: str = "object") -> Iterator[Add]:
    written = 0

    def add(part: Part) -> None:
        nonlocal written
        for feature in _objects(part, path, pixel_size, category):
            file.write((",\n" if written else "\n") + json.dumps(feature))
            written += 1

    with whole_file(path, encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        yield add
        file.write("\n]}\n")


def _objects(part: Part, path: Path, pixel_size: tuple[float, float] | None, category: str) -> Iterator[dict[str, Any]]:
    """One feature per object."""
    name = path.name.encode("utf-8", "backslashreplace").decode()  # file names need not be UTF-8
    unit, factor = ("um^2", pixel_size[0] * pixel_size[1]) if pixel_size else ("px^2", 1)
    areas = np.bincount(part.labels.ravel())
    rows = score_rows(part.scores)
    start = np.array(part.origin[::-1])
    for i, (own, polygons) in enumerate(outlines(part.labels)):
        label = own + part.first - 1
        rings = [[(ring + start).tolist() for ring in polygon] for polygon in polygons]
        closed = [[[*ring, ring[0]] for ring in polygon] for polygon in rings]
        single = len(closed) == 1
        scores = {MEASUREMENTS.get(key, key): value for key, value in rows(i).items()}
        yield {
            "type": "Feature",
            # QuPath requires a UUID. The same prediction always gets the same one.
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {label} {closed[0][0]}")),
            "geometry": {
                "type": "Polygon" if single else "MultiPolygon",
                "coordinates": closed[0] if single else closed,
            },
            "properties": {
                "objectType": "detection",
                "name": str(label),
                "classification": {"name": category, "color": COLOUR},
                "measurements": {"Label": label, **scores, f"Area {unit}": float(areas[own] * factor)},
            },
        }
