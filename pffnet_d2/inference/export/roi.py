"""``roi``: outlines as ImageJ ROIs."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pffnet_d2.atomic_write import whole_file
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export import base
from pffnet_d2.inference.export.base import Add, Exporter, Part, Scores, SourceImage, score_rows
from pffnet_d2.masks.outlines import Part as Polygon
from pffnet_d2.masks.outlines import outlines

LONGEST = 2**16 - 1  # ImageJ stores coordinates in 16 bits


class Roi(Exporter):
    """See :func:`write_rois`."""

    name = "roi"
    ending = "_rois.zip"
    about = "outlines for ImageJ"

    def require(self) -> None:
        base.required("roifile", self.name, "roifile>=2023.2.12")

    def begin(self, path: Path, image: SourceImage) -> AbstractContextManager[Add]:
        return _archive(path, image.shape)


def write_rois(path: Path, label_map: NDArray[np.int32], scores: Scores | None = None) -> None:
    """Write a zip of ROIs for ImageJ's ROI Manager, named by label ("00001.roi"), with the scores as properties.

    An object in one part without holes becomes a traced polygon, any other object a composite ROI. ImageJ fills exactly
    the pixels of the object.

    Args:
        path: the file.
        label_map: (H, W) integers, 0 background.
        scores: columns of n values, one per object.

    Raises:
        InputError: roifile is not installed; a side of the image is longer than 65,535 pixels, the limit of ROIs; the
            file cannot be written.
    """
    with _archive(path, (label_map.shape[0], label_map.shape[1])) as add:
        add(Part(label_map, scores or {}))


@contextmanager
def _archive(path: Path, shape: tuple[int, int]) -> Iterator[Add]:
    Roi().require()
    if max(shape) > LONGEST:
        raise InputError(
            f"{path}: ImageJ's ROIs are limited to {LONGEST:,} pixels per side, the image has {shape[0]} x {shape[1]}; "
            "use geojson or label-tiff"
        )

    def add(part: Part) -> None:
        rows = score_rows(part.scores)
        digits = max(5, len(str(part.labels.max(initial=0))))
        for i, (label, polygons) in enumerate(outlines(part.labels)):
            name = f"{label:0{digits}d}"
            properties = "".join(f"{key}: {value:.6g}\n" for key, value in rows(i).items())
            # A fixed date, so that equal results give equal bytes.
            entry = zipfile.ZipInfo(f"{name}.roi", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, _encoded(polygons, name, properties))

    with whole_file(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        yield add


def _encoded(polygons: list[Polygon], name: str, properties: str) -> bytes:
    """Encodes one object in ImageJ's format."""
    from roifile import ROI_TYPE, ImagejRoi

    exteriors = np.concatenate([polygon[0] for polygon in polygons])
    (left, top), (right, bottom) = exteriors.min(axis=0).tolist(), exteriors.max(axis=0).tolist()
    roi = ImagejRoi(
        roitype=ROI_TYPE.TRACED, name=name, props=properties, left=left, top=top, right=right, bottom=bottom
    )
    if len(polygons) == 1 and len(polygons[0]) == 1:
        roi.integer_coordinates = (exteriors - (left, top)).astype(np.int32)
        roi.n_coordinates = len(exteriors)
    else:
        # Segments of java.awt.geom.PathIterator: move to x y (0), line to x y (1), close (4).
        path: list[int] = []
        for ring in (ring for polygon in polygons for ring in polygon):
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
