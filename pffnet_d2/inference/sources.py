"""Finds the image files that the arguments of a command name, and chooses the names of their results."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.ome_zarr import is_zarr
from pffnet_d2.inference.export import Exporter

# The images of a folder are its files with one of these endings, and its OME-Zarr folders.
ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".gif")
WILD = "*?["


@dataclass(frozen=True)
class Source:
    """An image file and the name of its results, a path below the output folder without a file extension."""

    path: Path
    name: str


def find_sources(arguments: Sequence[str], out: Path, exporters: Sequence[Exporter]) -> list[Source]:
    """The files that the arguments name, each once, in the order of the arguments. The files of a folder or a pattern
    are sorted.

    Args:
        arguments: files, folders (images directly in them) or patterns (``*``, ``?``, ``[]``, ``**`` for any depth).
            Results of a pattern keep the folders that follow its fixed part.
        out: folder for the results.
        exporters: of the formats that are written.

    Raises:
        InputError: an argument matches no file, the results of two files would have the same name, or a result would
            replace an image.
    """
    sources: dict[Path, Source] = {}
    for argument in arguments:
        found, base = _found(argument)
        for path in found:
            sources.setdefault(Path(os.path.abspath(path)), Source(path, str(_stem(path.relative_to(base)))))

    owners: dict[str, Path] = {}
    for source in sources.values():
        if source.name in owners:
            raise InputError(
                f"{owners[source.name]} and {source.path}: both give results {out / source.name}; "
                "predict them separately"
            )
        owners[source.name] = source.path
        for exporter in exporters:
            result = Path(os.path.abspath(out / (source.name + exporter.ending)))
            if result in sources:
                raise InputError(f"{result}: {source.path} would replace this image; choose another --out")
    return list(sources.values())


def _found(argument: str) -> tuple[list[Path], Path]:
    """The files that one argument names, and the folder that the names of their results are relative to."""
    path = Path(argument)
    if path.is_dir() and not is_zarr(path):
        found = sorted(p for p in path.iterdir() if _is_image(p))
        if not found:
            raise InputError(f"{argument}: no images in this folder ({' '.join(ENDINGS)}); give files or a pattern")
        return found, path
    if os.path.lexists(path):
        return [path], path.parent
    if any(c in argument for c in WILD):
        every = [Path(p) for p in sorted(glob.glob(argument, recursive=True))]
        zarrs = {p for p in every if is_zarr(p)}
        # The chunks and metadata inside an OME-Zarr are not images of their own.
        found = [p for p in every if (p in zarrs or not p.is_dir()) and not zarrs & set(p.parents)]
        if not found:
            raise InputError(f"{argument}: no file matches; check the pattern")
        return found, Path(*_fixed(path.parts))
    raise InputError(f"{argument}: no such file; check the path")


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and (path.suffix.lower() in ENDINGS or is_zarr(path))


def _fixed(parts: tuple[str, ...]) -> list[str]:
    """The folders before the first part of a pattern that contains a wildcard."""
    fixed: list[str] = []
    for part in parts[:-1]:
        if any(c in part for c in WILD):
            break
        fixed.append(part)
    return fixed


def _stem(path: Path) -> Path:
    """The path without its extension; ``a.ome.tif`` and ``a.png`` both become ``a``."""
    stem = path.with_suffix("")
    return stem.with_suffix("") if stem.suffix.lower() == ".ome" else stem
