from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import replace
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
from pffnet_d2.imaging.read import (
    AS_IS,
    AUTO,
    PERCENTILE_16_BIT,
    STRETCH,
    Normalisation,
    contiguous,
    decode_image,
    normalisation_of,
    read_image,
    to_rgb8,
)


def encode(array: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "TIFF16":
        tifffile.imwrite(buffer, array)
    else:
        Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def test_percentile_by_hand() -> None:
    # 1001 evenly spaced values: percentile 0.1 is the second (102), 99.9 the last but one (2098), 1996 apart
    image = np.arange(100, 2102, 2, dtype=np.uint16)[None, :]
    out = to_rgb8(image, PERCENTILE_16_BIT)
    assert out.shape == (1, 1001, 3)
    assert out.dtype == np.uint8
    assert (out == out[:, :, :1]).all()
    assert out[0, [0, 1, 499, 999, 1000], 0].tolist() == [0, 0, 127, 255, 255]  # (1098 - 102) * 255 / 1996 = 127.24
    assert (np.diff(out[0, :, 0].astype(int)) >= 0).all()
    assert len(np.unique(out)) == 256


def test_minimum_range_keeps_noise_dark() -> None:
    rng = np.random.default_rng(0)
    empty = rng.integers(120, 173, (64, 64)).astype(np.uint16)
    assert to_rgb8(empty, PERCENTILE_16_BIT).max() <= 26  # 52 of 512 grey values
    assert to_rgb8(empty, Normalisation("percentile", 0.1, 99.9)).max() == 255
    assert to_rgb8(np.full((4, 4), 4095, np.uint16), PERCENTILE_16_BIT).max() == 0


def test_percentiles_keep_the_ratio_of_channels() -> None:
    image = np.zeros((10, 10, 3), np.uint16)
    image[..., 0], image[..., 1] = 4000, 2000
    out = to_rgb8(image, Normalisation("percentile", 0, 100))
    assert out[0, 0].tolist() == [255, 128, 0]


def test_eight_bit_stays() -> None:
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (5, 7, 4)).astype(np.uint8)
    np.testing.assert_array_equal(to_rgb8(rgba, AS_IS), rgba[..., :3])
    np.testing.assert_array_equal(to_rgb8(rgba[..., :2], AS_IS), rgba[..., [0, 0, 0]])
    np.testing.assert_array_equal(to_rgb8(rgba[..., 0] > 100, AS_IS)[..., 2], np.where(rgba[..., 0] > 100, 255, 0))
    assert to_rgb8(rgba, AS_IS).flags.writeable


@pytest.mark.parametrize("given", [AUTO, STRETCH, Normalisation("percentile", 1, 98, 30)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32, np.bool_])
def test_an_inverted_image_becomes_what_its_inverse_does(given: Normalisation, dtype: type) -> None:
    """Dark objects are then bright ones, and an image of nothing but noise on bright ground stays dark."""
    if dtype == np.bool_ and given.name == "percentile":
        return
    dark = np.random.default_rng(0).integers(0, 2 if dtype == np.bool_ else 200, (40, 50)).astype(dtype)
    bright = -dark if dtype == np.float32 else ~dark
    swapped = replace(given, low=100 - given.high, high=100 - given.low, invert=True)
    np.testing.assert_array_equal(to_rgb8(bright, swapped), to_rgb8(dark, given))
    noise = np.random.default_rng(0).integers(60000, 60020, (40, 50)).astype(np.uint16)
    assert to_rgb8(noise, replace(AUTO, invert=True)).max() <= 10


def test_how_an_inverted_normalisation_is_kept() -> None:
    inverted = replace(STRETCH, invert=True)
    assert Normalisation(**inverted.info()) == inverted
    assert "invert" not in STRETCH.info()


def test_normalisation_of_a_depth() -> None:
    assert normalisation_of(np.zeros((2, 2), np.uint8)) == AS_IS
    assert normalisation_of(np.zeros((2, 2), np.uint16)) == PERCENTILE_16_BIT
    assert normalisation_of(np.zeros((2, 2), np.uint16), STRETCH) == PERCENTILE_16_BIT
    assert normalisation_of(np.zeros((2, 2), np.uint8), AS_IS) == AS_IS
    dark = np.full((2, 2), 10, np.uint8)
    dark[0, 0] = 22  # half of the least range above the rest
    assert to_rgb8(dark, STRETCH)[:, :, 0].tolist() == [[128, 0], [0, 0]]
    half = np.linspace(0, 1, 101, dtype=np.float32)[None]
    assert abs(int(to_rgb8(half, normalisation_of(half))[0, 50, 0]) - 128) <= 1
    assert Normalisation(**PERCENTILE_16_BIT.info()) == PERCENTILE_16_BIT


@pytest.mark.parametrize(
    ("image", "normalisation", "words"),
    [
        (np.zeros((4, 4), np.uint16), AS_IS, "8 bit"),
        (np.full((4, 4), np.nan), Normalisation("percentile", 0, 100), "finite"),
        (np.zeros((2, 4, 4, 3), np.uint8), AS_IS, "shape"),
        (np.zeros((4, 4, 5), np.uint8), AS_IS, "shape"),
        (np.zeros((0, 4), np.uint8), AS_IS, "shape"),
        (np.zeros((4, 4), np.uint8), Normalisation("gamma"), "gamma"),
    ],
)
def test_refused(image: np.ndarray, normalisation: Normalisation, words: str) -> None:
    with pytest.raises(InputError, match=words):
        to_rgb8(image, normalisation)


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
    with pytest.raises(InputError, match=f"x: has more than 8 bits a channel, which of {form} files cannot be read; s"):
        decode_image(data, "x")


def test_deep_jpeg_2000_is_refused() -> None:
    shallow = np.random.default_rng(7).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    data = bytearray(encode(shallow, "JPEG2000"))
    np.testing.assert_array_equal(decode_image(bytes(data), "x"), shallow)
    start = data.find(b"\xff\x4f\xff\x51") + 42
    for channel in range(3):
        assert data[start + 3 * channel] == 7
        data[start + 3 * channel] = 15
    with pytest.raises(InputError, match=r"x: (has more than 8 bits a channel|cannot be read as an image)"):
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
    with pytest.raises(InputError, match="x: holds a stack of 2 planes; save one plane"):
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
    with pytest.raises(InputError, match="x: holds a stack of 3 planes; save one plane"):
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


def test_auto_is_what_prediction_does() -> None:
    rng = np.random.default_rng(0)
    shallow = rng.integers(0, 255, (9, 8, 3), np.uint8)
    np.testing.assert_array_equal(to_rgb8(shallow, AUTO), shallow)
    for deep in (rng.integers(0, 4000, (30, 40), np.uint16), rng.integers(0, 90, (30, 40)) + 0.5):
        np.testing.assert_array_equal(to_rgb8(deep, AUTO), to_rgb8(deep, normalisation_of(deep)))
    assert to_rgb8(np.arange(100, dtype=np.uint16)[None], AUTO).max() < 60  # 99 grey values of at least 512
    assert to_rgb8(np.arange(100, dtype=np.float32)[None], AUTO).max() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_contiguous(dtype: type) -> None:
    labels = np.array([[0, 7, 7], [200, 0, 3]], dtype)
    found = contiguous(labels)
    assert found.dtype == np.int32
    assert found.tolist() == [[0, 2, 2], [3, 0, 1]]
    np.testing.assert_array_equal(contiguous(found), found)
    assert contiguous(np.zeros((2, 3), dtype)).tolist() == [[0, 0, 0], [0, 0, 0]]
