"""Windows of files are those of the whole image; percentiles are numpy's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from pffnet_d2.errors import InputError
from pffnet_d2.imaging import lazy as regions
from pffnet_d2.imaging.lazy import limits, open_microscopy_image, percentiles
from pffnet_d2.imaging.microscopy import read_microscopy_image
from pffnet_d2.imaging.normalisation import STRETCH, normalisation_of, to_rgb8

GREY = np.random.default_rng(0).integers(0, 60_000, (90, 130)).astype(np.uint16)
COLOUR = np.random.default_rng(1).integers(0, 255, (90, 130, 3)).astype(np.uint8)
WINDOWS = [(0, 90, 0, 130), (0, 1, 0, 1), (17, 64, 31, 130), (89, 90, 129, 130), (20, 20, 5, 9)]


@pytest.mark.parametrize(
    ("pixels", "how"),
    [
        (GREY, {}),
        (GREY, {"byteorder": ">"}),
        (GREY, {"bigtiff": True, "tile": (32, 48)}),
        (GREY, {"rowsperstrip": 7, "compression": "zlib"}),
        (GREY, {"tile": (16, 16), "compression": "zlib", "predictor": True}),
        (COLOUR, {"photometric": "rgb"}),
        (COLOUR, {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}),
        (np.moveaxis(COLOUR, 2, 0), {"photometric": "rgb", "planarconfig": "separate", "tile": (32, 64)}),
        (GREY.astype(np.float32) / 7, {"tile": (48, 32)}),
    ],
)
def test_windows_are_those_of_the_whole(tmp_path: Path, pixels: np.ndarray, how: dict[str, Any]) -> None:
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, **how)
    whole = read_microscopy_image(path).pixels
    with open_microscopy_image(path) as image:
        assert tuple(image.pixels.shape) == whole.shape
        assert image.pixels.dtype == whole.dtype
        for y0, y1, x0, x1 in WINDOWS:
            np.testing.assert_array_equal(image.pixels[y0:y1, x0:x1], whole[y0:y1, x0:x1])


def test_a_plane_and_channels_of_a_stack(tmp_path: Path) -> None:
    stack = np.random.default_rng(2).integers(0, 999, (3, 2, 40, 50)).astype(np.uint16)
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, stack, metadata={"axes": "ZCYX"})
    with open_microscopy_image(path, plane={"Z": 2}, channels=[1]) as image:
        np.testing.assert_array_equal(image.pixels[5:30, 10:20], stack[2, 1, 5:30, 10:20])
    with pytest.raises(InputError, match="Z"), open_microscopy_image(path, channels=[0]):
        pass


@pytest.mark.parametrize("how", [{}, {"tile": (32, 32)}, {"compression": "zlib", "rowsperstrip": 8}])
def test_a_file_that_was_cut_off_is_named_before_hours_of_work(tmp_path: Path, how: dict[str, Any]) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, GREY, **how)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=r"cut\.tif"), open_microscopy_image(path) as image:
        image.pixels[0:90, 0:130]


@given(
    st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "i8"]),
    st.integers(0, 2**32 - 1),
    st.floats(0, 100),
)
def test_percentiles_are_numpys(kind: str, seed: int, percent: float) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 60, 2))
    if kind[0] == "f":
        values = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 6)).astype(kind)
    else:
        limits = np.iinfo(kind)
        spread = int(rng.integers(1, 64))
        low = max(limits.min, -(2**spread) // 2) if kind[0] == "i" else 0
        values = rng.integers(low, min(limits.max, low + 2**spread - 1), shape, endpoint=True).astype(kind)
    expected = np.percentile(values, percent) + (128 if kind == "i1" else 0)  # signed bytes are read as unsigned ones
    assert percentiles(values, [percent])[0] == pytest.approx(float(expected), rel=1e-6 if kind == "f4" else 1e-12)


def test_percentiles_of_many_blocks_and_of_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_BLOCK", (16, 32))
    assert percentiles(GREY, [0.1, 99.9]) == pytest.approx(np.percentile(GREY, [0.1, 99.9]).tolist())
    rgba = np.dstack([COLOUR, np.full((90, 130), 255, np.uint8)])
    assert percentiles(rgba, [50]) == [np.percentile(COLOUR, 50)]


@pytest.mark.parametrize("background", [40, 200], ids=["dark", "bright"])
@pytest.mark.parametrize("colour", [0, 60], ids=["grey", "coloured"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_limits_are_those_of_the_whole(
    background: int, colour: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are normalised as the whole image is, whether it looks like stained tissue or not."""
    monkeypatch.setattr(regions, "_BLOCK", (16, 20))
    pixels = np.random.default_rng(5).integers(background - 30, background + 30, (50, 70, 1)).astype(np.uint8)
    pixels = np.repeat(pixels, channels, axis=2)
    pixels[:25, :, 0] -= np.minimum(pixels[:25, :, 0], colour)
    rule = normalisation_of(pixels[:1, :1], STRETCH)
    found = limits(pixels, rule, "image")
    whole = to_rgb8(pixels, STRETCH)
    np.testing.assert_array_equal(to_rgb8(pixels[10:30, 20:60], rule, found), whole[10:30, 20:60])
    assert (found == (0, 255)) == (channels >= 3 and colour > 0 and background > 100)


def test_values_that_are_not_finite_are_named() -> None:
    with pytest.raises(InputError, match=r"plate\.tif"):
        percentiles(np.array([[1.0, np.nan]]), [50], "plate.tif")


# Kilobytes of peak memory before and after reading each file window by window, at most 16 MiB of tiles being kept.
PEAK = """
import re, sys
from pathlib import Path

from pffnet_d2.imaging import tiff
from pffnet_d2.imaging.lazy import open_microscopy_image

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

tiff._CACHE = 2**24
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of importing
print(peak())
for name in sys.argv[1:]:
    with open_microscopy_image(Path(name)) as image:
        for y in range(0, 8192, 1024):
            for x in range(0, 8192, 1024):
                assert image.pixels[y : y + 1024, x : x + 1024].shape == (1024, 1024)
    print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_far_below_the_image(tmp_path: Path) -> None:
    """Of a single strip, of strips and of tiles, 128 MiB of pixels each."""
    layouts: dict[str, dict[str, Any]] = {
        "single strip.tif": {"rowsperstrip": 8192},
        "strips.tif": {"rowsperstrip": 64, "compression": "zlib"},
        "tiles.tif": {"tile": (256, 256), "compression": "zlib"},
    }
    for name, how in layouts.items():
        tifffile.imwrite(tmp_path / name, np.zeros((8192, 8192), np.uint16), **how)
    run = [sys.executable, "-c", PEAK, *(str(tmp_path / name) for name in layouts)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    before, *peaks = map(int, done.stdout.split())
    for name, peak in zip(layouts, peaks, strict=True):
        assert peak - before < 40 * 1024, name
