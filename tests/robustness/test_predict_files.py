"""``pffnet predict``: files that cannot be read or written, whole or in tiles, and two runs at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.atomic_write import locked
from tests.robustness.case import Case, by_name, run_case

WHOLE = "predict --model {run} --out out --stop-on-error "
TILED = WHOLE + "--tile 64 --overlap 32 "
LABELS = "--format label-tiff "


def grey(height: int = 64, width: int = 96) -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 900, (height, width)).astype(np.uint16)


# --- Bad images -----------------------------------------------------------------------------------------------------


def file(name: str, content: bytes) -> Callable[[Path], None]:
    """A file of these bytes."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def tif(name: str = "a.tif", pixels: NDArray[np.generic] | None = None, **tags: object) -> Callable[[Path], None]:
    """A TIFF; a good one unless told otherwise."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, grey() if pixels is None else pixels, **tags)

    return write


def cut(write: Callable[[Path], None], name: str, share: float) -> Callable[[Path], None]:
    """The first part of a file that another function writes."""

    def cut_off(folder: Path) -> None:
        write(folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return cut_off


def picture(name: str) -> Callable[[Path], None]:
    """A good picture, of the format that the name's ending says."""

    def write(folder: Path) -> None:
        Image.fromarray((grey() // 4).astype(np.uint8)).save(folder / name)

    return write


def both(*writes: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for one in writes:
            one(folder)

    return write


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def folder_at(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).mkdir(parents=True)


def with_value(value: float) -> NDArray[np.float32]:
    pixels = grey().astype(np.float32)
    pixels[3, 5] = value
    return pixels


FIVE = np.zeros((2, 3, 2, 8, 9), np.uint16)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"

# What is wrong, the file's name, what the line says beside it, who writes it. Each is predicted whole and in tiles.
IMAGES: list[tuple[str, str, str, Callable[[Path], None]]] = [
    ("an empty file", "a.tif", "the file is empty", file("a.tif", b"")),
    ("an empty PNG", "a.png", "the file is empty", file("a.png", b"")),
    ("text called PNG", "a.png", "cannot be read as an image", file("a.png", b"no image")),
    ("a web page called TIFF", "a.tif", "cannot be read as an image", file("a.tif", b"<!DOCTYPE html><html></html>")),
    ("a zip called TIFF", "a.tif", "cannot be read as an image", file("a.tif", b"PK\x03\x04" + bytes(60))),
    ("a Git LFS pointer", "a.tif", "cannot be read as an image", file("a.tif", POINTER)),
    ("a TIFF that is a header", "a.tif", "cannot be read as an image", file("a.tif", b"II*\0\x08\0\0\0")),
    ("a TIFF cut in half", "a.tif", "truncated", cut(tif(compression="zlib"), "a.tif", 0.5)),
    ("a plain TIFF cut off", "a.tif", "truncated", cut(tif(), "a.tif", 0.9)),
    ("a PNG cut in half", "a.png", "truncated", cut(picture("a.png"), "a.png", 0.5)),
    ("a JPEG cut in half", "a.jpg", "truncated", cut(picture("a.jpg"), "a.jpg", 0.5)),
    ("a BMP cut in half", "a.bmp", "truncated", cut(picture("a.bmp"), "a.bmp", 0.5)),
    ("a value is NaN", "a.tif", "1 values are NaN or infinite", tif(pixels=with_value(np.nan))),
    ("a value is infinite", "a.tif", "1 values are NaN or infinite", tif(pixels=with_value(np.inf))),
    ("complex values", "a.tif", "complex64 values are not supported", tif(pixels=grey().astype(np.complex64))),
    (
        "a stack",
        "a.tif",
        "a stack of 6 planes (T 2, Z 3); choose one, as in --plane T=0,Z=0",
        tif(pixels=FIVE, metadata={"axes": "TZCYX"}, photometric="minisblack", imagej=True),
    ),
    (
        "four channels",
        "a.tif",
        "4 channels; choose one (--channels 0)",
        tif(pixels=grey()[None].repeat(4, 0), metadata={"axes": "CYX"}, ome=True),
    ),
    ("a link to nothing", "a.tif", "cannot be read (No such file or directory)", link("a.tif", "gone.tif")),
    ("a link to itself", "a.tif", "cannot be read (Too many levels of symbolic links)", link("a.tif", "a.tif")),
]

CASES = [
    *(
        Case(f"{what}, {how}", command + LABELS + name, (f"{name}: ", says), inputs)
        for what, name, says, inputs in IMAGES
        for how, command in (("whole", WHOLE), ("in tiles", TILED))
    ),
    Case("no such file", WHOLE + "none.tif", ("none.tif: no such file", "check the path")),
    Case("a folder without images", WHOLE + "folder", ("folder: no images in this folder",), file("folder/a.txt", b"")),
    Case("a pattern without files", WHOLE + "'*.czi'", ("*.czi: no file matches", "check the pattern")),
    Case("an empty name", WHOLE + "''", (": no images in this folder",)),
    Case(
        "two images of one name",
        WHOLE + "one two",
        ("one/a.tif and two/a.tif: both give results out/a", "predict them separately"),
        both(tif("one/a.tif"), tif("two/a.tif")),
    ),
    Case(
        "a result in the place of an image",
        "predict --model {run} --out . a.tif a_labels.tif",
        ("a_labels.tif: a.tif would replace this image; choose another --out",),
        both(tif(), tif("a_labels.tif")),
    ),
    Case(
        "pixels that are not square",
        WHOLE + "--format csv a.tif",
        ("a.tif: pixels of 1 x 0.5 micrometres are not square", "--pixel-size 0"),
        tif(resolution=(20000, 10000), resolutionunit=3),
    ),
    Case(
        "pixels that are not square, in tiles",
        TILED + "--format csv a.tif",
        ("a.tif: pixels of 1 x 0.5 micrometres are not square", "--pixel-size 0"),
        tif(resolution=(20000, 10000), resolutionunit=3),
    ),
    Case(
        "smaller than an object",
        WHOLE + "--diameter 70 a.tif",
        ("a.tif: no object of diameter 70 fits into 64 x 30 pixels",),
        tif(pixels=grey(64, 30)),
    ),
]

# --- Where nothing can be written -----------------------------------------------------------------------------------

NAME = "n" * 247  # with its ending a file name as long as one may be; with those of results it is too long

CASES += [
    *(
        Case(f"{what}, {how}", command + LABELS + "a.tif", says, both(tif(), inputs))
        for what, says, inputs in (
            ("--out is a file", ("out: cannot be written to", "choose another --out"), file("out", b"")),
            ("--out is a link to nothing", ("out: cannot be written to",), link("out", "gone/gone")),
            (
                "a folder in the place of a result",
                ("cannot be written", "Is a directory"),
                folder_at("out/a_labels.tif"),
            ),
            ("a folder in the place of the lock", ("cannot be written", "Is a directory"), folder_at("out/.a.lock")),
        )
        for how, command in (("whole", WHOLE), ("in tiles", TILED))
    ),
    Case(
        "--out below a file",
        "predict --model {run} --out notes.txt/out a.tif",
        ("notes.txt/out: cannot be written to", "choose another --out"),
        both(tif(), file("notes.txt", b"")),
    ),
    *(
        Case(
            f"a name that is too long, {how}",
            command + f"{NAME}.tif",
            ("too long",),
            tif(f"{NAME}.tif"),
        )
        for how, command in (("whole", WHOLE), ("in tiles", TILED))
    ),
    Case(
        "a folder of results is a file",
        "predict --model {run} --out out --stop-on-error 'plates/*/a.tif'",
        ("plates/b/a.tif: results cannot be written to out", "File exists"),
        both(tif("plates/b/a.tif"), file("out/b", b"")),
    ),
]

# --- Tiles ----------------------------------------------------------------------------------------------------------

CASES += [
    *(
        Case(f"tiles: {name}", f"predict a.tif --model {{run}} --out out {arguments}", says, tif())
        for name, arguments, says in (
            ("too small", "--tile 16", ("tiles of 16 pixels", "steps of 32 pixels", "such as 256")),
            ("no multiple", "--tile 100", ("tiles of 100 pixels", "such as 256")),
            ("none", "--tile 0", ("tiles of 0 pixels",)),
            ("negative", "--tile -64", ("tiles of -64 pixels",)),
            ("overlap as large", "--tile 64 --overlap 64", ("tiles of 64 pixels cannot overlap by 64",)),
            ("no overlap", "--tile 64 --overlap 0", ("cannot overlap by 0", "above 0")),
            ("overlap in words", "--tile 64 --overlap much", ("--overlap much: give pixels, or auto",)),
            ("overlap alone", "--overlap 32", ("--overlap is that of tiles; give --tile too",)),
            (
                "ROIs",
                "--tile 64 --format roi",
                ("format roi cannot be written in tiles", "label-tiff,overlay,geojson,csv"),
            ),
            ("COCO", "--tile 64 --format csv,coco", ("format coco cannot be written in tiles",)),
            ("resized", "--tile 64 --opts INPUT.MIN_SIZE_TEST 300", ("would resize every tile", "set it to 0")),
            ("no batch", "--tile 64 --batch 0", ("batches of 0", "must be at least 1")),
        )
    ),
    Case(
        "tiles: a folder of something else",
        TILED + "a.tif",
        ("a.tiles: is not a folder of tiles; remove it or choose another --out",),
        both(tif(), file("out/a.tiles/mine.txt", b"")),
    ),
    *(
        Case(
            f"tiles: a manifest that is {what}",
            TILED + "a.tif",
            ("a.tiles: its manifest.json cannot be read; remove the folder",),
            both(tif(), file("out/a.tiles/manifest.json", content)),
        )
        for what, content in (
            ("empty", b""),
            ("cut off", b'{"asked": {"im'),
            ("a list", b"[]"),
            ("of another program", b'{"manifest_version": 3}'),
            ("not text", b"\xff\xfe\x00"),
        )
    ),
    Case(
        "tiles: of an earlier release",
        TILED + "a.tif",
        ("a.tiles: contains tiles of another run (", "image", "remove it or choose another --out"),
        both(tif(), file("out/a.tiles/manifest.json", json.dumps({"asked": {"tile": 64}, "decided": {}}).encode())),
    ),
]


@by_name(CASES)
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


# --- Names, and two runs at once -------------------------------------------------------------------------------------

LATIN = os.fsdecode(b"caf\xe9")  # as archives of other systems unpack


@pytest.fixture
def predict(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, leave_no_trace: None
) -> Callable[..., int]:
    from pffnet_d2.cli.main import main

    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["predict", "--model", str(tiny_run), "--out", "out", *map(str, arguments)])


@pytest.mark.parametrize("tiles", [[], ["--tile", "64", "--overlap", "32"]], ids=["whole", "in tiles"])
def test_a_name_that_is_no_text(
    predict: Callable[..., int], tmp_path: Path, tiles: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither this file nor those after it are lost; the name of a bad one is said."""
    formats = "label-tiff,geojson,csv,overlay" + ("" if tiles else ",coco,roi")
    endings = ["_labels.tif", "_overlay.png", ".geojson", ".csv"] + ([] if tiles else [".json", "_rois.zip"])
    for name in (LATIN, "other"):
        tif(f"{name}.tif")(tmp_path)
    assert predict(f"{LATIN}.tif", "other.tif", "--format", formats, *tiles) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        name + ending for name in (LATIN, "other") for ending in endings
    }
    features = json.loads((tmp_path / "out" / f"{LATIN}.geojson").read_text())["features"]
    assert len({feature["id"] for feature in features}) == len(features) > 0
    file(f"{LATIN}.tif", b"")(tmp_path)
    capfd.readouterr()
    assert predict(f"{LATIN}.tif", *tiles) == 2
    assert ".tif: the file is empty" in capfd.readouterr().err


@pytest.mark.parametrize("tiles", ["", "--tile 64 --overlap 32"], ids=["whole", "in tiles"])
def test_another_run_makes_the_same(
    tmp_path: Path,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    leave_no_trace: None,
    tiles: str,
) -> None:
    """It is named, in the place of its image too; a run beside it in the same folder is no matter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pffnet_d2.inference.worker._PATIENCE", 0.1)
    case = Case(
        "",
        f"predict --model {{run}} --out out --stop-on-error {LABELS} {tiles} a.tif",
        ("a.tif: " if not tiles else "out/a: ", f"process {os.getpid()} on ", "is writing it; wait until"),
        tif(),
        leaves=("out/.a.lock",),
    )
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / "a"):
        run_case(case, tmp_path, tiny_run, capfd)
    with locked(tmp_path / "out" / "b"):
        from pffnet_d2.cli.main import main

        assert main([str(tiny_run) if word == "{run}" else word for word in case.command.split()]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_labels.tif"]


def test_what_a_killed_run_left_is_removed(predict: Callable[..., int], tmp_path: Path) -> None:
    for write in (
        tif(),
        file("out/.a.lock", b"process 1 on another, since 2001-01-01 00:00:00,"),
        file("out/.a.partial/a_labels.tif", b"half"),
        file("out/.a.partial/.a.csv.partial", b"half"),
    ):
        write(tmp_path)
    assert predict("a.tif", "--format", "label-tiff") == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_labels.tif"]


def test_the_same_image_gives_the_same_bytes(
    predict: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every format, whole and in tiles, a year apart."""
    import time

    tif(resolution=(20000, 20000), resolutionunit=3)(tmp_path)
    every = "label-tiff,overlay,geojson,roi,csv,coco"
    for formats, tiles in ((every, []), ("label-tiff,overlay,geojson,csv", ["--tile", 64, "--overlap", 32])):
        written = []
        for seconds in (1e9, 1e9 + 400 * 86400):
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda seconds=seconds: seconds)
                patch.setattr(time, "localtime", partial(time.gmtime, seconds))
                assert predict("a.tif", "--format", formats, *tiles) == 0
            written.append({p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()})
        shutil.rmtree(tmp_path / "out")
        assert len(written[0]) == len(formats.split(","))
        for name, content in written[0].items():
            assert written[1][name] == content, name
