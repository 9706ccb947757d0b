"""What publishers distribute, small and whole, and how one thing in it goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pffnet_d2.data.readers import kumar as kumar_reader
from tests.data.readers import layouts
from tests.data.writers import bbbc039_files
from tests.robustness.case import Case, nothing

Files = dict[str, bytes]
Change = Callable[[Files], Any]

IMAGE = np.full((8, 10, 3), 200, np.uint8)
LABELS = np.zeros((8, 10), np.int32)
LABELS[1:4, 1:4], LABELS[5:7, 6:9] = 1, 2
PAIR = (IMAGE, LABELS)
SQUARE = [(1.5, 1.5), (5.5, 1.5), (5.5, 5.5), (1.5, 5.5)]
COLOURED = layouts.png(np.dstack([LABELS * 40, LABELS * 90, LABELS]).astype(np.uint8))


def row(name: str, command: str, says: str, files: Callable[[], Files] | None = None, *changes: Change) -> Case:
    """A case whose ``source`` folder has the files, changed; what is said is written with " | " between its parts."""
    return Case(name, command, tuple(says.split(" | ")), source(files, *changes) if files else nothing)


def of(name: str, *more: str) -> str:
    """The command that prepares ``source``."""
    return " ".join(["prepare", name, "--source source --out root", *more])


def source(files: Callable[[], Files], *changes: Change) -> Callable[[Path], None]:
    """Writes the files, changed, into ``source``."""

    def write(folder: Path) -> None:
        content = files()
        for change in changes:
            change(content)
        layouts.write(folder / "source", content)

    return write


def find(files: Files, ending: str) -> str:
    return next(path for path in files if path.endswith(ending))


def without(ending: str) -> Change:
    return lambda files: files.pop(find(files, ending))


def cut(ending: str, length: int) -> Change:
    """Truncates the file; a negative length counts from its end."""
    return lambda files: files.update({(path := find(files, ending)): files[path][:length]})


def put(ending: str, content: bytes) -> Change:
    """Replaces the file that ends so."""
    return lambda files: files.update({find(files, ending): content})


def add(path: str, content: bytes) -> Change:
    return lambda files: files.update({path: content})


def xml(vertices: Iterable[tuple[Any, Any]]) -> bytes:
    body = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in vertices)
    return f"<Annotations><Annotation><Regions><Region>{body}</Region></Regions></Annotation></Annotations>".encode()


def kumar() -> Files:
    return layouts.kumar_files(dict.fromkeys(kumar_reader.LISTS["kumar"]["val"], PAIR))


def tnbc() -> Files:
    return layouts.tnbc_files(
        {f"{patient}_{i}": PAIR for patient, n in (("07", 3), ("08", 4)) for i in range(1, n + 1)}
    )


def bbbc039() -> Files:
    image = np.where(LABELS > 0, 2500, 150).astype(np.uint16)
    return bbbc039_files({"training": {"a": (image, LABELS), "b": (image, LABELS)}})


def dsb2018() -> Files:
    files: Files = {}
    for name in ("one", "two"):
        files[f"stage1_train/{name}/images/{name}.png"] = layouts.png(layouts.rgba(IMAGE))
        for i in (1, 2):
            mask = (i == LABELS).astype(np.uint8) * 255
            files[f"stage1_train/{name}/masks/{name}{i}.png"] = layouts.png(mask)
    return files


def dsb2018_test(
    rows: str = "one,12 3,8,10,Public\n", header: str = "ImageId,EncodedPixels,Height,Width,Usage"
) -> Files:
    image = layouts.png(layouts.rgba(IMAGE))
    return {
        "stage1_test/one/images/one.png": image,
        "stage1_solution.csv": f"{header}\n{rows}".encode(),
    }


def cvppp() -> Files:
    return layouts.cvppp_files({"A2/plant001": PAIR, "A2/plant002": PAIR})


def cpm15() -> Files:
    return layouts.challenge_files({f"image{i:02d}": PAIR for i in range(1, 16)}, "CPM15/")


def cpm17() -> Files:
    return layouts.repack_files({f"image_{i:02d}": PAIR for i in range(32)}, "train/")


def consep() -> Files:
    return layouts.repack_files({f"test_{i}": PAIR for i in range(1, 15)}, "CoNSeP/Test/")
