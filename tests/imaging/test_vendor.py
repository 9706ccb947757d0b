"""Arrays of numpy, formats of microscopes by bioio, slides by OpenSlide, and files that nothing reads."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from pffnet_d2.errors import InputError
from pffnet_d2.imaging import vendor
from pffnet_d2.imaging.lazy import open_microscopy_image
from pffnet_d2.imaging.microscopy import open_scene, read_microscopy_image, read_selection, scene_names
from pffnet_d2.imaging.scene import Selection

RNG = np.random.default_rng(0)


# --- numpy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "chosen", "expected"),
    [
        ((9, 8), "u2", {}, np.s_[:]),
        ((9, 8), ">u2", {}, np.s_[:]),
        ((9, 8), "f4", {}, np.s_[:]),
        ((9, 8, 1), "u1", {}, np.s_[:, :, 0]),
        ((9, 8, 3), "u1", {}, np.s_[:]),
        ((9, 8, 4), "u1", {}, np.s_[:, :, :3]),
        ((9, 8, 2), "u2", {"channels": [1]}, np.s_[:, :, 1]),
        ((5, 9, 8), "u2", {"plane": 3}, np.s_[3]),
        ((5, 9, 8), "u2", {"channels": [4, 0, 1]}, lambda values: np.moveaxis(values[[4, 0, 1]], 0, 2)),
        ((2, 5, 9, 8), "u2", {"plane": {"J": 1, "I": 3}}, np.s_[1, 3]),
        ((5, 9, 8, 3), "u1", {"plane": 2}, np.s_[2]),
    ],
)
def test_arrays(tmp_path: Path, shape: tuple[int, ...], dtype: str, chosen: dict[str, Any], expected: Any) -> None:
    values = RNG.integers(0, 250, shape).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    right = expected(values) if callable(expected) else values[expected]
    pixels = read_microscopy_image(tmp_path / "a.npy", **chosen).pixels
    np.testing.assert_array_equal(pixels, right)
    assert pixels.dtype == np.dtype(dtype).newbyteorder("=")
    with open_microscopy_image(tmp_path / "a.npy", **chosen) as image:
        assert image.pixels.shape == right.shape
        np.testing.assert_array_equal(image.pixels[2:5, 1:4], right[2:5, 1:4])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(5), r"an array of shape \(5,\) is no image"),
        (np.zeros((0, 4)), "is no image"),
        (np.array([{}, 1], dtype=object), "holds Python objects"),
        (np.zeros((4, 4), complex), "complex128 values are not supported"),
        (np.full((4, 4), np.nan), "16 values are NaN"),
        (np.zeros((5, 4, 8)), "a stack of 5 planes"),
        (np.zeros((9, 8, 2)), "2 channels; choose one"),
    ],
)
def test_arrays_that_are_no_image(tmp_path: Path, values: Any, words: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(InputError, match=words):
        read_microscopy_image(tmp_path / "a.npy")


def test_a_cut_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((40, 40)))
    data = (tmp_path / "a.npy").read_bytes()
    for share in (8, 100, len(data) - 1):
        (tmp_path / "a.npy").write_bytes(data[:share])
        with pytest.raises(InputError, match=r"a\.npy: cannot be read as a numpy array"):
            read_microscopy_image(tmp_path / "a.npy")


# --- Formats of microscopes -----------------------------------------------------------------------------------------


@pytest.fixture
def czi(tmp_path: Path) -> Path:
    """What the vendor's library writes: two channels, three planes, pixels of 0.2 micrometres."""
    pytest.importorskip("bioio_czi")
    writer = pytest.importorskip("pylibCZIrw.czi")
    with writer.create_czi(str(tmp_path / "a.czi")) as file:
        for c in range(2):
            for z in range(3):
                file.write(data=CZI[c, z][..., None], plane={"C": c, "Z": z, "T": 0})
        file.write_metadata(channel_names={0: "DAPI", 1: "GFP"}, scale_x=2e-7, scale_y=2e-7)
    return tmp_path / "a.czi"


CZI = RNG.integers(0, 2**16, (2, 3, 24, 32), dtype=np.uint16)


def test_czi(czi: Path) -> None:
    image = read_selection(czi, Selection(plane={"Z": 2}, channels=["GFP"]), every_channel=True)
    np.testing.assert_array_equal(image.pixels, CZI[1, 2])
    np.testing.assert_array_equal(image.channels, np.moveaxis(CZI[:, 2], 0, 2))
    assert image.channel_names == ("DAPI", "GFP")
    assert image.pixel_size == pytest.approx((0.2, 0.2))
    projected = read_selection(czi, Selection(channels=[0], project="max")).pixels
    np.testing.assert_array_equal(projected, CZI[0].max(axis=0))
    with open_scene(czi) as scene:
        assert scene.planes(Selection(channels=[0])) == [{"Z": 0}, {"Z": 1}, {"Z": 2}]
    with open_microscopy_image(czi, plane=1, channels=[0]) as opened:
        np.testing.assert_array_equal(opened.pixels[3:9, 5:20], CZI[0, 1, 3:9, 5:20])
    with pytest.raises(InputError, match=r"2 channels \(DAPI, GFP\)"):
        read_microscopy_image(czi, plane=0)


def test_images_that_a_czi_does_not_describe(tmp_path: Path) -> None:
    pytest.importorskip("bioio_czi")
    writer = pytest.importorskip("pylibCZIrw.czi")
    with writer.create_czi(str(tmp_path / "a.czi")) as file:
        for scene in range(2):
            file.write(data=CZI[0, scene][..., None], plane={"C": 0}, scene=scene, location=(100 * scene, 0))
    with pytest.raises(InputError, match="contains 2 images, but its metadata describe 1"):
        read_microscopy_image(tmp_path / "a.czi")


class TwoScenes:
    """What bioio shows of a LIF with two images: a grey stack without names, and two named channels."""

    scenes = ("first", "second")

    def __init__(self, path: Path, reader: Any = None) -> None:
        self.set_scene(0)

    def set_scene(self, number: int) -> None:
        self.dask_data = CZI[None, :1, :, :9] if number == 0 else CZI[None, :, :1]
        self.channel_names = ["Channel:0:0"] if number == 0 else ["DAPI", "GFP"]
        self.dims = SimpleNamespace(order="TCZYX")
        self.physical_pixel_sizes = SimpleNamespace(Z=None, Y=0.5 if number else None, X=0.25 if number else None)


def test_several_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bioio = pytest.importorskip("bioio")
    pytest.importorskip("bioio_lif")
    monkeypatch.setattr(bioio, "BioImage", TwoScenes)
    path = tmp_path / "a.lif"
    path.write_bytes(b"a name")
    assert scene_names(path) == ["first", "second"]
    with pytest.raises(InputError, match=r"contains 2 images \(first, second\); choose one .*--scene all"):
        read_microscopy_image(path)
    first = read_selection(path, Selection(scene=0, plane=2))
    np.testing.assert_array_equal(first.pixels, CZI[0, 2, :9])
    assert first.pixel_size is None
    second = read_selection(path, Selection(scene="second", channels=["GFP"]))
    np.testing.assert_array_equal(second.pixels, CZI[1, 0])
    assert second.pixel_size == (0.5, 0.25)


@pytest.mark.parametrize("ending", vendor.BIOIO)
def test_no_file_of_a_microscope(tmp_path: Path, ending: str) -> None:
    pytest.importorskip(vendor.BIOIO[ending][0])
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"no image" * 20)
    with pytest.raises(InputError, match=r"bioio cannot read it .*fetch it again"):
        read_microscopy_image(path)


@pytest.mark.parametrize("ending", [*vendor.BIOIO, *vendor.SLIDES])
def test_a_package_is_missing(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bioio", "bioio_nd2", "bioio_lif", "bioio_czi", "openslide"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / f"a{ending}").write_bytes(b"anything")
    extra = vendor.BIOIO.get(ending, ("", "slides"))[1]
    with pytest.raises(InputError, match=rf"pip install 'pffnet_d2\[{extra}\]'") as raised:
        read_microscopy_image(tmp_path / f"a{ending}")
    assert ("GPL" in str(raised.value)) == (ending == ".czi")


def test_unknown_files(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"anything")
    with pytest.raises(
        InputError, match=r"a\.xyz: \.xyz files cannot be read; what can: TIFF .*\[formats\]' ND2"
    ) as raised:
        read_microscopy_image(tmp_path / "a.xyz")
    assert "\n" not in str(raised.value)
    values = RNG.integers(0, 255, (5, 6), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "tiff.xyz", values)  # what a file is does not depend on its name
    np.testing.assert_array_equal(read_microscopy_image(tmp_path / "tiff.xyz").pixels, values)


# --- Slides ---------------------------------------------------------------------------------------------------------


def test_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSlide on a pyramid that tifffile wrote; the endings of SLIDES belong to other formats, which nothing here
    writes."""
    openslide = pytest.importorskip("openslide")
    values = RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        resolution = {"resolution": (20000, 20000), "resolutionunit": 3, "tile": (32, 32), "photometric": "rgb"}
        tiff.write(values, metadata=None, **resolution)
        tiff.write(values[::2, ::2], subfiletype=1, metadata=None, **resolution)
    slide = tmp_path / "a.mrxs"
    slide.write_bytes(b"a name")
    opened = openslide.OpenSlide
    monkeypatch.setattr(openslide, "OpenSlide", lambda path: opened(tmp_path / "a.tif"))
    image = read_selection(slide, Selection())
    np.testing.assert_array_equal(image.pixels, values)
    assert image.pixel_size == pytest.approx((0.5, 0.5))
    small = read_selection(slide, Selection(level=0.9, channels=[1]))
    np.testing.assert_array_equal(small.pixels, values[::2, ::2, 1])
    assert small.pixel_size == pytest.approx((1.0, 1.0))
    with open_microscopy_image(slide, Selection(level=0.9)) as lazy:
        np.testing.assert_array_equal(lazy.pixels[10:20, 30:50], values[::2, ::2][10:20, 30:50])


def test_no_slide(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    (tmp_path / "a.mrxs").write_bytes(b"no slide")
    with pytest.raises(InputError, match=r"a\.mrxs: cannot be read as a slide"):
        read_microscopy_image(tmp_path / "a.mrxs")
