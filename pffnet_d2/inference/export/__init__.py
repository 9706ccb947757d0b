"""Predictions as files that other programs open.

``EXPORTERS`` lists the formats. To add one, write a file like those here, add its exporter to the list, test it, and
describe it in docs/predict.md; the command line and its help text follow the list. A file is written beside its place
and moved there when it is complete. Objects are written one after the other, so a file of 100,000 objects takes no more
memory than one of few, apart from the label map.
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
from pffnet_d2.inference.export.overlay import Overlay
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
    Coco(),
    Cvppp(),
)


@dataclass(frozen=True)
class Formats:
    """What one run writes."""

    files: tuple[Exporter, ...]  # for each image
    collections: tuple[CollectionExporter, ...] = ()  # for all images together


def names(*, streaming: bool = False) -> list[str]:
    """The formats in the order of ``EXPORTERS``; ``streaming``: only those that are written part by part."""
    return [e.name for e in EXPORTERS if not streaming or (isinstance(e, Exporter) and e.streams)]


def choose(chosen: Iterable[str], *, streaming: bool = False) -> Formats:
    """The exporters of some formats, each once, in the order given; of a collection also the one it is made of.

    Args:
        chosen: of ``names()``.
        streaming: the label map is written part by part.

    Raises:
        InputError: a format is unknown, lacks its library or, streaming, needs the whole image.
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
                f"format {name} is not written in tiles; with --tile choose from {','.join(names(streaming=True))}"
            )
        files[exporter.name] = exporter
    return Formats(tuple(files.values()), tuple(collections.values()))
