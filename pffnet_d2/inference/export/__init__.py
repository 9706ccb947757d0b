"""Writes predictions to files that other programs open.

``EXPORTERS`` lists the formats. To add a format, write a module like the others here, add its exporter to the list,
test it, and describe it in docs/predict.md. The command line and its help text follow the list. Each file is written
under a temporary name and moved to its place when it is complete. Objects are written one by one, so apart from the
label map, a file of 100,000 objects needs no more memory than a small one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pffnet_d2.errors import InputError
from pffnet_d2.inference.export.base import CollectionExporter, Exporter, Part, SourceImage
from pffnet_d2.inference.export.coco import Coco, write_coco_image
from pffnet_d2.inference.export.csv_table import Csv, write_csv
from pffnet_d2.inference.export.cvppp import Cvppp
from pffnet_d2.inference.export.geojson import GeoJson, write_geojson
from pffnet_d2.inference.export.label_tiff import LabelTiff, write_label_tiff
from pffnet_d2.inference.export.ome_zarr import OmeZarr
from pffnet_d2.inference.export.overlay import Overlay
from pffnet_d2.inference.export.parquet import Parquet
from pffnet_d2.inference.export.roi import Roi, write_rois

__all__ = [
    "EXPORTERS",
    "Exporter",
    "Formats",
    "Part",
    "SourceImage",
    "choose",
    "names",
    "write_coco_image",
    "write_csv",
    "write_geojson",
    "write_label_tiff",
    "write_rois",
]

EXPORTERS: Sequence[Exporter | CollectionExporter] = (
    LabelTiff(),
    Overlay(),
    GeoJson(),
    Roi(),
    Csv(),
    OmeZarr(),
    Parquet(),
    Coco(),
    Cvppp(),
)


@dataclass(frozen=True)
class Formats:
    """The exporters of one run."""

    files: tuple[Exporter, ...]  # for each image
    collections: tuple[CollectionExporter, ...] = ()  # for all images together


def names(*, streaming: bool = False) -> list[str]:
    """The names of the formats in the order of ``EXPORTERS``; with ``streaming``, only those written part by part."""
    return [e.name for e in EXPORTERS if not streaming or (isinstance(e, Exporter) and e.streams)]


def choose(chosen: Iterable[str], *, streaming: bool = False) -> Formats:
    """The exporters of the chosen formats, each once, in the given order. A collection also adds the exporter that it
    is made of.

    Args:
        chosen: among ``names()``.
        streaming: whether the label map is written part by part.

    Raises:
        InputError: a format is unknown, lacks its library or, with ``streaming``, needs the whole image.
    """
    known = {exporter.name: exporter for exporter in EXPORTERS}
    files: dict[str, Exporter] = {}
    collections: dict[str, CollectionExporter] = {}
    for name in chosen:
        if name not in known:
            raise InputError(f"format {name!r} is unknown; choose from {','.join(names())}")
        exporter = known[name]
        exporter.require()
        if isinstance(exporter, CollectionExporter):
            collections[name] = exporter
            exporter = known[exporter.made_of]
        assert isinstance(exporter, Exporter)
        if streaming and not exporter.streams:
            raise InputError(
                f"format {name} cannot be written in tiles; with --tile choose from {','.join(names(streaming=True))}"
            )
        files[exporter.name] = exporter
    return Formats(tuple(files.values()), tuple(collections.values()))
