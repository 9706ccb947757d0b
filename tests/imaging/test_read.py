from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.imaging import read as images
from pffnet_d2.imaging.normalisation import (
    AUTO,
    PERCENTILE_16_BIT,
    to_rgb8,
)
from pffnet_d2.imaging.read import decode_image, decode_label_image, read_image, read_label_image


def encode(array: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "TIFF16":
        tifffile.imwrite(buffer, array)
    else:
        Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def test_depth_survives_decoding() -> None:
    rng = np.random.default_rng(2)
    deep = rng.integers(0, 65536, (6, 9)).astype(np.uint16)
    rgb = rng.integers(0, 256, (6, 9, 3)).astype(np.uint8)
    for array, data in (
        (deep, encode(deep, "TIFF16")),
        (deep, encode(deep, "PNG")),
        (rgb, encode(rgb, "PNG")),
        (rgb, encode(rgb, "TIFF", compression="tiff_lzw")),
    ):
        decoded = decode_image(data, "x")
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(decoded, array)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), "x").tolist() == [[[10, 20, 30], [40, 50, 60]]]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def rows_of_png(samples: np.ndarray, depth: int) -> bytes:
    """(H, W, C) as the rows of a PNG: a filter byte, here none, and samples in bits, high ones first."""
    if 0 in samples.shape:
        return b""
    bits = (samples.reshape(len(samples), -1, 1).astype(np.uint32) >> np.arange(depth - 1, -1, -1)) & 1
    packed = np.packbits(bits.reshape(len(samples), -1).astype(np.uint8), axis=1)
    return np.insert(packed, 0, 0, axis=1).tobytes()


def png(samples: np.ndarray, colour_type: int, depth: int, *, interlaced: bool = False, chunks: bytes = b"") -> bytes:
    """A PNG of (H, W, C) samples after the specification, with nothing of any library that reads it."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in passes] if interlaced else [samples]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, interlaced)
    content = zlib.compress(b"".join(rows_of_png(part, depth) for part in parts))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", content) + chunk(b"IEND", b"")


GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


@given(
    st.sampled_from(
        [(GREY, depth) for depth in (1, 2, 4, 8, 16)]
        + [(PALETTE, depth) for depth in (1, 2, 4, 8)]
        + [(kind, depth) for kind in (RGB, GREY_ALPHA, RGBA) for depth in (8, 16)]
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 99),
)
def test_every_depth_and_colour_of_png(
    form: tuple[int, int], interlaced: bool, gamma: bool, transparent: bool, size: tuple[int, int], seed: int
) -> None:
    colour_type, depth = form
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 2**depth, (*size, {GREY: 1, PALETTE: 1, GREY_ALPHA: 2, RGB: 3, RGBA: 4}[colour_type]))
    palette = rng.integers(0, 256, (2**depth if colour_type == PALETTE else 1, 3)).astype(np.uint8)
    chunks = chunk(b"gAMA", struct.pack(">I", 100_000)) if gamma else b""
    if colour_type == PALETTE:
        chunks += chunk(b"PLTE", palette.tobytes()) + (chunk(b"tRNS", b"\x07\x80") if transparent else b"")
    elif transparent and colour_type in (GREY, RGB):
        chunks += chunk(b"tRNS", samples[0, 0].astype(">u2").tobytes())
    data = png(samples, colour_type, depth, interlaced=interlaced, chunks=chunks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode_image(data, "x")
        stored = decode_image(data, "x", palette=False)
    assert found.dtype == (np.uint16 if depth == 16 else np.uint8)
    if colour_type == PALETTE:
        np.testing.assert_array_equal(found, palette[samples[..., 0]])
        np.testing.assert_array_equal(stored, samples[..., 0])
        return
    expected = samples * (255 // (2**depth - 1)) if depth < 8 else samples
    np.testing.assert_array_equal(found.reshape(*size, -1)[..., : samples.shape[2]], expected)
    np.testing.assert_array_equal(stored, found)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colours_of_opencv(ending: str, channels: int) -> None:
    deep = np.random.default_rng(5).integers(0, 65536, (11, 13, channels)).astype(np.uint16)
    _, data = cv2.imencode(f".{ending}", deep)
    found = decode_image(data.tobytes(), "x")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[..., :3], deep[..., 2::-1])


def test_dim_16_bit_colours_are_stretched() -> None:
    """A field of a 12-bit camera, of which the high byte alone holds 16 grey values."""
    deep = np.random.default_rng(6).integers(0, 4096, (64, 64, 3))
    seen = to_rgb8(decode_image(png(deep, RGB, 16), "x"), AUTO)
    np.testing.assert_array_equal(seen, to_rgb8(deep.astype(np.uint16), PERCENTILE_16_BIT))
    assert len(np.unique(seen)) > 200


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("PPM", b"P6\n# made by hand\n2 1\n65535\n" + bytes(range(12))),
        ("SGI", struct.pack(">hBBHHHHII", 474, 0, 2, 3, 2, 1, 3, 0, 65535).ljust(512, b"\0") + bytes(range(12))),
    ],
)
def test_depths_that_would_be_cut_are_refused(form: str, data: bytes) -> None:
    with pytest.raises(InputError, match=f"x: has more than 8 bits per channel, which cannot be read from {form} "):
        decode_image(data, "x")


def test_deep_jpeg_2000_is_refused() -> None:
    shallow = np.random.default_rng(7).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    data = bytearray(encode(shallow, "JPEG2000"))
    np.testing.assert_array_equal(decode_image(bytes(data), "x"), shallow)
    start = data.find(b"\xff\x4f\xff\x51") + 42
    for channel in range(3):
        assert data[start + 3 * channel] == 7
        data[start + 3 * channel] = 15
    with pytest.raises(InputError, match=r"x: (has more than 8 bits per channel|cannot be read as an image)"):
        decode_image(bytes(data), "x")


def test_other_colours_become_rgb() -> None:
    """CMYK was taken for RGBA."""
    image = Image.fromarray(np.full((8, 8, 3), (200, 40, 90), np.uint8)).convert("CMYK")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=100)
    found = decode_image(buffer.getvalue(), "x")
    assert found.shape == (8, 8, 3)
    assert np.abs(found[4, 4].astype(int) - (200, 40, 90)).max() < 12


def test_frames_are_refused() -> None:
    frames = [Image.fromarray(np.full((6, 9), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="x: contains a stack of 2 planes; save one plane"):
        decode_image(buffer.getvalue(), "x")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["PNG", "TIFF16", "TIFF", "JPEG"])
def test_truncated_file_is_named(tmp_path: Path, kind: str, part: float) -> None:
    image = np.random.default_rng(3).integers(0, 256, (50, 60)).astype(np.uint16 if kind == "TIFF16" else np.uint8)
    data = encode(image, kind)
    path = tmp_path / "broken file"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=r"broken file: .*truncated"):
        read_image(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png: cannot be read"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def test_planar_tiff_is_turned() -> None:
    image = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    planar = decode_image(tiff(image, photometric="rgb", planarconfig="separate"), "x")
    np.testing.assert_array_equal(planar, np.moveaxis(image, 0, -1))
    with pytest.raises(InputError, match="x: contains a stack of 3 planes; save one plane"):
        decode_image(tiff(image.astype(np.uint16), photometric="minisblack"), "x")


@pytest.mark.parametrize("form", ["png", "tiff", "bmp"])
def test_too_many_pixels_are_refused_unread(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((30, 40), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    assert decode_image(buffer.getvalue(), "x").shape == (30, 40)
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    with pytest.raises(InputError, match="x: 30 x 40 pixels are more than "):
        decode_image(buffer.getvalue(), "x")


def test_palette_as_meant() -> None:
    image = Image.fromarray(np.array([[0, 2], [1, 2]], np.uint8), "P")
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), "x")[0, 1].tolist() == [40, 50, 60]
    assert decode_image(buffer.getvalue(), "x", palette=False).tolist() == [[0, 2], [1, 2]]


# --- Label images ----------------------------------------------------------------------------------------------------

LABELS = np.array([[1, 1, 0, 9], [1, 1, 0, 9], [0, 0, 0, 0]])


def test_label_images_of_every_type(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        Image.fromarray(LABELS.astype(dtype)).save(tmp_path / "x.png")
        assert read_label_image(tmp_path / "x.png").tolist() == LABELS.tolist()
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.uint32):
        tifffile.imwrite(tmp_path / "x.tif", LABELS.astype(dtype))
        read = read_label_image(tmp_path / "x.tif")
        assert read.dtype == dtype
        assert read.tolist() == LABELS.tolist()
    palette = Image.fromarray(LABELS.astype(np.uint8), mode="P")
    palette.putpalette([200 - i for i in range(30)])
    palette.save(tmp_path / "palette.png")  # the number of the colour is the label
    assert read_label_image(tmp_path / "palette.png").tolist() == LABELS.tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_labels_of_equal_channels(kind: str) -> None:
    grey = LABELS.astype(np.uint8)
    opaque, clear = np.full_like(grey, 255), np.full_like(grey, 100)
    for channels in ([grey] * 3, [grey] * 3 + [opaque], [grey, opaque]):
        found = decode_label_image(encode(np.dstack(channels), kind), "x")
        assert found.dtype == np.uint8
        assert found.tolist() == LABELS.tolist()
    with pytest.raises(InputError, match=r"x: shows labels in colours .*never converted to RGB"):
        decode_label_image(encode(np.dstack([grey, grey, grey + 1]), kind), "x")
    if kind == "PNG":
        with pytest.raises(InputError, match="or with transparency and is not a label image"):
            decode_label_image(encode(np.dstack([grey, clear]), kind), "x")


def test_labels_beside_other_images() -> None:
    """Only what the file itself calls a smaller copy is left out: which of two label images is meant, nobody knows."""
    grey = LABELS.astype(np.uint8)
    for subfiletype in (0, 1):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as writer:
            writer.write(grey)
            writer.write(grey[:2], subfiletype=subfiletype)
        if subfiletype:
            assert decode_label_image(buffer.getvalue(), "x").tolist() == LABELS.tolist()
        else:
            with pytest.raises(InputError, match=r"x: contains 2 images \(3x4, 2x4\); save the one you want by itself"):
                decode_label_image(buffer.getvalue(), "x")
        assert decode_image(buffer.getvalue(), "x").shape == (3, 4)
