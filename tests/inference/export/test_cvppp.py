"""The challenge's file, read back by h5py; from names of images to the command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
from pffnet_d2.cli.main import main
from pffnet_d2.errors import InputError
from pffnet_d2.inference.export.cvppp import plants_of, write_answer

h5py = pytest.importorskip("h5py", reason="h5py is optional")


def test_plants_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["testing/A1/plant003_rgb.png", "x/A1_plant004.png", "A4/plant0009.tif", "a/A2_plant003_rgb.png"]
    assert plants_of(map(Path, names)) == [
        ("A1", "plant003"),
        ("A1", "plant004"),
        ("A4", "plant0009"),
        ("A2", "plant003"),
    ]
    (tmp_path / "A3").mkdir()
    monkeypatch.chdir(tmp_path / "A3")
    assert plants_of([Path("plant001_rgb.png")]) == [("A3", "plant001")]


@pytest.mark.parametrize("name", ["A1/plant003_fg.png", "plants/plant003_rgb.png", "A1/flower003_rgb.png", "A1.png"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"not named like an image of the challenge; .*A1/plant003_rgb\.png"):
        plants_of([Path(name)])


def test_a_plant_comes_once() -> None:
    with pytest.raises(InputError, match=r"A1/plant003_rgb\.png and b/A1_plant003\.png: both are A1/plant003"):
        plants_of([Path("A1/plant003_rgb.png"), Path("b/A1_plant003.png")])


def test_the_file_is_what_the_challenge_reads(tmp_path: Path) -> None:
    labels = np.zeros((53, 50), np.uint16)
    labels[3:9, 2:7], labels[20:, 30:] = 1, 255
    tifffile.imwrite(tmp_path / "a.tif", labels)
    tifffile.imwrite(tmp_path / "none.tif", np.zeros((9, 9), np.uint16))
    files = {("A1", "plant003"): tmp_path / "a.tif", ("A4", "plant0009"): tmp_path / "none.tif"}
    write_answer(tmp_path / "answer.h5", files)
    with h5py.File(tmp_path / "answer.h5") as answer:
        assert answer["A1/plant003/label"].dtype == np.uint8
        np.testing.assert_array_equal(answer["A1/plant003/label"], labels)
        assert answer["A1/plant003/label_filename"][()] == b"plant003_label.png"
        assert answer["A4/plant0009/label"].shape == (9, 9)
        assert sorted(answer) == ["A1", "A4"]
    before = (tmp_path / "answer.h5").read_bytes()
    write_answer(tmp_path / "answer.h5", dict(reversed(files.items())))
    assert (tmp_path / "answer.h5").read_bytes() == before

    tifffile.imwrite(tmp_path / "a.tif", labels + 1)
    with pytest.raises(InputError, match=r"a\.tif: 256 objects do not fit the challenge's 8 bits; raise --threshold"):
        write_answer(tmp_path / "answer.h5", files)
    assert (tmp_path / "answer.h5").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "answer.h5", "none.tif"]


def test_the_command(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images that could be read are in the file; without h5py nothing is predicted."""
    folder, out = tmp_path / "A1", tmp_path / "out"
    folder.mkdir()
    for i, name in enumerate(("plant003", "plant009")):
        image = np.random.default_rng(i).integers(0, 255, (64, 96, 4)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{name}_rgb.png")
    (folder / "plant014_rgb.png").write_bytes(b"no image")
    model = ["--model", str(tiny_run), "--device", "cpu"]
    command = ["predict", str(folder), *model, "--format", "cvppp", "--out", str(out)]
    assert main(command) == 1
    assert sorted(p.name for p in out.iterdir()) == ["answer.h5", "plant003_rgb_labels.tif", "plant009_rgb_labels.tif"]
    with h5py.File(out / "answer.h5") as answer:
        assert sorted(answer["A1"]) == ["plant003", "plant009"]
        for name in answer["A1"]:
            label_map = tifffile.imread(out / f"{name}_rgb_labels.tif")
            np.testing.assert_array_equal(answer[f"A1/{name}/label"], label_map)

    monkeypatch.setitem(sys.modules, "h5py", None)
    with monkeypatch.context() as context:
        context.chdir(tmp_path)
        assert main([*command[:-1], "elsewhere"]) == 2
    assert not (tmp_path / "elsewhere").exists()
