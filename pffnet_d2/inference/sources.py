"""Finds the image files that the arguments of a command name, and chooses the names of their results."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.microscopy import open_scene, scene_names
from pffnet_d2.imaging.ome_zarr import is_zarr
from pffnet_d2.imaging.scene import ALL
from pffnet_d2.imaging.vendor import BIOIO, SLIDES, TIFFS
from pffnet_d2.inference.export import Exporter
from pffnet_d2.inference.options import ImageOptions

# The images of a folder are its files with one of these endings, and its OME-Zarr folders. Arrays (.npy) are not among
# them, because programs put arrays that are no images beside images.
ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".gif", *TIFFS, *BIOIO, *SLIDES)
WILD = "*?["

AnyOptions = TypeVar("AnyOptions", bound=ImageOptions)


@dataclass(frozen=True)
class Source:
    """An image and the name of its results, a path below the output folder without a file extension.

    Attributes:
        path: the file.
        name: of the results.
        plane, scene: of the file, where the options say "all"; see ``imaging.scene.Selection``.
    """

    path: Path
    name: str
    plane: Mapping[str, int] | int | None = None
    scene: int | str | None = None

    def options(self, options: AnyOptions) -> AnyOptions:
        """The options that read this image and no other of the file."""
        plane = None if options.plane == ALL else options.plane
        scene = None if options.scene == ALL else options.scene
        return replace(
            options,
            plane=plane if self.plane is None else self.plane,
            scene=scene if self.scene is None else self.scene,
        )


def label_of(path: Path | None, name: str, options: ImageOptions) -> str:
    """The name of an image in tables: its file, in the folder of its results, and what is read of it, as in
    "plate/a.tif:scene=1,Z=3"."""
    file = (Path(name).parent / path.name).as_posix() if path else name
    plane = options.plane
    chosen = {"scene": options.scene} | (dict(plane) if isinstance(plane, Mapping) else {"plane": plane})
    parts = ",".join(f"{key}={value}" for key, value in chosen.items() if value is not None)
    return f"{file}:{parts}" if parts else file


def find_sources(
    arguments: Sequence[str], out: Path, exporters: Sequence[Exporter], options: ImageOptions | None = None
) -> list[Source]:
    """The images that the arguments name, each once, in the order of the arguments. The files of a folder or a pattern
    are sorted.

    Results are named after the file without its ending. Files of one folder that differ only in their ending keep it:
    ``a.czi`` and ``a.nd2`` give results ``a.czi`` and ``a.nd2``.

    Args:
        arguments: files, folders (images directly in them) or patterns (``*``, ``?``, ``[]``, ``**`` for any depth).
            Results of a pattern keep the folders that follow its fixed part.
        out: folder for the results.
        exporters: of the formats that are written.
        options: plane or scene "all" makes each plane or image of a file an image of its own; its results are called
            ``a_T0_Z03`` or ``a_scene1``.

    Raises:
        InputError: an argument matches no file, the results of two files would have the same name, or a result would
            replace an image.
    """
    files: dict[Path, tuple[Path, Path]] = {}
    for argument in arguments:
        found, base = _found(argument)
        for path in found:
            files.setdefault(Path(os.path.abspath(path)), (path, path.relative_to(base)))
    stems = Counter((_stem(name), path.parent) for path, name in files.values())
    sources = [
        Source(path, str(name if stems[_stem(name), path.parent] > 1 else _stem(name))) for path, name in files.values()
    ]
    if options is not None:
        sources = [part for source in sources for part in _parts(source, options)]
    _check_names(sources, out, exporters, set(files))
    return sources


def _parts(source: Source, options: ImageOptions) -> list[Source]:
    """The images of a file that the options choose. A file that cannot be read stays one image; reading it will tell
    what is wrong."""
    scenes = [source]
    try:
        if options.scene == ALL and (count := len(scene_names(source.path))) > 1:
            scenes = [replace(source, name=f"{source.name}_scene{i}", scene=i) for i in range(count)]
        if options.plane == ALL:
            return [part for scene in scenes for part in _planes(scene, options)]
    except InputError:
        return [source]
    return scenes


def _planes(source: Source, options: ImageOptions) -> list[Source]:
    chosen = source.options(options).selection()
    with open_scene(source.path, chosen.scene, chosen.level) as scene:
        planes = scene.planes(chosen)
    digits = {axis: len(str(index)) for axis, index in planes[-1].items()}
    return [
        replace(
            source,
            name=source.name + "".join(f"_{axis}{index:0{digits[axis]}d}" for axis, index in plane.items()),
            plane=plane or None,
        )
        for plane in planes
    ]


def _check_names(sources: Iterable[Source], out: Path, exporters: Sequence[Exporter], files: set[Path]) -> None:
    """Raises InputError if two images would have the same results, or a result would replace an image."""
    owners: dict[str, Path] = {}
    for source in sources:
        if source.name in owners:
            raise InputError(
                f"{owners[source.name]} and {source.path}: both give results {out / source.name}; "
                "predict them separately"
            )
        owners[source.name] = source.path
        for exporter in exporters:
            result = Path(os.path.abspath(out / (source.name + exporter.ending)))
            if result in files:
                raise InputError(f"{result}: {source.path} would replace this image; choose another --out")


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
