"""What is chosen of a file: channels by name, images by number, levels of pyramids, projections, every channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.imaging.lazy import open_microscopy_image
from pffnet_d2.imaging.microscopy import open_scene, read_microscopy_image, read_selection, scene_names
from pffnet_d2.imaging.scene import Selection

NAMED = {"axes": "TZCYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
STACK = np.random.default_rng(0).integers(0, 2**16, (2, 3, 2, 24, 20), dtype=np.uint16)


@pytest.fixture
def ome(tmp_path: Path) -> Path:
    """Two times, three planes, the channels DAPI and GFP."""
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata=NAMED, photometric="minisblack", compression="zlib")
    return tmp_path / "a.ome.tif"


def both(path: Path, selection: Selection) -> np.ndarray:
    """The pixels as they are read at once, which windows must equal."""
    pixels = read_selection(path, selection).pixels
    with open_microscopy_image(path, selection) as image:
        assert (image.pixels.shape, image.pixels.dtype) == (pixels.shape, pixels.dtype)
        np.testing.assert_array_equal(image.pixels[3:7, 2:9], pixels[3:7, 2:9])
    return pixels


def test_channels_by_name(ome: Path) -> None:
    place = {"T": 1, "Z": 2}
    for channel, index in (("DAPI", 0), ("GFP", 1), ("gfp", 1), (1, 1)):
        np.testing.assert_array_equal(both(ome, Selection(plane=place, channels=[channel])), STACK[1, 2, index])
    colours = both(ome, Selection(plane=place, channels=["GFP", 0, "GFP"]))
    np.testing.assert_array_equal(colours, np.moveaxis(STACK[1, 2, [1, 0, 1]], 0, 2))
    for channels, words in (
        (["RFP"], r"no channel 'RFP' \(--channels RFP\): its channels are 0 DAPI, 1 GFP"),
        ([2], "no channel 2: it has 2, from 0 to 1"),
        (None, r"2 channels \(DAPI, GFP\); choose one by number or name \(--channels DAPI\)"),
    ):
        with pytest.raises(InputError, match=words):
            read_microscopy_image(ome, plane=place, channels=channels)


def test_a_name_of_digits_and_equal_names(tmp_path: Path) -> None:
    for names, file in ((["405", "488"], "digits.ome.tif"), (["A", "A"], "equal.ome.tif")):
        metadata = {"axes": "CYX", "Channel": {"Name": names}}
        tifffile.imwrite(tmp_path / file, STACK[0, 0], metadata=metadata, photometric="minisblack")
    np.testing.assert_array_equal(both(tmp_path / "digits.ome.tif", Selection(channels=[488])), STACK[0, 0, 1])
    with pytest.raises(InputError, match="2 channels are called A; give a number"):
        read_microscopy_image(tmp_path / "equal.ome.tif", channels=["A"])
    with open_scene(tmp_path / "equal.ome.tif") as scene:
        assert scene.names_of_channels(Selection()) == ["A_0", "A_1"]
    tifffile.imwrite(tmp_path / "plain.tif", STACK[0, 0, 0])
    with pytest.raises(InputError, match="does not name its channels, give numbers from 0"):
        read_microscopy_image(tmp_path / "plain.tif", channels=["A"])


def test_projection(ome: Path) -> None:
    chosen = Selection(plane={"T": 1}, channels=["GFP"], project="max")
    np.testing.assert_array_equal(both(ome, chosen), STACK[1, :, 1].max(axis=0))
    for plane, words in (
        (None, "a stack of 2 planes"),
        ({"T": 0, "Z": 1}, "Z is projected; leave Z out of --plane"),
        (1, "name the axes that are not projected"),
        ({"T": 5}, "no plane T=5"),
    ):
        with pytest.raises(InputError, match=words):
            read_selection(ome, Selection(plane=plane, channels=[0], project="max"))


def test_projection_along_the_only_axis(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((6, 7), value, np.uint8)) for value in (3, 200, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    tifffile.imwrite(tmp_path / "times.tif", STACK[:, 0, 0], imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "one.tif", STACK[0, 0, 0])
    chosen = Selection(project="max")
    assert (read_selection(tmp_path / "a.gif", chosen).pixels == 200).all()
    np.testing.assert_array_equal(both(tmp_path / "times.tif", chosen), STACK[:, 0, 0].max(axis=0))
    with pytest.raises(InputError, match="nothing to project: it is a single plane"):
        read_selection(tmp_path / "one.tif", chosen)


def test_every_plane(ome: Path) -> None:
    with open_scene(ome) as scene:
        planes = scene.planes(Selection(channels=[0]))
        assert planes == [{"T": t, "Z": z} for t in range(2) for z in range(3)]
        assert scene.planes(Selection(channels=[0], project="max")) == [{"T": 0}, {"T": 1}]
    for plane in planes:
        pixels = read_selection(ome, Selection(plane=plane, channels=[0])).pixels
        np.testing.assert_array_equal(pixels, STACK[plane["T"], plane["Z"], 0])


@pytest.mark.parametrize(("shape", "names"), [((9, 8), ["0"]), ((9, 8, 3), ["red", "green", "blue"])])
def test_every_channel_of_pictures(tmp_path: Path, shape: tuple[int, ...], names: list[str]) -> None:
    values = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", values)
    for file in ("a.png", "a.tif"):
        image = read_selection(tmp_path / file, Selection(), every_channel=True)
        assert list(image.channel_names) == names
        np.testing.assert_array_equal(image.channels, values.reshape(9, 8, len(names)))


def test_every_channel_of_the_plane(ome: Path) -> None:
    for project in (None, "max"):
        plane = {"T": 0} if project else {"T": 0, "Z": 1}
        chosen = Selection(plane=plane, channels=["GFP"], project=project)
        image = read_selection(ome, chosen, every_channel=True)
        expected = STACK[0].max(axis=0) if project else STACK[0, 1]
        np.testing.assert_array_equal(image.channels, np.moveaxis(expected, 0, 2))
        assert image.channel_names == ("DAPI", "GFP")
        with open_microscopy_image(ome, chosen, every_channel=True) as opened:
            assert opened.channels is not None
            np.testing.assert_array_equal(opened.channels[2:5, 1:4], image.channels[2:5, 1:4])


def test_the_channel_of_a_stack(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, :, 0], imagej=True, metadata={"axes": "ZYX"})
    image = read_selection(tmp_path / "a.tif", Selection(plane=1), every_channel=True)
    np.testing.assert_array_equal(image.channels, STACK[0, 1, 0][..., None])
    assert image.channel_names == ("0",)


def test_several_images(tmp_path: Path) -> None:
    path = tmp_path / "several.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for name, part, size in (("first", STACK[0, 0, 0], 0.5), ("second", STACK[0, 0, 1, :9, :8], 2.0)):
            scale: dict[str, Any] = {"Name": name, "PhysicalSizeX": size, "PhysicalSizeY": size}
            tiff.write(part, metadata=scale, photometric="minisblack")
    assert scene_names(path) == ["first", "second"]
    for scene in (1, "second"):
        image = read_selection(path, Selection(scene=scene))
        np.testing.assert_array_equal(image.pixels, STACK[0, 0, 1, :9, :8])
        assert image.pixel_size == (2.0, 2.0)
    with pytest.raises(InputError, match=r"no image third \(--scene third\): it has 2, from 0 to 1 \(0 first, 1 sec"):
        read_selection(path, Selection(scene="third"))
    with tifffile.TiffWriter(tmp_path / "two.tif") as tiff:
        tiff.write(STACK[0, 0, 0])
        tiff.write(STACK[0, 0, 1].T)
    with pytest.raises(InputError, match=r"contains 2 images .*choose one \(--scene 0\) or all \(--scene all\)"):
        read_microscopy_image(tmp_path / "two.tif")
    np.testing.assert_array_equal(both(tmp_path / "two.tif", Selection(scene=1)), STACK[0, 0, 1].T)


def pyramid(path: Path, **tags: Any) -> np.ndarray:
    """A pyramid of three levels as slide scanners write them: half and a quarter of the size in pages below the first
    (OME) or after it (SVS)."""
    pixels = np.random.default_rng(2).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    if path.name.endswith(".ome.tif"):
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(pixels, subifds=2, tile=(32, 32), photometric="rgb", metadata=tags)
            for step in (2, 4):
                tiff.write(pixels[::step, ::step], subfiletype=1, tile=(32, 32), photometric="rgb")
        return pixels
    with tifffile.TiffWriter(path) as tiff:
        description = "Aperio Image Library\r\n160x128 |AppMag = 20|MPP = 0.5"
        for step in (1, 2, 4):
            if step == 2:  # the second page of a slide is its thumbnail
                tiff.write(pixels[::8, ::8], photometric="rgb", description="Aperio Image Library", metadata=None)
            shown = description if step == 1 else f"Aperio Image Library\r\n160x128 -> {160 // step}x{128 // step}"
            tiff.write(pixels[::step, ::step], tile=(32, 32), photometric="rgb", description=shown, metadata=None)
    return pixels


@pytest.mark.parametrize("name", ["slide.ome.tif", "slide.svs"])
def test_level_of_a_pyramid(tmp_path: Path, name: str) -> None:
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    pixels = pyramid(tmp_path / name, **sizes)
    for level, step in ((None, 1), (0.2, 1), (0.6, 1), (0.9, 2), (2.0, 4), (50.0, 4)):
        chosen = Selection(level=level)
        np.testing.assert_array_equal(both(tmp_path / name, chosen), pixels[::step, ::step])
        assert read_selection(tmp_path / name, chosen).pixel_size == (0.5 * step, 0.5 * step)


def test_level_without_a_pixel_size(tmp_path: Path) -> None:
    pyramid(tmp_path / "slide.ome.tif")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="does not state the size of its pixels, which --level needs"):
        read_selection(tmp_path / "slide.ome.tif", Selection(level=1.0))
    with pytest.raises(InputError, match="is no pyramid; leave --level out"):
        read_selection(tmp_path / "a.png", Selection(level=1.0))
