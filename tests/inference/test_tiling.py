"""Stitched tiles of a truth are that truth; where tiles disagree; large objects; what a large run leaves behind."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pffnet_d2.atomic_write import locked
from pffnet_d2.errors import InputError
from pffnet_d2.inference import tiling
from pffnet_d2.inference.tiling import Found, Tiles, View, overlap_for, stitch
from pffnet_d2.visualization.overlay import overlay

STREAMED = ("label-tiff", "geojson", "csv", "overlay")
Labels = NDArray[np.int32]


def objects(shape: tuple[int, int], largest: int, seed: int, count: int = 150) -> Labels:
    """Connected objects, boxes and corners of boxes, of at most ``largest`` pixels a side; many touch."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.int32)
    for label in range(1, count + 1):
        h, w = np.minimum(rng.integers(1, largest + 1, 2), shape)
        y, x = (int(rng.integers(n - side + 1)) for n, side in zip(shape, (h, w), strict=True))
        place = truth[y : y + h, x : x + w]
        if not place.any():
            place[...] = label
            if rng.random() < 0.5:
                place[: h // 2, : w // 2] = 0
    return truth


def seen(truth: Labels, tiles: Tiles) -> Callable[[int], View]:
    """The truth inside each tile, with ids of its own; the score of an object is its label in the truth."""
    boxes = tiles.boxes()

    def view(index: int) -> View:
        y0, x0, y1, x1 = boxes[index]
        part = truth[y0:y1, x0:x1]
        there = np.unique(part[part > 0])
        own = np.where(part > 0, np.searchsorted(there, part) + 1, 0).astype(np.int32)
        return View(own, {"score": there.astype(np.float32)})

    return view


def stitched(truth: Labels, tile: int, overlap: int) -> tuple[Labels, list[Found]]:
    tiles, found = Tiles(truth.shape, tile, overlap), list[Found]()
    return np.concatenate(list(stitch(tiles, seen(truth, tiles), found.append))), found


def same(one: Labels, other: Labels) -> bool:
    """Up to ids."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs) and ((one > 0) == (other > 0)).all()


# --- The grid -------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 500), steps=st.integers(2, 24), step=st.integers(1, 4), data=st.data())
def test_tiles_cover_the_image_and_overlap_enough(length: int, steps: int, step: int, data: st.DataObject) -> None:
    tile = steps * step
    overlap = data.draw(st.integers(1, tile - 1))
    spans = Tiles((length, 1), tile, overlap, step).rows
    assert (spans[0][0], spans[-1][1]) == (0, length)
    (size,) = {stop - start for start, stop in spans}
    assert size == length if len(spans) == 1 else size <= tile and size % step == 0
    # A step smaller, so many could not cover it.
    assert len(spans) == 1 or len(spans) * (size - step) - (len(spans) - 1) * overlap < length
    for (start, stop), (following, end) in itertools.pairwise(spans):
        assert start < following <= stop - overlap
        assert end > stop
    # With one tile less they could not.
    assert len(spans) == 1 or overlap + (len(spans) - 1) * (tile - overlap) < length


def test_tiles_that_cannot_be() -> None:
    for overlap in (0, 64, 100):
        with pytest.raises(InputError, match="tiles of 64 pixels cannot overlap by"):
            Tiles((500, 500), 64, overlap)


def test_overlap_from_sizes() -> None:
    assert overlap_for([30] * 200 + [300], 1024) == 48  # 45, and the largest hundredth does not count
    assert overlap_for([30] * 50 + [300], 1024) == 464
    assert overlap_for([300], 256) == 128
    assert overlap_for([3], 1024) == 32
    assert overlap_for([], 1024) == 128
    assert overlap_for([], 100) == 50


# --- Nothing cut, doubled or lost -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    tile=st.integers(12, 80),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_objects_up_to_the_overlap_come_out_as_they_are(
    shape: tuple[int, int], tile: int, seed: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(1, tile * 2 // 3))
    truth = objects(shape, data.draw(st.integers(1, overlap)), seed)
    out, found = stitched(truth, tile, overlap)
    assert same(out, truth)
    assert sorted(np.unique(out[out > 0])) == list(range(1, sum(len(some.boxes) for some in found) + 1))
    for some in found:
        for i, box in enumerate(some.boxes.tolist()):
            ys, xs = np.nonzero(out == some.first + i)
            assert box == [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
            assert some.scores["score"][i] == truth[ys[0], xs[0]]
            window = some.labels[box[0] - some.origin[0] : box[2] - some.origin[0]]
            assert (window == i + 1).sum() == len(ys)


@pytest.mark.parametrize("tile", [48, 64, 96])
@pytest.mark.parametrize("overlap", [13, 16, 31])
def test_a_grid_of_tiles_and_overlaps(tile: int, overlap: int) -> None:
    truth = objects((301, 257), overlap, seed=tile, count=800)
    assert len(np.unique(truth)) > 100
    out, _ = stitched(truth, tile, overlap)
    assert same(out, truth)


def test_one_tile() -> None:
    truth = objects((40, 60), 30, seed=1)
    out, _ = stitched(truth, 64, 8)
    assert same(out, truth)
    empty, found = stitched(np.zeros((200, 100), np.int32), 64, 8)
    assert empty.shape == (200, 100)
    assert not empty.any()
    assert not any(len(some.boxes) for some in found)


@pytest.mark.slow
def test_more_pixels_than_32_bits_count() -> None:
    """4.9 billion pixels: half a minute and 1.5 GB, for one row of tiles."""
    side, corners = 70_000, [(5, 5), (35_000, 35_000), (69_970, 3), (69_960, 69_960)]
    tiles = Tiles((side, side), 2048, 64, 32)
    boxes = tiles.boxes()
    blank = np.zeros((boxes[0][2] - boxes[0][0], boxes[0][3] - boxes[0][1]), np.int32)

    def view(index: int) -> View:
        top, left, bottom, right = boxes[index]
        labels = blank
        for y, x in corners:
            if top < y + 20 and y < bottom and left < x + 20 and x < right:
                labels = labels.copy()
                labels[max(y - top, 0) : y + 20 - top, max(x - left, 0) : x + 20 - left] = labels.max() + 1
        return View(labels)

    found: list[Found] = []
    pixels = sum(int(np.count_nonzero(rows)) for rows in stitch(tiles, view, found.append))
    assert pixels == 4 * 400
    assert [some.first for some in found] == [1, 2, 3, 4]
    assert [tuple(some.boxes[0]) for some in found] == [(y, x, y + 20, x + 20) for y, x in corners]


def row_of_two(first: dict[int, tuple[int, int]], second: dict[int, tuple[int, int]]) -> Labels:
    """Row 0 of what two tiles, columns 0..63 and 32..95, make of objects over some columns; the core ends at 48."""
    tiles = Tiles((8, 96), 64, 32)
    assert tiles.boxes() == [(0, 0, 8, 64), (0, 32, 8, 96)]

    def view(index: int) -> View:
        labels = np.zeros((8, 96), np.int32)
        for label, (start, stop) in (first, second)[index].items():
            labels[:, start:stop] = label
        return View(labels[:, (0, 32)[index] : (64, 96)[index]])

    return np.concatenate(list(stitch(tiles, view)))[0]


def runs(row: Labels) -> list[tuple[int, int, int]]:
    """(label, start, stop) of what is in a row."""
    edges = np.flatnonzero(np.diff(row, prepend=-1, append=-1)).tolist()
    return [(int(row[a]), a, b) for a, b in itertools.pairwise(edges) if row[a]]


def test_tiles_that_see_an_object_differently() -> None:
    # Each sees the middle in its own core: the earlier one's counts.
    assert runs(row_of_two({1: (40, 54)}, {1: (42, 56)})) == [(1, 40, 54)]
    # Each sees it in the other's core: not lost.
    assert runs(row_of_two({1: (42, 56)}, {1: (40, 54)})) == [(1, 40, 54)]
    # Only the tile in whose core it is counts.
    assert runs(row_of_two({1: (50, 56)}, {})) == []
    assert runs(row_of_two({}, {1: (40, 46)})) == []
    assert runs(row_of_two({1: (40, 46)}, {})) == [(1, 40, 46)]
    # One in the first tile's eyes, two in the second's: neither doubled nor lost.
    assert runs(row_of_two({1: (36, 62)}, {1: (36, 48), 2: (48, 62)})) == [(1, 36, 48), (2, 48, 62)]
    assert runs(row_of_two({1: (36, 58)}, {1: (36, 46), 2: (46, 58)})) == [(1, 36, 58)]
    # Two beside each other, seen with a border a bit apart: the pixels go to the earlier one.
    assert runs(row_of_two({1: (40, 50), 2: (50, 60)}, {1: (40, 49), 2: (49, 60)})) == [(1, 40, 50), (2, 50, 60)]


def test_objects_larger_than_the_overlap() -> None:
    # Cut by both tiles; they agree where both see it.
    assert runs(row_of_two({1: (20, 64)}, {1: (32, 90)})) == [(1, 20, 90)]
    # Whole in the second tile only.
    assert runs(row_of_two({1: (34, 64)}, {1: (34, 80)})) == [(1, 34, 80)]
    # They do not agree: two objects, no pixel twice.
    assert runs(row_of_two({1: (10, 64)}, {1: (54, 90)})) == [(1, 10, 64), (2, 64, 90)]
    # Over many tiles both ways.
    truth = np.zeros((300, 280), np.int32)
    truth[20:290, 100:140] = 1
    truth[150:180, 5:275] = 1
    truth[5:15, 5:15] = 2
    out, found = stitched(truth, 64, 24)
    assert same(out, truth)
    assert [5, 5, 15, 15] in [box for some in found for box in some.boxes.tolist()]


def test_rows_leave_when_no_tile_can_reach_them(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    extend = tiling._Canvas.extend
    monkeypatch.setattr(
        tiling._Canvas, "extend", lambda self, stop: (extend(self, stop), held.append(len(self.pixels)))[0]
    )
    truth = objects((2000, 40), 12, seed=0, count=1500)
    out, _ = stitched(truth, 64, 16)
    assert same(out, truth)
    assert max(held) <= 64 + 12


def test_ids_end() -> None:
    canvas = tiling._Canvas(Tiles((8, 8), 8, 4))
    canvas.finished = tiling.LIMIT - 1
    canvas.extend(8)
    labels = np.zeros((8, 8), np.int32)
    labels[1:3, 1:3], labels[5:7, 5:7] = 1, 2
    canvas.lay(0, 0, View(labels))
    with pytest.raises(InputError, match="more than 2,147,483,647 objects"):
        canvas.finish(0, 0)


# --- A run: files, formats, resuming ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    label_map: Labels
    scores: dict[str, NDArray[Any]]
    capped: tuple[str, ...] = ()


@dataclass
class Threshold:
    """Finds what is brighter than half; ends the run before the tile of a number, as a kill would."""

    dies_at: int = -1
    asked: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, images: list[NDArray[np.uint8]]) -> list[Seen]:
        out = []
        for image in images:
            if self.asked == self.dies_at:
                raise KeyboardInterrupt
            self.asked += 1
            self.sizes.append(image.shape[:2])
            labels, n = ndimage.label(image[:, :, 0] > 127)
            out.append(Seen(labels.astype(np.int32), {"score": np.full(n, 0.5, np.float32)}))
        return out


@pytest.fixture
def large() -> Any:
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from pffnet_d2.inference import large

    return large


@pytest.fixture
def spots() -> NDArray[np.uint16]:
    """Spots of up to 20 pixels a side that do not touch, 16 bit."""
    rng = np.random.default_rng(5)
    image = rng.integers(90, 110, (300, 410)).astype(np.uint16)
    for y in range(3, 275, 25):
        for x in range(3, 385, 25):
            h, w = rng.integers(5, 21, 2)
            image[y : y + h, x : x + w] = 1000 + rng.integers(50)
    return image


def test_an_array_and_a_file_in_all_formats(large: Any, spots: NDArray[np.uint16], tmp_path: Path) -> None:
    truth, n = ndimage.label(spots > 500)
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        spots,
        tile=(64, 64),
        compression="zlib",
        metadata={"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )
    model = large.Model(Threshold(), "m", stride=32)
    plan = large.Plan(tmp_path / "out", "a", 128, 24, STREAMED)
    done = large.predict_large(model, tmp_path / "a.ome.tif", plan)
    assert (done.shape, done.objects, done.tiles, done.predicted) == (spots.shape, n, 12, 12)
    assert (done.larger, done.warnings()) == ([], [])
    written = ["a.csv", "a.geojson", "a_labels.tif", "a_overlay.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == written
    with tifffile.TiffFile(done.files["label-tiff"]) as tiff:
        page = tiff.pages.first
        assert (tiff.is_bigtiff, page.is_tiled, page.dtype) == (True, True, np.uint32)
        assert page.tags["XResolution"].value == (20000, 1)
        labels = tiff.asarray()
    assert same(labels.astype(np.int32), truth.astype(np.int32))
    features = json.loads(done.files["geojson"].read_text())["features"]
    with open(done.files["csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [f["properties"]["name"] for f in features] == [r["label"] for r in rows] == [str(i + 1) for i in range(n)]
    for i, box in enumerate(ndimage.find_objects(labels.astype(np.int32))):
        x, y = np.array(features[i]["geometry"]["coordinates"][0]).T
        assert (x.min(), y.min(), x.max(), y.max()) == (box[1].start, box[0].start, box[1].stop, box[0].stop)
        inside = labels == i + 1
        assert float(rows[i]["area_um2"]) == pytest.approx(inside.sum() / 4)
        assert float(rows[i]["intensity_mean"]) == pytest.approx(spots[inside].mean(), rel=1e-5)
        assert float(rows[i]["centroid_x"]) == pytest.approx(np.nonzero(inside)[1].mean() + 0.5, rel=1e-5)
        assert int(rows[i]["bbox_y"]) == box[0].start

    class Lazy:
        """Nothing but a shape, a kind and slices."""

        shape, dtype = spots.shape, spots.dtype

        def __getitem__(self, key: tuple[slice, slice]) -> list[list[int]]:
            return spots[key]

    shown = large.to_rgb8(spots, large.AUTO)
    assert (np.asarray(Image.open(done.files["overlay"])) == overlay(shown, labels)).all()

    plan = large.Plan(tmp_path / "lazy", "a", 128, 24, ("label-tiff",))
    lazy = large.predict_large(model, Lazy(), plan)
    assert (tifffile.imread(lazy.files["label-tiff"]) == labels).all()


def test_limits_are_those_of_the_whole_image(large: Any, tmp_path: Path) -> None:
    """A dark corner stays dark: by its own percentiles, its noise would be found."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 40, (128, 128)).astype(np.float32)
    image[80:100, 80:100] = 1000
    plan = large.Plan(tmp_path, "a", 64, 24, STREAMED)  # most tiles finish nothing to write
    done = large.predict_large(large.Model(Threshold(), "m"), image, plan)
    assert done.objects == len(json.loads(done.files["geojson"].read_text())["features"]) == 1


def test_a_model_for_other_images_says_so(large: Any, tmp_path: Path) -> None:
    """From all over the image: its first tile alone is dark. A run that goes on says what the first said."""
    image = np.full((300, 400), 200, np.uint8)
    image[:100, :100] = 0

    def doubt(rgb: NDArray[np.uint8]) -> str:
        return "too bright" if np.median(rgb) > 64 else ""

    def predict(name: str, shown: NDArray[np.uint8], dies_at: int = -1) -> Any:
        model = large.Model(Threshold(dies_at), "m", stride=32, doubt=doubt)
        return large.predict_large(model, shown, large.Plan(tmp_path, name, 128, 32))

    assert predict("bright", image).warnings()[0] == "too bright"
    assert predict("dark", 255 - image).doubt == ""
    with pytest.raises(KeyboardInterrupt):
        predict("killed", image, dies_at=3)
    assert predict("killed", image).doubt == "too bright"


def test_auto_overlap_and_objects_beyond_it(large: Any, spots: NDArray[np.uint16], tmp_path: Path) -> None:
    model = large.Model(Threshold(), "m", stride=32)
    done = large.predict_large(model, spots, large.Plan(tmp_path, "a", 128))
    assert done.overlap == 32  # of spots of at most 20 pixels
    spots[100:110, 20:300] = 1000
    done = large.predict_large(model, spots, large.Plan(tmp_path, "b", 128, 32))
    labels = tifffile.imread(done.files["label-tiff"])
    (label, box), *_ = done.larger
    assert label == labels[105, 150]
    assert box[1] <= 20
    assert box[3] >= 300
    assert f"larger than the overlap of 32 pixels and may be cut where tiles meet: {label} (x " in done.warnings()[0]


@pytest.mark.parametrize("dies_at", [0, 1, 7, 11])
def test_a_killed_run_goes_on(large: Any, spots: NDArray[np.uint16], tmp_path: Path, dies_at: int) -> None:
    def plan(out: str, **other: Any) -> Any:
        return large.Plan(tmp_path / out, "a", 128, 24, STREAMED, **other)

    whole = large.predict_large(large.Model(Threshold(), "m"), spots, plan("whole"))
    with pytest.raises(KeyboardInterrupt):
        large.predict_large(large.Model(Threshold(dies_at), "m"), spots, plan("killed"))
    folder = tmp_path / "killed" / "a.tiles"
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["a.tiles"]
    (folder / ".a.csv.123.partial").write_text("left by a kill")
    if dies_at > 1:
        (folder / "00000001.npz").write_bytes((folder / "00000001.npz").read_bytes()[:100])

    for image, model, other in (
        (spots[:, :-1], "m", {}),
        (spots + np.uint16(1), "m", {}),
        (spots, "another", {}),
        (spots, "m", {"batch": 2}),
    ):
        with pytest.raises(InputError, match=r"a\.tiles: holds tiles of another run \((image|model|batch) differ\)"):
            large.predict_large(large.Model(Threshold(), model), image, plan("killed", **other))

    rest = Threshold()
    resumed = large.predict_large(large.Model(rest, "m"), spots, plan("killed"))
    assert rest.asked == resumed.predicted == 12 - dies_at + (dies_at > 1)
    assert not folder.exists()
    for name, path in whole.files.items():
        assert path.read_bytes() == resumed.files[name].read_bytes(), name


def one_pixel(path: Path, image: NDArray[np.uint16], y: int, x: int) -> None:
    """Changes a pixel of a file, and nothing of what the folder says about it."""
    status = path.stat()
    changed = image.copy()
    changed[y, x] ^= 1
    tifffile.imwrite(path, changed)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_tiles_belong_to_every_byte_of_a_file(large: Any, spots: NDArray[np.uint16], tmp_path: Path) -> None:
    """A pixel anywhere, also where size and times stay; a copy of the same bytes elsewhere is the same image."""
    path, plan = tmp_path / "a.tif", large.Plan(tmp_path / "out", "a", 128, 24)
    tifffile.imwrite(path, spots)
    with pytest.raises(KeyboardInterrupt):
        large.predict_large(large.Model(Threshold(5), "m"), path, plan)
    for y, x in ((150, 200), (0, 0), (299, 409), (7, 311)):
        one_pixel(path, spots, y, x)
        with pytest.raises(InputError, match=r"a\.tiles: holds tiles of another run \(image differ\)"):
            large.predict_large(large.Model(Threshold(), "m"), path, plan)
    tifffile.imwrite(tmp_path / "copy.tif", spots)
    assert large.predict_large(large.Model(Threshold(), "m"), tmp_path / "copy.tif", plan).predicted == 12 - 5


def test_tiles_belong_to_every_value_of_an_array(large: Any, spots: NDArray[np.uint16], tmp_path: Path) -> None:
    """A memory map as well as an array; the order of its bytes in memory does not matter."""
    plan = large.Plan(tmp_path / "out", "a", 128, 24)
    with pytest.raises(KeyboardInterrupt):
        large.predict_large(large.Model(Threshold(5), "m"), spots, plan)
    mapped = np.memmap(tmp_path / "a.raw", np.uint16, "w+", shape=spots.shape)
    mapped[:] = spots
    for y, x in ((150, 200), (0, 0), (299, 409)):
        mapped[y, x] ^= 1
        with pytest.raises(InputError, match=r"another run \(image differ\)"):
            large.predict_large(large.Model(Threshold(), "m"), mapped, plan)
        mapped[y, x] ^= 1
    assert large.predict_large(large.Model(Threshold(), "m"), np.asfortranarray(mapped), plan).predicted == 12 - 5


def test_another_plane_or_channel_is_another_run(large: Any, spots: NDArray[np.uint16], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([spots, spots]), metadata={"axes": "ZYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", np.stack([spots, spots]), metadata={"axes": "CYX"}, ome=True)

    def predict(name: str, dies_at: int = -1, **other: Any) -> Any:
        plan = large.Plan(tmp_path / "out", name, 128, 24, **other)
        return large.predict_large(large.Model(Threshold(dies_at), "m"), tmp_path / f"{name}.tif", plan)

    with pytest.raises(KeyboardInterrupt):
        predict("a", 3, plane={"Z": 0})
    with pytest.raises(InputError, match=r"another run \(plane differ\)"):
        predict("a", plane={"Z": 1})
    assert predict("a", plane={"Z": 0}).predicted == 12 - 3
    with pytest.raises(KeyboardInterrupt):
        predict("b", 3, channels=[0])
    with pytest.raises(InputError, match=r"another run \(channels differ\)"):
        predict("b", channels=[1])
    assert predict("b", channels=(0,)).predicted == 12 - 3


def test_a_file_that_changes_while_it_is_predicted(large: Any, spots: NDArray[np.uint16], tmp_path: Path) -> None:
    """Nothing is written of a mixture."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, spots)
    predict = Threshold()

    def acquire(images: list[NDArray[np.uint8]]) -> list[Seen]:
        if predict.asked == 6:
            tifffile.imwrite(path, spots + np.uint16(1))
        return predict(images)

    with pytest.raises(InputError, match=r"a\.tif: was changed while it was predicted; predict it again"):
        large.predict_large(large.Model(acquire, "m"), path, large.Plan(tmp_path / "out", "a", 128, 24))
    assert list((tmp_path / "out").iterdir()) == []


def test_one_run_at_a_time_makes_a_result(large: Any, spots: NDArray[np.uint16], tmp_path: Path) -> None:
    """The other says which; images beside it are predicted meanwhile."""

    def predict(name: str) -> Any:
        return large.predict_large(large.Model(Threshold(), "m"), spots, large.Plan(tmp_path, name, 128, 24))

    with locked(tmp_path / "a"):
        with pytest.raises(InputError, match=rf"a: process {os.getpid()} on \S+, since .*, is writing it; wait until"):
            predict("a")
        predict("b")
    predict("a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_labels.tif", "b_labels.tif"]


def test_killed_while_the_tiles_are_removed(
    large: Any, spots: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = large.Plan(tmp_path, "a", 128, 24)

    def kill(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(large.shutil, "rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        large.predict_large(large.Model(Threshold(), "m"), spots, plan)
    monkeypatch.undo()
    before = (tmp_path / "a_labels.tif").read_bytes()
    large.predict_large(large.Model(Threshold(), "m"), spots, plan)
    assert (tmp_path / "a_labels.tif").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a_labels.tif"]


def test_what_cannot_be(large: Any, spots: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = large.Model(Threshold(), "m", stride=32)

    def fails(words: str, image: Any = spots, **plan: Any) -> None:
        with pytest.raises(InputError, match=words) as error:
            large.predict_large(model, image, large.Plan(**{"out": tmp_path / "out", "name": "a", "tile": 128} | plan))
        assert "\n" not in str(error.value)
        assert not [p for p in tmp_path.rglob("*") if p.suffix in (".npz", ".json")]

    fails("tiles of 16 pixels: the network works in steps of 32 pixels; use a multiple of that, such as 256", tile=16)
    fails("tiles of 100 pixels: .* such as 256", tile=100)
    fails("tiles of 128 pixels cannot overlap by 128", overlap=128)
    fails("overlap wide: give pixels, or auto", overlap="wide")
    fails(
        "format coco is not written in tiles; with --tile choose from label-tiff,overlay,geojson,csv", formats=["coco"]
    )
    fails("batches of 0", batch=0)
    fails(r"shape \(3, 300, 410, 7\)", image=np.zeros((3, 300, 410, 7), np.uint8))
    fails("1 values are NaN", image=np.where(np.eye(300, 410), np.nan, 0.0)[:1])
    fails("no such file|cannot be read", image=tmp_path / "none.tif")
    (tmp_path / "file").touch()
    fails("file: cannot be written to", out=tmp_path / "file")
    tifffile.imwrite(tmp_path / "cut.tif", spots, tile=(64, 64), compression="zlib")
    data = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) - 500])
    fails(r"cut\.tif: cannot be read as an image; it is truncated", image=tmp_path / "cut.tif")
    (tmp_path / "out" / "a.tiles").mkdir(parents=True)
    (tmp_path / "out" / "a.tiles" / "mine.txt").touch()
    fails(r"a\.tiles: is no folder of tiles", overlap=24)
    (tmp_path / "out" / "a.tiles" / "mine.txt").unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        large.predict_large(model, spots, large.Plan(tmp_path / "out", "a", 128, 24))


def test_the_command(
    small_model: Any,
    tmp_path: Path,
    one_thread: None,
    leave_no_trace: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from pffnet_d2.cli.main import main

    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 255, (150, 180, 3)).astype(np.uint8), photometric="rgb")

    def predict(*arguments: object) -> int:
        model = ["--config", small_model.config, "--weights", small_model.weights, "--device", "cpu"]
        return main([str(a) for a in ["predict", tmp_path / "a.tif", *model, *arguments]])

    formats = ("--format", "label-tiff,geojson,csv")
    for processes in (1, 2):
        out = tmp_path / str(processes)
        tiles = ("--tile", 96, "--overlap", 32, "--processes", processes)
        assert predict("--out", out, *tiles, *formats) == 0
        assert sorted(p.name for p in out.iterdir()) == ["a.csv", "a.geojson", "a_labels.tif"]
        said = capfd.readouterr()
        assert "a.tif: 6 tiles of 96, overlap 32" in said.err
        assert "warning: " in said.err
        assert "in 6 tiles (at x 0, y 0, " in said.err
        assert "objects may be missing: " in said.err
        assert "1 of 1 images predicted" in said.out
    for name in ("a.csv", "a.geojson", "a_labels.tif"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert tifffile.imread(tmp_path / "1" / "a_labels.tif").any()

    for arguments, words in (
        (("--tile", 16), "tiles of 16 pixels: the network works in steps of 32"),
        (("--tile", 96, "--overlap", 96), "tiles of 96 pixels cannot overlap by 96"),
        (("--tile", 96, "--overlap", "much"), "--overlap much: give pixels, or auto"),
        (("--overlap", 32), "--overlap is that of tiles; give --tile too"),
        (("--tile", 96, "--format", "roi"), "format roi is not written in tiles"),
        (("--tile", 96, "--opts", "INPUT.MIN_SIZE_TEST", 300), "would resize every tile"),
    ):
        assert predict("--out", tmp_path / "none", *arguments) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("pffnet: error: ")
        assert words in line
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:5000])
    assert predict("--out", tmp_path / "none", "--tile", 96) == 2
    assert "a.tif: cannot be read as an image; it is truncated" in capfd.readouterr().err
