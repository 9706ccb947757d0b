"""OME-Zarr images that the ome-zarr and zarr packages wrote, read window by window."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.lazy import open_microscopy_image
from pffnet_d2.imaging.microscopy import read_microscopy_image
from pffnet_d2.imaging.ome_zarr import ZarrImage, ZarrPlane, is_zarr
from pffnet_d2.imaging.scene import Selection

zarr = pytest.importorskip("zarr", reason="zarr is not installed")

SIZES = {"t": 2, "c": 3, "z": 4, "y": 50, "x": 70}


def pixels_of(axes: str, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 4000, [SIZES[axis] for axis in axes]).astype(np.uint16)


def write(path: Path, pixels: NDArray[Any], axes: str = "yx", *, version: str = "0.4", unit: str | None = None) -> Path:
    """Three levels, of which the reduced ones are slices; pixels of 0.25 x 0.5 units at full resolution."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level in range(3):
        step = tuple(slice(None, None, 2**level) if axis in "yx" else slice(None) for axis in axes)
        group.create_array(str(level), data=np.ascontiguousarray(pixels[step]), chunks=(*[1] * (len(axes) - 2), 16, 32))
        scale = [{"y": 0.25 * 2**level, "x": 0.5 * 2**level}.get(axis, 1.0) for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": a, "type": kinds.get(a, "space")} | ({"unit": unit} if unit and a in "yx" else {}) for a in axes]
    image = {"axes": named, "datasets": datasets, "name": "a"}
    attributes = {"multiscales": [image | ({"version": version} if version == "0.4" else {})]}
    group.attrs.update(attributes if version == "0.4" else {"ome": {"version": version, **attributes}})
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_any_window(tmp_path: Path, version: str) -> None:
    pixels = pixels_of("yx")
    path = write(tmp_path / "a.ome.zarr", pixels, version=version, unit="micrometer")
    assert is_zarr(path)
    with open_microscopy_image(path) as image:
        assert image.pixels.shape == (50, 70)
        assert image.pixels.dtype == np.uint16
        assert image.pixel_size == (0.25, 0.5)
        for rows, columns in (
            (slice(0, 50), slice(0, 70)),
            (slice(13, 40), slice(30, 33)),
            (slice(49, 50), slice(0, 1)),
        ):
            assert (image.pixels[rows, columns] == pixels[rows, columns]).all()
    whole = read_microscopy_image(path)
    assert (whole.pixels == pixels).all()
    assert whole.pixel_size == (0.25, 0.5)


def test_planes_and_channels(tmp_path: Path) -> None:
    pixels = pixels_of("tczyx")
    path = write(tmp_path / "a.zarr", pixels, "tczyx")
    plane = ZarrPlane(ZarrImage(path), {"T": 1, "Z": 2}, [1])
    assert (plane[10:20, 5:60] == pixels[1, 1, 2, 10:20, 5:60]).all()
    colours = ZarrPlane(ZarrImage(path), {"T": 0, "Z": 3}, [2, 0, 1])
    assert colours.shape == (50, 70, 3)
    assert (colours[:, 7:9] == np.moveaxis(pixels[0, [2, 0, 1], 3], 0, 2)[:, 7:9]).all()
    for wrong, words in (
        ({}, "a stack|3 channels"),
        ({"channels": [0]}, r"a stack of 8 planes \(T 2, Z 4\); choose one, as in --plane T=0,Z=0"),
        ({"plane": {"T": 0, "Z": 0}}, r"3 channels; choose one \(--channels 0\)"),
        ({"plane": {"T": 0, "Z": 4}, "channels": [0]}, "no plane Z=4"),
        ({"plane": {"T": 0, "Z": 0}, "channels": [3]}, "no channel 3"),
    ):
        with pytest.raises(InputError, match=rf"a\.zarr: .*({words})"):
            ZarrPlane(ZarrImage(path), **wrong)


def test_channels_by_name_all_channels_and_a_projection(tmp_path: Path) -> None:
    """As for every other file."""
    pixels = pixels_of("czyx")
    path = write(tmp_path / "a.zarr", pixels, "czyx")
    group = zarr.open_group(str(path), mode="r+")
    group.attrs["omero"] = {"channels": [{"label": name} for name in ("DAPI", "GFP", "RFP")]}
    chosen = Selection(channels=["GFP"], project="max")
    with open_microscopy_image(path, chosen, every_channel=True) as image:
        assert image.channel_names == ("DAPI", "GFP", "RFP")
        assert image.channels is not None
        assert (image.pixels[3:9, 5:7] == pixels[1].max(axis=0)[3:9, 5:7]).all()
        assert (image.channels[3:9, 5:7] == np.moveaxis(pixels.max(axis=1), 0, 2)[3:9, 5:7]).all()
    with pytest.raises(InputError, match=r"3 channels \(DAPI, GFP, RFP\); choose one by number or name"):
        read_microscopy_image(path, plane={"Z": 0})


def test_a_file_of_the_ome_zarr_package(tmp_path: Path) -> None:
    """Five axes and its own pyramid; units that are not micrometres."""
    ome_zarr = pytest.importorskip("ome_zarr.writer", reason="ome-zarr is not installed")
    pixels = pixels_of("cyx")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    ome_zarr.write_image(
        pixels,
        group,
        axes="cyx",
        scale={"c": 1.0, "y": 500.0, "x": 250.0},
        axes_units={"y": "nanometer", "x": "nanometer"},
    )
    image = ZarrImage(tmp_path / "a.zarr")
    assert image.pixel_size == (0.5, 0.25)
    plane = ZarrPlane(image, channels=[2])
    assert (plane[:, :] == pixels[2]).all()


@pytest.mark.parametrize(
    ("asked", "side"), [(None, 50), (0.35, 50), (0.3, 50), (0.7, 25), (0.9, 25), (1.4, 13), (2.0, 13)]
)
def test_the_level_that_is_nearest(tmp_path: Path, asked: float | None, side: int) -> None:
    """The levels have geometric means of 0.354, 0.707 and 1.414 micrometres."""
    path = write(tmp_path / "a.zarr", pixels_of("yx"), unit="micrometer")
    assert ZarrPlane(ZarrImage(path, asked)).shape[0] == side


def test_no_level_is_near(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", pixels_of("yx"), unit="micrometer")
    with pytest.raises(
        InputError, match=r"no level with pixels of 5 micrometres; it has 0\.353553, 0\.707107, 1\.41421"
    ):
        ZarrImage(path, 5.0)
    assert ZarrPlane(ZarrImage(write(tmp_path / "b.zarr", pixels_of("yx")), 5.0)).shape == (50, 70)  # sizes unknown


def test_only_the_files_of_the_level_make_the_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", pixels_of("yx"), unit="micrometer")
    before = ZarrImage(path).digest()
    copied = shutil.copytree(path, tmp_path / "b.zarr")
    assert ZarrImage(copied).digest() == before
    zarr.open_array(str(path / "1"), mode="r+")[0, 0] = 1
    assert ZarrImage(path).digest() == before
    zarr.open_array(str(path / "0"), mode="r+")[0, 0] = 1
    assert ZarrImage(path).digest() != before


def test_a_folder_of_one_or_several_images(tmp_path: Path) -> None:
    """As bioformats2raw writes them."""
    zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    pixels = pixels_of("yx")
    write(tmp_path / "a.zarr" / "0", pixels)
    assert (ZarrPlane(ZarrImage(tmp_path / "a.zarr"))[:, :] == pixels).all()
    write(tmp_path / "a.zarr" / "1", pixels)
    with pytest.raises(InputError, match=r"a\.zarr: contains 2 images; name one, such as .*a\.zarr/0"):
        ZarrImage(tmp_path / "a.zarr")
    zarr.open_group(str(tmp_path / "p.zarr"), mode="w", zarr_format=2, attributes={"plate": {}})
    with pytest.raises(InputError, match=r"p\.zarr: is a plate of several images; name one"):
        ZarrImage(tmp_path / "p.zarr")


def spoil_json(path: Path) -> None:
    (path / ".zattrs").write_text("{")


def spoil_levels(path: Path) -> None:
    shutil.rmtree(path / "0")


def spoil_metadata(path: Path) -> None:
    attributes = json.loads((path / ".zattrs").read_text())
    del attributes["multiscales"][0]["datasets"]
    (path / ".zattrs").write_text(json.dumps(attributes))


def spoil_axes(path: Path) -> None:
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["axes"].append({"name": "z"})
    (path / ".zattrs").write_text(json.dumps(attributes))


def spoil_chunk(path: Path) -> None:
    for chunk in (path / "0").iterdir():
        if not chunk.name.startswith("."):
            chunk.write_bytes(b"nonsense")


@pytest.mark.parametrize("spoil", [spoil_json, spoil_levels, spoil_metadata, spoil_axes, spoil_chunk])
def test_damage(tmp_path: Path, spoil: Any) -> None:
    path = write(tmp_path / "a.zarr", pixels_of("yx"))
    spoil(path)
    with pytest.raises(InputError, match=r"a\.zarr: (cannot be read|its axes)") as error:
        read_microscopy_image(path)
    assert "\n" not in str(error.value)


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("codecs", ["compressor", "filters"])
@pytest.mark.parametrize("dtype", ["|u1", "|O"])
def test_chunks_are_not_unpickled(codecs: str, dtype: str, tmp_path: Path) -> None:
    """Although numcodecs has a codec that would."""
    path = write(tmp_path / "a.ome.zarr", pixels_of("yx"))
    array = json.loads((path / "0" / ".zarray").read_text())
    pickled = {"id": "pickle"}
    array |= {"compressor": None, "filters": None, "dtype": dtype, "chunks": array["shape"], "fill_value": 0}
    array[codecs] = [pickled] if codecs == "filters" else pickled
    (path / "0" / ".zarray").write_text(json.dumps(array))
    for chunk in (path / "0").glob("[0-9]*"):
        shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
    trace, content = tmp_path / "trace", pickle.dumps(Command(tmp_path / "trace"))
    (path / "0" / "0.0").write_bytes(content)
    (path / "0" / "0").mkdir()
    (path / "0" / "0" / "0").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as OME-Zarr"):
        read_microscopy_image(path)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()  # it would have run


def test_zarr_without_an_image(tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    with pytest.raises(InputError, match=r"a\.zarr: is Zarr but not an OME-Zarr image"):
        read_microscopy_image(tmp_path / "a.zarr")
    (tmp_path / "folder").mkdir()
    assert not is_zarr(tmp_path / "folder")
    assert not is_zarr(tmp_path / "none")
