"""Every kind of file written here by tifffile or Pillow, and the one plane that is read of it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.microscopy import read_microscopy_image
from pffnet_d2.imaging.normalisation import (
    PERCENTILE_16_BIT,
    normalisation_of,
    to_rgb8,
)
from pffnet_d2.imaging.read import read_image
from pffnet_d2.inference.export import write_label_tiff

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 120, (6, 9))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_depths(tmp_path: Path, dtype: str, compression: str | None) -> None:
    grey = GREY.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", grey, compression=compression)
    pixels = read_microscopy_image(tmp_path / "a.tif").pixels
    assert pixels.dtype == grey.dtype
    np.testing.assert_array_equal(pixels, grey)
    rgb = to_rgb8(pixels, normalisation_of(pixels))
    assert rgb.shape == (6, 9, 3)


def test_signed_bytes_and_bits(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[-128, 0, 127]], np.int8))
    assert read_microscopy_image(tmp_path / "a.tif").pixels.tolist() == [[0, 128, 255]]
    bits = GREY > 60
    tifffile.imwrite(tmp_path / "b.tif", bits)
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "b.tif").pixels.astype(bool), bits)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "I;16"])
def test_modes(tmp_path: Path, mode: str, ending: str) -> None:
    if ending == "bmp" and mode in ("LA", "I;16", "RGBA"):
        pytest.skip("BMP has none")
    rgb = RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 300)
        expected = GREY * 300
    elif mode == "P":
        image = Image.fromarray(GREY.astype(np.uint8), "L").convert("P")
        palette = RNG.integers(0, 256, (256, 3)).astype(np.uint8)
        image.putpalette(palette.tobytes())
        expected = palette[GREY]
    else:
        image = Image.fromarray(rgb).convert(mode)
        array = np.array(image)
        expected = {"LA": array[..., 0]}.get(mode, array[..., :3]) if array.ndim == 3 else array
    image.save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / f"a.{ending}").pixels, expected)


def test_the_same_values_as_training_reads(tmp_path: Path) -> None:
    deep = RNG.integers(0, 4096, (40, 50)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep)
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "a.tif").pixels, read_image(tmp_path / "a.tif"))


def test_lzw_without_imagecodecs(tmp_path: Path) -> None:
    deep = (GREY * 300).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "a.tif").pixels, deep)


def test_white_is_zero(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "a.tif").pixels, 255 - GREY)


# --- Channels and stacks --------------------------------------------------------------------------------------------

FOUR = RNG.integers(0, 60000, (4, 6, 9)).astype(np.uint16)


def test_channels_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, FOUR, ome=True, metadata={"axes": "CYX"}, photometric="minisblack")
    np.testing.assert_array_equal(read_microscopy_image(path, channels=[2]).pixels, FOUR[2])
    np.testing.assert_array_equal(
        read_microscopy_image(path, channels=[3, 1, 0]).pixels, np.moveaxis(FOUR[[3, 1, 0]], 0, 2)
    )
    with pytest.raises(InputError, match=r"a\.ome\.tif: 4 channels; choose one \(--channels 0\)"):
        read_microscopy_image(path)
    with pytest.raises(InputError, match="no channel 4: it has 4, from 0 to 3"):
        read_microscopy_image(path, channels=[4])
    with pytest.raises(InputError, match="give one"):
        read_microscopy_image(path, channels=[0, 1])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_interleaved_channels_without_colours(tmp_path: Path, count: int) -> None:
    array = RNG.integers(0, 60000, (6, 9, count)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match="channels"):
        read_microscopy_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "a.tif", channels=[1]).pixels, array[..., 1])


def test_planar_rgb_and_one_of_its_channels(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (3, 6, 9)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "a.tif").pixels, np.moveaxis(rgb, 0, 2))
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "a.tif", channels=[1]).pixels, rgb[1])


def test_grey_has_one_channel(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", FOUR[0])
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "a.tif", channels=[0]).pixels, FOUR[0])
    with pytest.raises(InputError, match="no channel 1"):
        read_microscopy_image(tmp_path / "a.tif", channels=[1])


def test_stacks_are_refused_until_a_plane_is_picked(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, FOUR, photometric="minisblack")
    with pytest.raises(InputError, match=r"a stack of 4 planes .*; choose one, as in --plane 0"):
        read_microscopy_image(path)
    np.testing.assert_array_equal(read_microscopy_image(path, plane=3).pixels, FOUR[3])
    with pytest.raises(InputError, match=r"no plane .=4"):
        read_microscopy_image(path, plane=4)
    # Without a channel axis, channels choose along the stack's.
    np.testing.assert_array_equal(read_microscopy_image(path, channels=[1]).pixels, FOUR[1])


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_five_dimensions(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    stack = RNG.integers(0, 60000, (2, 3, 2, 6, 9)).astype(np.uint16)
    tifffile.imwrite(path, stack, metadata={"axes": "TZCYX"}, photometric="minisblack", **{kind: True})
    with pytest.raises(InputError, match=r"a stack of 6 planes \(T 2, Z 3\); choose one, as in --plane T=0,Z=0"):
        read_microscopy_image(path)
    with pytest.raises(InputError, match=r"T=0,Z=0"):
        read_microscopy_image(path, plane=1, channels=[0])
    with pytest.raises(InputError, match="has no index for Z"):
        read_microscopy_image(path, plane={"T": 1}, channels=[0])
    with pytest.raises(InputError, match="2 channels"):
        read_microscopy_image(path, plane={"T": 1, "Z": 2})
    np.testing.assert_array_equal(
        read_microscopy_image(path, plane={"t": 1, "z": 2}, channels=[1]).pixels,
        stack[1, 2, 1],
    )


def test_a_plane_that_is_not_there(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", FOUR[0])
    Image.fromarray(FOUR[0]).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        for none in (0, {"Z": 0}):
            np.testing.assert_array_equal(read_microscopy_image(tmp_path / name, plane=none).pixels, FOUR[0])
        with pytest.raises(InputError, match=rf"{name}: no plane 3: it is a single plane; leave --plane out"):
            read_microscopy_image(tmp_path / name, plane=3)
        with pytest.raises(InputError, match=rf"{name}: no plane Z=2: it is a single plane; leave Z out"):
            read_microscopy_image(tmp_path / name, plane={"Z": 2})
    path = tmp_path / "c.ome.tif"
    tifffile.imwrite(path, FOUR, ome=True, metadata={"axes": "CYX"}, photometric="minisblack")
    with pytest.raises(InputError, match="no plane C=1: it is a single plane; choose channels by --channels 1"):
        read_microscopy_image(path, plane={"C": 1}, channels=[0])


def test_frames_of_other_kinds(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((6, 9), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="a stack of 2 planes"):
        read_microscopy_image(tmp_path / "a.gif")
    assert (read_microscopy_image(tmp_path / "a.gif", plane=1).pixels == 200).all()


def test_pages_of_the_same_size_and_thumbnails(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "thumb.tif") as tiff:
        tiff.write(FOUR[0])
        tiff.write(FOUR[0, ::3, ::3])
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "thumb.tif").pixels, FOUR[0])
    with tifffile.TiffWriter(tmp_path / "two.tif") as tiff:
        tiff.write(FOUR[0])
        tiff.write(FOUR[1].astype(np.uint8).T)
    with pytest.raises(InputError, match="contains 2 images"):
        read_microscopy_image(tmp_path / "two.tif")


# --- Pixel size -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}}, (0.5, 0.25)),
        (
            {
                "ome": True,
                "metadata": {
                    **{"axes": "YX", "PhysicalSizeX": 250.0, "PhysicalSizeY": 500.0},
                    **{"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"},
                },
            },
            (0.5, 0.25),
        ),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "\\u00B5m"}}, (0.5, 0.25)),
        ({"resolution": (40000, 20000), "resolutionunit": 3}, (0.5, 0.25)),
        ({"resolution": (300, 300), "resolutionunit": 2}, None),  # a printer's
        ({"resolution": (72, 72), "resolutionunit": 3}, None),
        ({"ome": True, "metadata": {"axes": "YX"}}, None),
        ({}, None),
        ({"resolution": (1, 1), "resolutionunit": 1}, None),  # no unit
        ({"resolution": (1, 1), "resolutionunit": 3}, None),
        ({"imagej": True, "resolution": (1, 1), "metadata": {"unit": "pixel"}}, None),
        ({"imagej": True, "resolution": (28.346, 28.346), "metadata": {"unit": "cm"}}, None),  # 72 dots an inch
        ({"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}}, None),
        (
            {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}}
            | {"metadata": {"axes": "YX", "PhysicalSizeXUnit": "pixel", "PhysicalSizeYUnit": "pixel"}},
            None,
        ),
        ({"resolution": ((2**32 - 1, 1), (2**32 - 1, 1)), "resolutionunit": 3}, None),  # smaller than an atom
        ({"description": "Aperio Image Library v11\n9x6 |AppMag = 20|MPP = 0.4990", "metadata": None}, (0.499, 0.499)),
    ],
)
def test_pixel_size(tmp_path: Path, options: dict, expected: tuple[float, float] | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", FOUR[0], **options)
    assert read_microscopy_image(tmp_path / "a.tif").pixel_size == (expected and pytest.approx(expected))


def metamorph(path: Path, unit: bytes, calibrated: int = 1, side: tuple[int, int] = (645, 1000)) -> None:
    """A TIFF with 72 dots an inch and MetaMorph's tag UIC1: pairs of a number and a value or the place of one."""
    tifffile.imwrite(
        path,
        FOUR[0],
        metadata=None,
        resolution=(72, 72),
        resolutionunit=2,
        extratags=[(33628, 4, 8, (3, calibrated, 4, 0, 5, 0, 6, 0), True), (33629, 5, 1, (0, 1), True)],
    )
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages.first.tags[33628]
        offset = tag.valueoffset
    # The count of UIC1 is that of its pairs.
    data[tag.offset + 4 : tag.offset + 8] = (4).to_bytes(4, "little")
    places = [len(data), len(data), len(data) + 8]
    for i, place in enumerate(places):
        data[offset + 12 + 8 * i : offset + 16 + 8 * i] = place.to_bytes(4, "little")
    data += side[0].to_bytes(4, "little") + side[1].to_bytes(4, "little")
    data += len(unit).to_bytes(4, "little") + unit
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("unit", "calibrated", "expected"),
    [(b"um\0", 1, 0.645), (b"nm\0", 1, 0.000645), (b"um\0", 0, None), (b"pixel\0", 1, None)],
)
def test_pixel_size_of_metamorph(tmp_path: Path, unit: bytes, calibrated: int, expected: float | None) -> None:
    metamorph(tmp_path / "a.tif", unit, calibrated)
    image = read_microscopy_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, FOUR[0])
    assert image.pixel_size == (expected and pytest.approx((expected, expected)))


def test_the_label_image_of_bbbc039_has_its_pixel_size(pffnet_data: Callable[[str], Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(pffnet_data("bbbc039") / "images.zip") as archive:
        (tmp_path / "a.tif").write_bytes(archive.read(next(n for n in archive.namelist() if n.endswith(".tif"))))
    image = read_microscopy_image(tmp_path / "a.tif")
    assert image.pixel_size == (0.645, 0.645)
    write_label_tiff(
        tmp_path / "labels.tif",
        np.zeros((9, 9), np.int32),
        pixel_size=image.pixel_size,
        resolution=image.resolution,
    )
    assert read_microscopy_image(tmp_path / "labels.tif").pixel_size == pytest.approx((0.645, 0.645), rel=1e-4)


def test_resolution_tags(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", FOUR[0], resolution=(300, 150), resolutionunit=2)
    assert read_microscopy_image(tmp_path / "a.tif").resolution == ((300, 1), (150, 1), 2)


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.3, 0.9])
@pytest.mark.parametrize("ending", ["tif", "png", "jpg", "gif"])
def test_truncated(tmp_path: Path, ending: str, part: float) -> None:
    path = tmp_path / f"a.{ending}"
    noise = RNG.integers(0, 256, (80, 90)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(InputError, match=rf"a\.{ending}: .*truncated"):
        read_microscopy_image(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_stacks(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.repeat(FOUR, 20, axis=2), photometric="minisblack", compression=compression)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a\.tif: "):
        read_microscopy_image(path, plane=3)


def test_nothing_text_missing_and_folders(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    with pytest.raises(InputError, match=r"empty\.tif: the file is empty"):
        read_microscopy_image(tmp_path / "empty.tif")
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        read_microscopy_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"none\.tif: cannot be read"):
        read_microscopy_image(tmp_path / "none.tif")
    with pytest.raises(InputError, match="cannot be read"):
        read_microscopy_image(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    grey = GREY.astype(np.float32)
    grey[2, 3] = grey[0, 0] = value
    tifffile.imwrite(tmp_path / "a.tif", grey)
    with pytest.raises(InputError, match=r"a\.tif: 2 values are NaN or infinite"):
        read_microscopy_image(tmp_path / "a.tif")


def test_complex_values(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.complex64))
    with pytest.raises(InputError, match="complex64 values are not supported"):
        read_microscopy_image(tmp_path / "a.tif")


# --- Normalisation --------------------------------------------------------------------------------------------------


def test_large_integers_keep_their_differences() -> None:
    # 32-bit floating values are 256 apart there.
    image = np.arange(4 * 10**9, 4 * 10**9 + 1024, dtype=np.uint32)[None]
    assert len(np.unique(to_rgb8(image, PERCENTILE_16_BIT))) == 256
