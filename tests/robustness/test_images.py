"""Image files that cannot be read, through every command that reads images."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pffnet_d2.cli.main import main
from tests.robustness.case import Case, by_name

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (48, 64)).astype(np.uint8)
DEEP = (GREY.astype(np.uint16) + 1) * 200
RGB = RNG.integers(0, 256, (48, 64, 3)).astype(np.uint8)
Writer = Callable[[Path], None]

DAMAGED = ("truncated, damaged or of another kind", "fetch it again")


def tif(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def pillow(image: np.ndarray[Any, Any] | Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def frames(form: str) -> bytes:
    return pillow(GREY, form, save_all=True, append_images=[Image.fromarray(255 - GREY)])


def tagged(data: bytes, **values: int) -> bytes:
    """A TIFF with other values in tags of its first page, little-endian."""
    changed = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for name, value in values.items():
            tag = file.pages.first.tags[name]
            size = 2 if tag.dtype == 3 else 4
            changed[tag.valueoffset : tag.valueoffset + size] = value.to_bytes(size, "little")
    return bytes(changed)


def overwritten(data: bytes, start: float, count: int = 40) -> bytes:
    """Data whose middle is lost: ones from a fraction of the length on."""
    at = int(len(data) * start)
    return data[:at] + b"\xff" * count + data[at + count :]


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def holding(name: str, data: bytes | Callable[[], bytes]) -> Writer:
    """Writes one file."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data() if callable(data) else data)

    return write


CMYK = Image.fromarray(RGB).convert("CMYK")
STACK = np.stack([DEEP] * 4)
NOT_FINITE = np.where(GREY[0, 0] == GREY, np.nan, GREY).astype(np.float32)
HUGE = tagged(tif(DEEP, metadata=None), ImageLength=2**31 - 1, ImageWidth=2**31 - 1)
MANY = tif(DEEP, metadata=None, description='{"shape": [78808000, 48, 64]}')  # 451 GiB
DEEP_PPM = b"P6 2 2 65535\n" + bytes(range(24))

# name of the case, file, content, flags of predict, what is said of the file
FILES: list[tuple[str, str, bytes | Callable[[], bytes], str, tuple[str, ...]]] = [
    ("empty file", "a.tif", b"", "", ("the file is empty", "fetch it again")),
    ("empty png", "a.png", b"", "", ("the file is empty", "fetch it again")),
    ("text as tif", "a.tif", b"no image", "", DAMAGED),
    ("html as png", "a.png", b"<html>404 Not Found</html>", "", DAMAGED),
    ("git lfs pointer", "a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "", DAMAGED),
    ("magic of tiff only", "a.tif", b"II*\0", "", DAMAGED),
    ("magic of bigtiff only", "a.tif", b"II+\0\x08\0\0\0", "", DAMAGED),
    ("magic of png only", "a.png", b"\x89PNG\r\n\x1a\n", "", DAMAGED),
    ("magic of jpeg only", "a.jpg", b"\xff\xd8\xff\xe0", "", DAMAGED),
    ("half a tiff", "a.tif", tif(DEEP)[:3000], "", DAMAGED),
    ("half a deflated tiff", "a.tif", tif(DEEP, compression="zlib", rowsperstrip=8)[:3000], "", DAMAGED),
    ("half a png", "a.png", pillow(GREY, "PNG")[:2000], "", DAMAGED),
    (
        "half a 16-bit colour png",
        "a.png",
        lambda: cv2.imencode(".png", np.dstack([DEEP] * 3))[1].tobytes()[:2000],
        "",
        DAMAGED,
    ),
    ("half a jpeg", "a.jpg", pillow(RGB, "JPEG")[:2000], "", DAMAGED),
    ("half a gif", "a.gif", pillow(GREY, "GIF")[:1500], "", DAMAGED),
    ("half a bmp", "a.bmp", pillow(RGB, "BMP")[:2000], "", DAMAGED),
    ("deflate broken", "a.tif", overwritten(tif(DEEP, compression="zlib"), 0.5), "", DAMAGED),
    ("png broken", "a.png", overwritten(pillow(GREY, "PNG"), 0.5), "", DAMAGED),
    ("lzw broken", "a.tif", lambda: overwritten(pillow(DEEP, "TIFF", compression="tiff_lzw"), 0.3), "", DAMAGED),
    ("directory lies outside", "a.tif", b"II*\0" + (2**31).to_bytes(4, "little") + bytes(99), "", DAMAGED),
    ("data lie outside", "a.tif", tagged(tif(DEEP, metadata=None), StripOffsets=2**31), "", DAMAGED),
    ("a side of 0", "a.tif", tagged(tif(DEEP, metadata=None), ImageWidth=0), "", ("fetch it again",)),
    ("unknown compression", "a.tif", tagged(tif(DEEP, metadata=None), Compression=4711), "", DAMAGED),
    ("tiff header of 8 EiB", "a.tif", HUGE, "", ("a.tif",)),
    ("stack header of 451 GiB", "a.tif", MANY, "--plane 0", ("a.tif",)),
    ("png header of 4 Gpx", "a.png", png_header(65535, 65535), "", ("more than 134,217,728 pixels", "cut it")),
    ("png header of 100 Mpx", "a.png", png_header(10_000, 10_000), "", DAMAGED),
    ("stack", "a.tif", tif(STACK, photometric="minisblack"), "", ("a stack of 4 planes", "--plane 0")),
    (
        "plane beyond the stack",
        "a.tif",
        tif(STACK, photometric="minisblack"),
        "--plane 9",
        ("no plane", "4", "from 0 to 3"),
    ),
    ("plane of no stack", "a.tif", tif(DEEP), "--plane 3", ("no plane 3", "leave --plane out")),
    ("axis of no stack", "a.png", pillow(GREY, "PNG"), "--plane Z=3", ("no plane Z=3", "leave Z out")),
    ("gif of two frames", "a.gif", frames("GIF"), "", ("a stack of 2 planes", "--plane 0")),
    (
        "two channels",
        "a.tif",
        tif(STACK[:2], imagej=True, metadata={"axes": "CYX"}),
        "",
        ("2 channels", "--channels 0)"),
    ),
    (
        "three channels",
        "a.tif",
        tif(STACK[:3], imagej=True, metadata={"axes": "CYX"}),
        "",
        ("3 channels", "--channels 0,1,2"),
    ),
    ("no such channel", "a.png", pillow(RGB, "PNG"), "--channels 3", ("no channel 3", "from 0 to 2")),
    ("cmyk tiff", "a.tif", pillow(CMYK, "TIFF"), "", ("its colours are CMYK", "save it as RGB")),
    ("ycbcr tiff", "a.tif", pillow(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), "", ("YCbCr", "save it as RGB")),
    ("lab tiff", "a.tif", pillow(Image.fromarray(RGB).convert("LAB"), "TIFF"), "", ("CIELAB", "save it as RGB")),
    ("deep ppm", "a.ppm", DEEP_PPM, "", ("more than 8 bits per channel", "PNG or TIFF")),
    ("complex values", "a.tif", tif(GREY.astype(np.complex64)), "", ("complex64", "floating values")),
    ("nan", "a.tif", tif(NOT_FINITE), "", ("NaN or infinite", "replace them")),
    ("two images", "a.tif", lambda: two_images(), "", ("contains 2 images", "--scene 0")),
]


def two_images() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(DEEP)
        writer.write(GREY.T)
    return buffer.getvalue()


MODEL = "--config {run}/config.yaml --weights {run}/model_final.pth"
PREDICT = [
    Case(
        f"predict: {name}",
        f"predict {file} {MODEL} --stop-on-error {flags}",
        (file, *says),
        holding(file, data),
        leaves=("results*",),
    )
    for name, file, data, flags, says in FILES
]
TILED = [
    Case(
        f"tiles: {name}",
        f"predict {file} {MODEL} --tile 64 --stop-on-error {flags}",
        (file, *(says if "data lie" not in name else ())),
        holding(file, data),
        leaves=("results*",),
    )
    for name, file, data, flags, says in FILES
    if "px" not in name
]

# The flags themselves, before any file is read.
FLAGS = [
    Case(f"flag: {flags}", f"predict a.png {MODEL} {flags}", says, holding("a.png", pillow(GREY, "PNG")))
    for flags, says in [
        ("--plane ²", ("--plane ²", "Z=3,T=0")),
        ("--plane ٣", ("--plane ٣", "Z=3,T=0")),
        ("--plane Z=²", ("--plane Z=²", "Z=3,T=0")),
        ("--plane Z=1,Z=2", ("--plane Z=1,Z=2", "each once")),
        ("--plane Z", ("--plane Z", "Z=3,T=0")),
        ("--plane=-1", ("--plane -1", "from 0")),
        ("--channels ²", ("--channels ²", "numbers from 0")),
        ("--channels 0,", ("--channels 0,", "numbers from 0")),
        ("--channels 0,1", ("--channels 0,1", "one (grey) or three")),
        ("--tile 64 --overlap ²", ("--overlap ²", "pixels, or auto")),
        ("--tile 64 --overlap 1_0", ("--overlap 1_0", "pixels, or auto")),
        ("--normalisation percentile:²,99", ("percentile:²,99", "percentile:0.1,99.9,512")),
        ("--normalisation percentile:1,99,inf", ("percentile:1,99,inf", "percentile:0.1,99.9,512")),
        ("--normalisation percentile:nan,99", ("percentile:nan,99", "percentile:0.1,99.9,512")),
    ]
]

TRUTH = np.zeros((48, 64), np.uint8)
TRUTH[8:20, 8:20], TRUTH[30:40, 30:50] = 1, 2


def with_truth(file: str, data: bytes | Callable[[], bytes]) -> Writer:
    """The image with a label image, as ``prepare own`` takes them."""

    def write(folder: Path) -> None:
        holding(f"mine/images/{file}", data)(folder)
        holding("mine/images/b.png", pillow(GREY, "PNG"))(folder)
        for name in "ab":
            holding(f"mine/labels/{name}.png", pillow(TRUTH, "PNG"))(folder)

    return write


# What prediction tells the user to choose by a flag is said otherwise where there is none.
PREPARED = {
    "stack": ("a stack of 4 planes", "save one plane"),
    "gif of two frames": ("a stack of 2 planes", "save one plane"),
    "two channels": ("a stack of 2 planes", "save one plane"),
    "three channels": ("a stack of 3 planes", "save one plane"),
    "two images": ("contains 2 images", "save the one you want by itself"),
    "nan": ("not finite", "replace them"),
    "empty file": DAMAGED,
    "empty png": DAMAGED,
    "a side of 0": ("fetch it again",),
}
PREPARE = [
    Case(
        f"prepare own: {name}",
        "prepare own --source mine --name mine --out root",
        (file if name != "nan" else "a: ", *PREPARED.get(name, says)),
        with_truth(file, data),
    )
    for name, file, data, flags, says in FILES
    if not flags and Path(file).suffix not in (".gif", ".ppm")
]


@by_name([*PREDICT, *TILED, *FLAGS, *PREPARE])
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@pytest.mark.parametrize("data", [b"", b"no image", pillow(GREY, "PNG")[:900], png_header(65535, 65535)])
def test_check_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], data: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with_truth("a.png", pillow(GREY, "PNG"))(tmp_path)
    assert main(["prepare", "own", "--source", "mine", "--name", "mine", "--out", "root"]) == 0
    image = next(tmp_path.glob("root/mine/*/images/a.png"))
    image.write_bytes(data)
    capfd.readouterr()
    assert main(["check", "root"]) == 2
    said = capfd.readouterr()
    assert [line for line in said.out.splitlines() if line.startswith("error: ") and "images/a.png: " in line]
    assert said.err == ""
