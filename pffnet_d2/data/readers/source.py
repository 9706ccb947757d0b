"""Files of a publisher where they lie: in a folder or in a zip, which is read without being extracted."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pffnet_d2.data.images import read_bytes
from pffnet_d2.errors import InputError


@dataclass(frozen=True)
class SourceFile:
    """A file, or with ``member`` a file inside the zip ``path``. Small and picklable; nothing is open."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name if self.member else self.path.name

    def read(self) -> bytes:
        """The content. Raises InputError naming the file when it is missing or damaged."""
        if not self.member:
            return read_bytes(self.path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        except (
            OSError,
            KeyError,
            EOFError,
            RuntimeError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise InputError(
                f"{self}: cannot be read from the zip; it is truncated or damaged, fetch it again"
            ) from error

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


def find_part(root: Path, part: str) -> list[SourceFile]:
    """All files of one part of a download, say ``images``: of the folder images/ or else of images.zip, under ``root``
    or one folder deeper.

    Doubled folders (images/images/) are followed; what macOS adds (__MACOSX, ._name, .DS_Store) is left out.

    Raises:
        InputError: ``root`` is no folder; neither folder nor zip is there; the zip is damaged.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the downloaded files")
    bases = [root, *sorted(p for p in root.iterdir() if p.is_dir() and not _hidden(p.name))]
    for base in bases:
        folder = base / part
        if folder.is_dir():
            found = (p for p in sorted(folder.rglob("*")) if p.is_file())
            files = [SourceFile(p) for p in found if not any(map(_hidden, p.relative_to(folder).parts))]
            if files:
                return files
    for base in bases:
        archive = base / f"{part}.zip"
        if archive.is_file():
            return _members(archive)
    raise InputError(
        f"{root}: neither a folder {part}/ with files nor {part}.zip is there; download it into that folder"
    )


def _members(archive: Path) -> list[SourceFile]:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = sorted(info.filename for info in opened.infolist() if not info.is_dir())
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: not a zip file, or truncated; fetch it again") from error
    return [SourceFile(archive, name) for name in names if not any(map(_hidden, PurePosixPath(name).parts))]


def _hidden(name: str) -> bool:
    return name == "__MACOSX" or name.startswith(".")
