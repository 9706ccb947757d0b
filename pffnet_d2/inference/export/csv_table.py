"""``csv``: a table of measurements, one row per object."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export.base import Add, Exporter, Part, Scores, SourceImage
from pffnet_d2.inference.export.measure import DEFAULT_SHAPES, SHAPE_TERMS, Measured, intensity_columns, shape_columns
from pffnet_d2.inference.tiling import Box

# Properties of skimage.measure.regionprops_table, with the power of the length unit in each.
SHAPES = {term: SHAPE_TERMS[term] for term in DEFAULT_SHAPES}
INTENSITIES = ("intensity_mean", "intensity_min", "intensity_max", "intensity_std")


class Csv(Exporter):
    """See :func:`write_csv`."""

    name = "csv"
    ending = ".csv"
    about = "measurements"
    streams = True

    def check(self, name: str, image: SourceImage) -> None:
        check_square(name, image.pixel_size)

    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        return _rows(path, image.pixels, image.pixel_size, image.measured)


def write_csv(
    path: Path,
    label_map: NDArray[np.int32],
    scores: Scores | None = None,
    *,
    pixels: NDArray[Any] | None = None,
    pixel_size: tuple[float, float] | None = None,
) -> None:
    """Write one row per object: label, scores, position, shape and grey values in the file.

    Columns: label; the scores; centroid_x, centroid_y (pixels, the centre of the first pixel at 0.5, as in the
    GeoJSON); bbox_x, bbox_y, bbox_width, bbox_height (pixels); SHAPES with their unit, ``_px`` or ``_um`` and a power;
    INTENSITIES of ``pixels``, with ``_0``, ``_1``, ... if there are several channels. For an image without objects,
    only the header is written.

    Args:
        path: the file.
        label_map: (H, W) integers, 0 background.
        scores: columns of n values, one per object.
        pixels: (H, W) or (H, W, C) grey values; None omits INTENSITIES.
        pixel_size: height and width of a pixel in micrometres; None measures in pixels.

    Raises:
        InputError: pixels are not square, so lengths in micrometres are not defined; the file cannot be written.
    """
    values = None if pixels is None else lambda _: pixels
    with _rows(path, values, pixel_size) as add:
        add(Part(label_map, scores or {}))


@contextmanager
def _rows(
    path: Path,
    pixels: Callable[[Box], NDArray[Any]] | None,
    pixel_size: tuple[float, float] | None,
    measured: Measured | None = None,
) -> Iterator[Add]:
    check_square(str(path), pixel_size)
    header: list[str] = []
    empty: dict[str, Any] = {}

    def add(part: Part) -> None:
        nonlocal header, empty
        table = _chosen_table(part, measured, pixel_size) if measured else measurements(part, pixels, pixel_size)
        if not len(table["label"]):
            empty = empty or table
            return
        if not header:
            header = list(table)
            writer.writerow(header)
        writer.writerows(zip(*([_number(v) for v in column] for column in table.values()), strict=True))

    with whole_file(path, newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        yield add
        if not header:
            writer.writerow(empty)


def check_square(name: str, pixel_size: tuple[float, float] | None) -> None:
    if pixel_size and not np.isclose(pixel_size[0], pixel_size[1], rtol=0.01):
        raise InputError(
            f"{name}: pixels of {pixel_size[0]:g} x {pixel_size[1]:g} micrometres are not square; "
            "measure in pixels (--pixel-size 0)"
        )


def table_of(part: Part, image: SourceImage) -> dict[str, Any]:
    """The columns of the table of an image, for the objects of a part of it."""
    if image.measured:
        return _chosen_table(part, image.measured, image.pixel_size)
    return measurements(part, image.pixels, image.pixel_size)


def measurements(
    part: Part, pixels: Callable[[Box], NDArray[Any]] | None, pixel_size: tuple[float, float] | None
) -> dict[str, Any]:
    """The columns of :func:`write_csv`."""
    from skimage.measure import regionprops_table

    side = (pixel_size[0] * pixel_size[1]) ** 0.5 if pixel_size else 1.0
    (top, left), (height, width) = part.origin, part.labels.shape
    names = ["label", "centroid", "bbox", *SHAPES, *(INTENSITIES if pixels is not None else ())]
    # 64-bit floats, so that sums of grey values do not overflow. Pixels are needed even without objects, because their
    # channels determine the columns.
    values = pixels and np.asarray(pixels((top, left, top + height, left + width)), dtype=np.float64)
    found = regionprops_table(part.labels, intensity_image=values, properties=names)

    table: dict[str, Any] = {"label": found["label"] + (part.first - 1)}
    table |= {key: np.asarray(column) for key, column in part.scores.items()}
    table["centroid_x"], table["centroid_y"] = found["centroid-1"] + 0.5 + left, found["centroid-0"] + 0.5 + top
    table["bbox_x"], table["bbox_y"] = found["bbox-1"] + left, found["bbox-0"] + top
    table["bbox_width"] = found["bbox-3"] - found["bbox-1"]
    table["bbox_height"] = found["bbox-2"] - found["bbox-0"]
    for key, power in SHAPES.items():
        unit = ("", "_um", "_um2")[power] if pixel_size else ("", "_px", "_px2")[power]
        table[key + unit] = found[key] * side**power
    return table | {key.replace("-", "_"): found[key] for key in found if key.startswith("intensity")}


def _chosen_table(part: Part, measured: Measured, pixel_size: tuple[float, float] | None) -> dict[str, Any]:
    """Columns: image; label; the scores; position and box in pixels, and the position in micrometres if the size of a
    pixel is known; the shape terms; the grey values of every channel."""
    from skimage.measure import regionprops_table

    (top, left), (height, width) = part.origin, part.labels.shape
    found = regionprops_table(part.labels, properties=["label", "centroid", "bbox"])
    table: dict[str, Any] = {"image": [measured.image] * len(found["label"]), "label": found["label"] + part.first - 1}
    table |= {key: np.asarray(column) for key, column in part.scores.items()}
    x, y = found["centroid-1"] + 0.5 + left, found["centroid-0"] + 0.5 + top
    table |= {"centroid_x": x, "centroid_y": y}
    if pixel_size:
        table |= {"centroid_x_um": x * pixel_size[1], "centroid_y_um": y * pixel_size[0]}
    table |= {"bbox_x": found["bbox-1"] + left, "bbox_y": found["bbox-0"] + top}
    table |= {"bbox_width": found["bbox-3"] - found["bbox-1"], "bbox_height": found["bbox-2"] - found["bbox-0"]}
    side = (pixel_size[0] * pixel_size[1]) ** 0.5 if pixel_size else 1.0
    table |= dict(shape_columns(part.labels, measured.measures.shapes, side, "um" if pixel_size else "px"))
    if measured.measures.intensities or measured.measures.ring:
        values = measured.channels((top, left, top + height, left + width))
        table |= dict(intensity_columns(part.labels, values, measured.names, measured.measures))
    return table


def _number(value: Any) -> int | str:
    """Whole numbers unchanged, other numbers with six digits; text unchanged; nothing where there is no number."""
    if isinstance(value, str):
        return value
    if np.isnan(value):
        return ""
    return int(value) if float(value).is_integer() else f"{value:.6g}"
