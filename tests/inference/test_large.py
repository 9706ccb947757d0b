"""A large image: files, formats, resuming, what a run leaves behind."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2.atomic_write import locked
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AUTO, Normalisation, to_rgb8
from pffnet_d2.inference import tile_folder
from pffnet_d2.inference.large import LargePrediction, TileModel, predict_large
from pffnet_d2.inference.options import ImageOptions
from pffnet_d2.visualization.overlay import overlay

STREAMED = ("label-tiff", "geojson", "csv", "overlay")
Labels = NDArray[np.int32]


def same(one: Labels, other: Labels) -> bool:
    """Up to ids."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs) and ((one > 0) == (other > 0)).all()


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


Asked = tuple[Path, str, ImageOptions]


def asked(out: Path, name: str, tile: int, overlap: int | str = "auto", **options: Any) -> Asked:
    """Where results go, their name, and how the image is predicted."""
    return out, name, ImageOptions(tile=tile, overlap=overlap, **options)


def run_large(model: TileModel, image: Any, asked: Asked) -> LargePrediction:
    return predict_large(model, image, *asked)


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


def test_an_array_and_a_file_in_all_formats(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    truth, n = ndimage.label(spots > 500)
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        spots,
        tile=(64, 64),
        compression="zlib",
        metadata={"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )
    model = TileModel(Threshold(), "m", stride=32)
    plan = asked(tmp_path / "out", "a", 128, 24, formats=STREAMED)
    done = run_large(model, tmp_path / "a.ome.tif", plan)
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

    shown = to_rgb8(spots, AUTO)
    assert (np.asarray(Image.open(done.files["overlay"])) == overlay(shown, labels)).all()

    plan = asked(tmp_path / "lazy", "a", 128, 24)
    lazy = run_large(model, Lazy(), plan)
    assert (tifffile.imread(lazy.files["label-tiff"]) == labels).all()


def test_limits_are_those_of_the_whole_image(tmp_path: Path) -> None:
    """A dark corner stays dark: by its own percentiles, its noise would be found."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 40, (128, 128)).astype(np.float32)
    image[80:100, 80:100] = 1000
    plan = asked(tmp_path, "a", 64, 24, formats=STREAMED)  # most tiles finish nothing to write
    done = run_large(TileModel(Threshold(), "m"), image, plan)
    assert done.objects == len(json.loads(done.files["geojson"].read_text())["features"]) == 1


def test_a_model_for_other_images_says_so(tmp_path: Path) -> None:
    """From all over the image: its first tile alone is dark. A run that goes on says what the first said."""
    image = np.full((300, 400), 200, np.uint8)
    image[:100, :100] = 0

    def doubt(rgb: NDArray[np.uint8]) -> str:
        return "too bright" if np.median(rgb) > 64 else ""

    def predict(name: str, shown: NDArray[np.uint8], dies_at: int = -1) -> Any:
        model = TileModel(Threshold(dies_at), "m", stride=32, doubt=doubt)
        return run_large(model, shown, asked(tmp_path, name, 128, 32))

    assert predict("bright", image).warnings()[0] == "too bright"
    assert predict("dark", 255 - image).doubt == ""
    with pytest.raises(KeyboardInterrupt):
        predict("killed", image, dies_at=3)
    assert predict("killed", image).doubt == "too bright"


def test_a_range_that_leaves_no_contrast_is_named(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    rule = Normalisation("percentile", 0, 100, 1e12)
    done = run_large(TileModel(Threshold(), "m", normalisation=rule), spots, asked(tmp_path, "a", 128, 32))
    assert done.warnings() == [done.doubt]
    assert "range of 1e+12 grey values is so wide that the network sees only one grey value" in done.doubt
    model = TileModel(Threshold(), "m", normalisation=rule)
    assert run_large(model, np.full((300, 300), 9, np.uint16), asked(tmp_path, "b", 128, 32)).doubt == ""


def test_tiles_that_a_model_resizes_are_named(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    model = TileModel(Threshold(), "m", resized=lambda height, width: f"{height} x {width} resized")
    assert run_large(model, spots, asked(tmp_path, "a", 128, 24)).warnings() == ["116 x 121 resized"]


def test_auto_overlap_and_objects_beyond_it(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    model = TileModel(Threshold(), "m", stride=32)
    done = run_large(model, spots, asked(tmp_path, "a", 128))
    assert done.overlap == 32  # of spots of at most 20 pixels
    spots[100:110, 20:300] = 1000
    done = run_large(model, spots, asked(tmp_path, "b", 128, 32))
    labels = tifffile.imread(done.files["label-tiff"])
    (label, box), *_ = done.larger
    assert label == labels[105, 150]
    assert box[1] <= 20
    assert box[3] >= 300
    assert f"larger than the overlap of 32 pixels and may be cut where tiles meet: {label} (x " in done.warnings()[0]


def test_progress_and_a_run_that_it_ends(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def cancel_after_four(done: int, total: int) -> None:
        told.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    model = TileModel(Threshold(), "m")
    plan = asked(tmp_path, "a", 128, 24, batch=2)
    with pytest.raises(KeyboardInterrupt):
        predict_large(model, spots, *plan, cancel_after_four)
    assert told == [(0, 12), (2, 12), (4, 12)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tiles"]
    told.clear()
    assert predict_large(model, spots, *plan, lambda *numbers: told.append(numbers)).predicted == 8
    assert told == [(0, 8), (2, 8), (4, 8), (6, 8), (8, 8)]
    told.clear()
    predict_large(model, spots, *asked(tmp_path, "b", 128), lambda *numbers: told.append(numbers))
    assert told[:2] == [(0, 12), (0, told[-1][1])]  # one tile was measured before


@pytest.mark.parametrize("dies_at", [0, 1, 7, 11])
def test_a_killed_run_goes_on(spots: NDArray[np.uint16], tmp_path: Path, dies_at: int) -> None:
    def plan(out: str, **other: Any) -> Any:
        return asked(tmp_path / out, "a", 128, 24, formats=STREAMED, **other)

    whole = run_large(TileModel(Threshold(), "m"), spots, plan("whole"))
    with pytest.raises(KeyboardInterrupt):
        run_large(TileModel(Threshold(dies_at), "m"), spots, plan("killed"))
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
        with pytest.raises(InputError, match=r"a\.tiles: contains tiles of another run \((image|model|batch) differ\)"):
            run_large(TileModel(Threshold(), model), image, plan("killed", **other))

    rest = Threshold()
    resumed = run_large(TileModel(rest, "m"), spots, plan("killed"))
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


def test_tiles_belong_to_every_byte_of_a_file(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    """A pixel anywhere, also where size and times stay; a copy of the same bytes elsewhere is the same image."""
    path, plan = tmp_path / "a.tif", asked(tmp_path / "out", "a", 128, 24)
    tifffile.imwrite(path, spots)
    with pytest.raises(KeyboardInterrupt):
        run_large(TileModel(Threshold(5), "m"), path, plan)
    for y, x in ((150, 200), (0, 0), (299, 409), (7, 311)):
        one_pixel(path, spots, y, x)
        with pytest.raises(InputError, match=r"a\.tiles: contains tiles of another run \(image differ\)"):
            run_large(TileModel(Threshold(), "m"), path, plan)
    tifffile.imwrite(tmp_path / "copy.tif", spots)
    assert run_large(TileModel(Threshold(), "m"), tmp_path / "copy.tif", plan).predicted == 12 - 5


def test_tiles_belong_to_every_value_of_an_array(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    """A memory map as well as an array; the order of its bytes in memory does not matter."""
    plan = asked(tmp_path / "out", "a", 128, 24)
    with pytest.raises(KeyboardInterrupt):
        run_large(TileModel(Threshold(5), "m"), spots, plan)
    mapped = np.memmap(tmp_path / "a.raw", np.uint16, "w+", shape=spots.shape)
    mapped[:] = spots
    for y, x in ((150, 200), (0, 0), (299, 409)):
        mapped[y, x] ^= 1
        with pytest.raises(InputError, match=r"another run \(image differ\)"):
            run_large(TileModel(Threshold(), "m"), mapped, plan)
        mapped[y, x] ^= 1
    assert run_large(TileModel(Threshold(), "m"), np.asfortranarray(mapped), plan).predicted == 12 - 5


def test_another_plane_or_channel_is_another_run(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([spots, spots]), metadata={"axes": "ZYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", np.stack([spots, spots]), metadata={"axes": "CYX"}, ome=True)

    def predict(name: str, dies_at: int = -1, **other: Any) -> Any:
        plan = asked(tmp_path / "out", name, 128, 24, **other)
        return run_large(TileModel(Threshold(dies_at), "m"), tmp_path / f"{name}.tif", plan)

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


def test_a_file_that_changes_while_it_is_predicted(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    """Nothing is written of a mixture."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, spots)
    predict = Threshold()

    def acquire(images: list[NDArray[np.uint8]]) -> list[Seen]:
        if predict.asked == 6:
            tifffile.imwrite(path, spots + np.uint16(1))
        return predict(images)

    with pytest.raises(InputError, match=r"a\.tif: was changed while it was predicted; predict it again"):
        run_large(TileModel(acquire, "m"), path, asked(tmp_path / "out", "a", 128, 24))
    assert list((tmp_path / "out").iterdir()) == []


def test_one_run_at_a_time_makes_a_result(spots: NDArray[np.uint16], tmp_path: Path) -> None:
    """The other says which; images beside it are predicted meanwhile."""

    def predict(name: str) -> Any:
        return run_large(TileModel(Threshold(), "m"), spots, asked(tmp_path, name, 128, 24))

    with locked(tmp_path / "a"):
        with pytest.raises(InputError, match=rf"a: process {os.getpid()} on \S+, since .*, is writing it; wait until"):
            predict("a")
        predict("b")
    predict("a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_labels.tif", "b_labels.tif"]


def test_killed_while_the_tiles_are_removed(
    spots: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = asked(tmp_path, "a", 128, 24)

    def kill(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tile_folder.shutil, "rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        run_large(TileModel(Threshold(), "m"), spots, plan)
    monkeypatch.undo()
    before = (tmp_path / "a_labels.tif").read_bytes()
    run_large(TileModel(Threshold(), "m"), spots, plan)
    assert (tmp_path / "a_labels.tif").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a_labels.tif"]


def test_what_cannot_be(spots: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TileModel(Threshold(), "m", stride=32)

    def fails(words: str, image: Any = spots, **plan: Any) -> None:
        with pytest.raises(InputError, match=words) as error:
            run_large(model, image, asked(**{"out": tmp_path / "out", "name": "a", "tile": 128} | plan))
        assert "\n" not in str(error.value)
        assert not [p for p in tmp_path.rglob("*") if p.suffix in (".npz", ".json")]

    fails("tiles of 16 pixels: the network works in steps of 32 pixels; use a multiple of that, such as 256", tile=16)
    fails("tiles of 100 pixels: .* such as 256", tile=100)
    fails("tiles of 128 pixels cannot overlap by 128", overlap=128)
    fails("overlap 'wide': give a whole number or auto", overlap="wide")
    fails(
        "format coco cannot be written in tiles; with --tile choose from label-tiff,overlay,geojson,csv",
        formats=["coco"],
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
    fails(r"a\.tiles: is not a folder of tiles", overlap=24)
    (tmp_path / "out" / "a.tiles" / "mine.txt").unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        run_large(model, spots, asked(tmp_path / "out", "a", 128, 24))


def test_the_command(
    tiny_run: Path,
    tmp_path: Path,
    one_thread: None,
    leave_no_trace: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from pffnet_d2.cli.main import main

    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 255, (150, 180, 3)).astype(np.uint8), photometric="rgb")

    def predict(*arguments: object) -> int:
        model = ["--config", tiny_run / "config.yaml", "--weights", tiny_run / "model_final.pth", "--device", "cpu"]
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
        (("--tile", 96, "--format", "roi"), "format roi cannot be written in tiles"),
        (("--tile", 96, "--opts", "INPUT.MIN_SIZE_TEST", 300), "would resize every tile"),
    ):
        assert predict("--out", tmp_path / "none", *arguments) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("pffnet: error: ")
        assert words in line
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:5000])
    assert predict("--out", tmp_path / "none", "--tile", 96) == 2
    assert "a.tif: cannot be read as an image; it is truncated" in capfd.readouterr().err
