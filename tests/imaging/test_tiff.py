"""A plane of a TIFF: every depth, layout and kind of colours, and no more of the file than it needs."""

from __future__ import annotations

import io
import tracemalloc
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
from pffnet_d2.imaging import codecs
from pffnet_d2.imaging.lazy import open_microscopy_image
from pffnet_d2.imaging.microscopy import read_microscopy_image
from pffnet_d2.imaging.read import decode_image, read_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 65536, (37, 53, 3)).astype(np.uint16)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def pillow(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


@pytest.fixture
def without_imagecodecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has none."""

    def decode(*_: Any) -> None:
        raise ValueError("requires the 'imagecodecs' package")

    monkeypatch.setattr(codecs, "_by_tifffile", decode)


def read_every_way(data: bytes, folder: Path) -> list[np.ndarray]:
    """What training, prediction and prediction in tiles see of a file."""
    path = folder / "image.tif"
    path.write_bytes(data)
    with open_microscopy_image(path) as opened:
        parts = [opened.pixels[: opened.pixels.shape[0], x : x + 20] for x in range(0, opened.pixels.shape[1], 20)]
    return [decode_image(data, "image.tif"), read_microscopy_image(path).pixels, np.concatenate(parts, axis=1)]


@given(
    st.sampled_from(["u1", "u2", "u4", "i2", "i4", "f2", "f4", "f8"]),
    st.sampled_from(["grey", "alpha", "rgb", "rgba", "planar"]),
    st.sampled_from([None, "zlib", "lzma"]),
    st.booleans(),
    st.sampled_from([{}, {"tile": (16, 32)}, {"rowsperstrip": 5}]),
    st.sampled_from("<>"),
    st.booleans(),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 99),
)
def test_every_depth_and_layout(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    kind: str,
    compression: str | None,
    predictor: bool,
    layout: dict[str, Any],
    byteorder: str,
    big: bool,
    size: tuple[int, int],
    seed: int,
) -> None:
    samples = {"grey": 1, "alpha": 2, "rgba": 4}.get(kind, 3)
    values = np.random.default_rng(seed).integers(0, 2 ** (8 if dtype == "u1" else 15), (*size, samples)).astype(dtype)
    options: dict[str, Any] = {"photometric": "rgb" if samples > 2 else "minisblack", **layout}
    options |= {"byteorder": byteorder, "bigtiff": big, "compression": compression, "metadata": None}
    if predictor and compression and dtype[0] != "f":
        options["predictor"] = True
    if kind in ("alpha", "rgba"):
        options["extrasamples"] = ["unassalpha"]
    if kind == "planar":
        options["planarconfig"] = "separate"
    written = np.moveaxis(values, 2, 0) if kind == "planar" else values[..., 0] if kind == "grey" else values
    expected = values[..., 0] if samples < 3 else values[..., :3]
    if kind == "alpha":
        options["planarconfig"] = "contig"
    for found in read_every_way(tiff(written, **options), tmp_path_factory.mktemp("tiff")):
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found, expected)


# --- Compressions ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_imagecodecs")
def test_lzw_of_16_bit_colours_without_imagecodecs(tmp_path: Path) -> None:
    for array in (COLOUR, COLOUR[..., 0]):
        _, data = cv2.imencode(".tif", array[..., ::-1] if array.ndim == 3 else array)
        assert tifffile.TiffFile(io.BytesIO(data.tobytes())).pages.first.compression == 5
        for found in read_every_way(data.tobytes(), tmp_path):
            assert found.dtype == np.uint16
            np.testing.assert_array_equal(found, array)


@pytest.mark.usefixtures("without_imagecodecs")
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", None])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1", "P"])
def test_what_pillow_writes(tmp_path: Path, mode: str, compression: str | None) -> None:
    grey = COLOUR[..., 0]
    shallow = (COLOUR >> 8).astype(np.uint8)
    image = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(shallow).convert(mode)
    expected = np.array(image.convert("RGB") if mode == "P" else image)
    try:
        data = pillow(image, compression=compression)
    except OSError:
        pytest.skip(f"this Pillow does not write {compression}")
    for found in read_every_way(data, tmp_path):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("without_imagecodecs")
@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax(tmp_path: Path, compression: str) -> None:
    bits = COLOUR[..., 0] > 30000
    for found in read_every_way(pillow(Image.fromarray(bits), compression=compression), tmp_path):
        np.testing.assert_array_equal(found, bits)


@pytest.mark.usefixtures("without_imagecodecs")
@pytest.mark.parametrize("bits", [4, 12])
def test_packed_bits(tmp_path: Path, bits: int) -> None:
    """Written here: two or one and a half values a byte, every row from a new byte."""
    values = COLOUR[..., 0] >> (16 - bits)
    unpacked = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    packed = np.packbits(unpacked.reshape(len(values), -1).astype(np.uint8), axis=1)
    data = bytearray(tiff(packed, metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages.first.tags
        for name, value in (("ImageWidth", 53), ("BitsPerSample", bits)):
            offset = tags[name].valueoffset
            data[offset : offset + 2] = value.to_bytes(2, "little")
    for found in read_every_way(bytes(data), tmp_path):
        np.testing.assert_array_equal(found, values * 17 if bits == 4 else values)  # 15 becomes 255
    assert (decode_image(bytes(data), "x", palette=False) == values).all()  # as ids


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.dstack([x * 2, y * 2, 255 - x]).clip(0, 255).astype(np.uint8)


@pytest.mark.usefixtures("without_imagecodecs")
def test_jpeg_strips_of_colours(tmp_path: Path) -> None:
    image = smooth(96, 120)
    for found in read_every_way(pillow(Image.fromarray(image), compression="jpeg", quality=95), tmp_path):
        assert np.abs(found.astype(int) - image).max() < 30  # red is red
        assert np.abs(found.astype(int) - image).mean() < 3


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"compression": "jpeg", "photometric": "rgb", "subsampling": (2, 2)}, 3),
        ({"compression": "jpeg", "photometric": "rgb", "subsampling": (1, 1)}, 3),
        ({"compression": "jpeg", "photometric": "rgb", "compressionargs": {"outcolorspace": "rgb"}}, 3),  # as Aperio
        ({"compression": "lzw", "photometric": "rgb", "predictor": True}, 0),
        ({"compression": "jpeg2000", "photometric": "rgb"}, 0),
        ({"compression": "webp", "photometric": "rgb", "compressionargs": {"level": 110}}, 0),
    ],
    ids=str,
)
def test_pathology_tiles(
    tmp_path: Path, request: pytest.FixtureRequest, options: dict[str, Any], loss: int, absent: bool
) -> None:
    pytest.importorskip("imagecodecs", reason="tifffile writes these with imagecodecs")
    image = smooth(96, 120)
    data = tiff(image, tile=(48, 64), **options)
    # Aperio's tiles say nowhere in themselves that they are RGB: Adobe's marker becomes a comment.
    data = data.replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xfe\x00\x0eAdobe")
    if absent:
        request.getfixturevalue("without_imagecodecs")
        if options["compression"] in ("jpeg2000", "webp"):
            with pytest.raises(InputError, match=r"needs imagecodecs for its \w+ compression; type: pip install"):
                read_every_way(data, tmp_path)
            return
    for found in read_every_way(data, tmp_path):
        assert np.abs(found.astype(int) - image).mean() <= loss


@pytest.mark.usefixtures("without_imagecodecs")
@pytest.mark.parametrize("compression", ["tiff_lzw", "group4"])
def test_libtiff_prints_nothing_of_damage(tmp_path: Path, compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    image = Image.fromarray(COLOUR[..., 0] > 30000 if compression == "group4" else COLOUR[..., 0])
    data = bytearray(pillow(image, compression=compression))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        start = file.pages.first.dataoffsets[0]
    data[start + 30 : start + 90] = b"\xff" * 60
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image; it is truncated, damaged"):
        read_microscopy_image(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


# --- Colours ---------------------------------------------------------------------------------------------------------


def test_white_is_zero_in_training_too(tmp_path: Path) -> None:
    deep = COLOUR[..., 0]
    for array, top in ((deep, 65535), ((deep >> 8).astype(np.uint8), 255)):
        for found in read_every_way(tiff(array, photometric="miniswhite"), tmp_path):
            np.testing.assert_array_equal(found, top - array)
        np.testing.assert_array_equal(
            decode_image(tiff(array, photometric="miniswhite"), "x", palette=False), array
        )  # ids


def test_no_photometric_tag_is_black_is_zero(tmp_path: Path) -> None:
    data = bytearray(tiff(COLOUR[..., 0], metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        offset = file.pages.first.tags["PhotometricInterpretation"].offset
    data[offset : offset + 2] = (263).to_bytes(2, "little")  # Thresholding, which says nothing here
    for found in read_every_way(bytes(data), tmp_path):
        np.testing.assert_array_equal(found, COLOUR[..., 0])


@pytest.mark.parametrize("scale", [1, 257])
def test_palettes(tmp_path: Path, scale: int) -> None:
    indices = (COLOUR[..., 0] >> 8).astype(np.uint8)
    colours = RNG.integers(0, 256, (3, 256)).astype(np.uint16)
    data = tiff(indices, photometric="palette", colormap=colours * scale)  # 8 bit, as some write, or 16
    for found in read_every_way(data, tmp_path):
        np.testing.assert_array_equal(found, np.moveaxis(colours, 0, 1)[indices])
    np.testing.assert_array_equal(decode_image(data, "x", palette=False), indices)
    np.testing.assert_array_equal(
        read_microscopy_image(tmp_path / "image.tif", channels=[2]).pixels, colours[2][indices]
    )


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colours_are_named(tmp_path: Path, mode: str) -> None:
    data = pillow(
        Image.fromarray((COLOUR >> 8).astype(np.uint8)).convert(mode if mode != "LAB" else "RGB").convert(mode)
    )
    (tmp_path / "a.tif").write_bytes(data)
    for read in (read_image, read_microscopy_image):
        with pytest.raises(InputError, match=rf"a\.tif: its colours are (CIE)?{mode}; save it as RGB"):
            read(tmp_path / "a.tif")


def test_channels_are_no_colours_in_training_either() -> None:
    two = tiff(COLOUR[..., :2], photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match="x: contains 2 channels; save one as grey, or three as RGB"):
        decode_image(two, "x")
    with pytest.raises(InputError, match="x: contains a stack of 4 planes; save one plane"):
        decode_image(tiff(np.zeros((2, 2, 8, 8), np.uint8), imagej=True, metadata={"axes": "ZCYX"}), "x")


def test_the_advice_for_channels_fits(tmp_path: Path) -> None:
    for count, advice in ((2, r"\(--channels 0\)$"), (3, r"red, green and blue \(--channels 0,1,2\)$")):
        array = RNG.integers(0, 9, (count, 8, 8)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "CYX"})
        with pytest.raises(InputError, match=advice):
            read_microscopy_image(tmp_path / "a.tif")


# --- No more than is needed -----------------------------------------------------------------------------------------

STACK = RNG.integers(0, 65536, (40, 256, 256)).astype(np.uint16)  # 128 kB a plane


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "compression": "zlib"},
        {"photometric": "minisblack", "tile": (64, 64), "compression": "zlib"},
        {"imagej": True},
        {"ome": True, "photometric": "minisblack"},
    ],
    ids=str,
)
def test_one_plane_of_a_stack(tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX"}, **options)
    read: list[int] = []
    seen = codecs.decode_segment
    monkeypatch.setattr("pffnet_d2.imaging.tiff.decode_segment", lambda *a: read.append(len(a[1])) or seen(*a))
    read_microscopy_image(path, plane=3)
    read.clear()
    tracemalloc.start()
    try:
        pixels = read_microscopy_image(path, plane=31).pixels
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(pixels, STACK[31])
    assert peak < 10 * STACK[0].nbytes  # of 40
    assert sum(read) < 1.1 * STACK[0].nbytes


def test_planes_in_several_files(tmp_path: Path) -> None:
    names = ["one.ome.tif", "two.ome.tif"]
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{z}"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    for z, name in enumerate(names):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{z}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="256" SizeY="256" SizeZ="2" SizeC="1" '
            f'SizeT="1">{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / name, STACK[z], description=xml, metadata=None)
    for z in range(2):
        np.testing.assert_array_equal(read_microscopy_image(tmp_path / names[0], plane=z).pixels, STACK[z])
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match=r"one\.ome\.tif: the file that contains this plane is not beside it"):
        read_microscopy_image(tmp_path / names[0], plane=1)


def test_a_header_that_promises_451_gib(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[:4], imagej=True)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"images=4\n", b"images=3784704000\n"[: len(b"images=4\n") - 1] + b"\n", 1))
    with pytest.raises(InputError, match=r"a\.tif: "):
        read_microscopy_image(path, plane=0)
    tifffile.imwrite(path, STACK[:1], metadata=None, description='{"shape": [3784704, 256, 256]}')
    with pytest.raises(InputError, match=r"a\.tif: "):
        read_microscopy_image(path)
    for read in (read_image, lambda name: read_microscopy_image(name, plane=0)):
        with pytest.raises(InputError, match=r"a\.tif: "):
            read(path)
