"""The files of a publisher, in folders or in zips, which are read without being extracted."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.read import decode_image, read_bytes

MAX_MEMBER_BYTES = 2 << 30  # of one unpacked file of a zip; images of read.MAX_PIXELS pixels are smaller

DAMAGED_ZIP = (OSError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, order=True)
class SourceFile:
    """A file, or with ``member`` a file inside the zip ``path``. Small and picklable."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name if self.member else self.path.name

    @property
    def stem(self) -> str:
        """The name up to its last dot."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending in lower case, with its dot."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders of the file, then its name. An archive counts as a folder."""
        return (*self.path.parts, *PurePosixPath(self.member).parts) if self.member else self.path.parts

    def read(self) -> bytes:
        """The content. Raises InputError naming the file when it is missing or damaged."""
        if not self.member:
            return read_bytes(self.path)
        try:
            return _archive(self.path).read(self.member)
        except DAMAGED_ZIP as error:
            raise InputError(
                f"{self}: cannot be read from the zip; it is truncated or damaged, fetch it again"
            ) from error

    def image(self) -> npt.NDArray[Any]:
        """The pixels, as ``read.decode_image`` returns them. Raises InputError naming the file."""
        return decode_image(self.read(), str(self))

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


def list_files(root: Path) -> list[SourceFile]:
    """All files under ``root`` at any depth, sorted. A zip stands for the files in it, unless the folder that it
    extracts to (its name without .zip) is beside it.

    Hidden files and those that macOS adds (__MACOSX, ._name, .DS_Store) are left out. Links to folders are followed.

    Raises:
        InputError: ``root`` is not a folder or holds no file; a zip is damaged or has a member that points outside; a
            folder cannot be read; a link is broken.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the downloaded files")
    files: list[SourceFile] = []
    for path in _walk(root):
        if path.suffix.lower() != ".zip":
            files.append(SourceFile(path))
        elif not path.with_suffix("").is_dir():
            files.extend(_members(path) or [SourceFile(path)])  # an empty zip stands for itself
    if not files:
        raise InputError(f"{root}: holds no files; give the folder that holds the downloaded files")
    return files


def find_part(root: Path, part: str) -> list[SourceFile]:
    """All files of one part of a download, such as ``images``: those in the folder images/ or else in images.zip, under
    ``root`` or one folder deeper.

    Doubled folders (images/images/) are followed; files that macOS adds (__MACOSX, ._name, .DS_Store) are left out.

    Raises:
        InputError: ``root`` is not a folder; there is neither folder nor zip; the zip is damaged.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the downloaded files")
    bases = [root, *sorted(p for p in root.iterdir() if p.is_dir() and not _hidden(p.name))]
    for base in bases:
        folder = base / part
        if folder.is_dir():
            files = [SourceFile(path) for path in _walk(folder)]
            if files:
                return files
    for base in bases:
        archive = base / f"{part}.zip"
        if archive.is_file():
            return _members(archive)
    raise InputError(
        f"{root}: neither a folder {part}/ with files nor {part}.zip is there; download it into that folder"
    )


def _walk(root: Path) -> list[Path]:
    """The files under ``root`` that are not hidden, at any depth, sorted.

    Links to folders are followed, except to a folder that contains the link, which would not end, and to a folder
    under ``root`` that is listed at its own place.

    Raises:
        InputError: a folder cannot be read, or a link is broken.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error

    reached: dict[Path, tuple[str, bool]] = {Path(root): (os.path.realpath(root), False)}  # real path; through a link
    files: dict[Path, list[Path]] = {}
    for top, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(top)
        real, linked = reached[here]
        above = {reached[folder][0] for folder in (here, *here.parents) if folder in reached}
        kept = []
        for name in sorted(folder for folder in folders if not _hidden(folder)):
            link = (here / name).is_symlink()
            target = os.path.realpath(here / name) if link else os.path.join(real, name)
            if target not in above:
                reached[here / name] = target, linked or link
                kept.append(name)
        folders[:] = kept
        files[here] = [here / name for name in names if not _hidden(name)]
    own_places = {real for real, linked in reached.values() if not linked}
    found = [
        path
        for folder, paths in files.items()
        if not reached[folder][1] or reached[folder][0] not in own_places
        for path in paths
    ]
    for path in found:
        if path.is_symlink() and not path.exists():
            raise InputError(
                f"{path}: is a link to {os.readlink(path)}, which is not there; fetch it or remove the link"
            )
    return sorted(path for path in found if path.is_file())


def shipped(name: str) -> Any:
    """The content of pffnet_d2/data/splits/<name>.json, a published list that is part of the package."""
    return json.loads((resources.files("pffnet_d2.data") / "splits" / f"{name}.json").read_text(encoding="utf-8"))


def _members(archive: Path) -> list[SourceFile]:
    try:
        infos = sorted(
            (info for info in _archive(archive).infolist() if not info.filename.endswith("/")), key=lambda i: i.filename
        )
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: not a zip file, or truncated; fetch it again") from error
    for info in infos:  # nothing is extracted, but the rest of such an archive is not to be trusted either
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if not name.parts or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise InputError(
                f"{archive}: its member {info.filename!r} points outside the archive; do not use this file"
            )
        if info.file_size > MAX_MEMBER_BYTES:
            raise InputError(
                f"{archive}: its member {info.filename!r} unpacks to {info.file_size >> 20} MiB, more than the "
                f"{MAX_MEMBER_BYTES >> 20} MiB allowed; do not use this file"
            )
    return [
        SourceFile(archive, info.filename)
        for info in infos
        if not any(map(_hidden, PurePosixPath(info.filename).parts))
    ]


def _archive(path: Path) -> zipfile.ZipFile:
    status = path.stat()
    return _opened(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _opened(path: Path, _modified: int, _size: int) -> zipfile.ZipFile:
    """The archive, kept open: reading a directory of 17,000 members takes longer than reading one of them. Many
    threads may read members at once."""
    return zipfile.ZipFile(path)


def _hidden(name: str) -> bool:
    return name == "__MACOSX" or name.startswith(".")
