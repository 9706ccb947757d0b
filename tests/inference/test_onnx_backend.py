"""Prediction with a model in ONNX: equal to torch's, with the same options, and without torch or Detectron2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnx

from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
from pffnet_d2.errors import InputError
from pffnet_d2.masks.paste import instance_masks
from pffnet_d2.model_zoo import find

pytestmark = pytest.mark.usefixtures("leave_no_trace")

# Raises for every import of torch and Detectron2, as if they were not installed.
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "detectron2", "fvcore", "timm", "cv2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def spots(height: int = 96, width: int = 128, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 20, (height, width)).astype(np.uint8)
    for y, x in rng.integers(0, (height - 14, width - 14), (12, 2)):
        image[y : y + 14, x : x + 14] += 50
    return image


@pytest.fixture(scope="module")
def pair(onnx_run: Path) -> tuple[Predictor, Predictor]:
    """The model in torch and in ONNX."""
    return Predictor(model=onnx_run, device="cpu"), Predictor(model=onnx_run / "model.onnx")


def assert_equal(found: Any, expected: Any) -> None:
    """Two predictions, up to a rounding of scores and boxes."""
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    assert list(found.scores) == list(expected.scores)
    assert found.capped == expected.capped
    assert len(found.instances) == len(expected.instances)
    for key, column in expected.scores.items():
        np.testing.assert_allclose(found.scores[key], column, atol=1e-4)
    np.testing.assert_allclose(found.instances.pred_boxes, expected.instances.pred_boxes.tensor, atol=1e-3)


@pytest.mark.parametrize("shape", [(96, 128), (75, 101), (33, 40), (200, 310)])
def test_equals_torch(pair: tuple[Predictor, Predictor], shape: tuple[int, int]) -> None:
    rgb = pair[0].normalise(spots(*shape))
    ((expected,), (found,)) = (predictor.predict([rgb]) for predictor in pair)
    assert expected.label_map.max() > 0
    assert_equal(found, expected)


def test_masks_of_the_instances(pair: tuple[Predictor, Predictor]) -> None:
    """As with torch, masks may be made of the instances again."""
    rgb = pair[0].normalise(spots())
    ((expected,), (found,)) = (predictor.predict([rgb]) for predictor in pair)
    for mask, other in zip(instance_masks(found.instances), instance_masks(expected.instances), strict=True):
        assert (mask.y0, mask.x0) == (other.y0, other.x0)
        np.testing.assert_array_equal(mask.mask, other.mask)


@pytest.mark.parametrize(
    "options",
    [
        {"diameter": 12.0},
        {"diameter": 31.0},
        {"thresholds": {"SCORE_THRESH": 0.6, "MIN_SIZE": 20, "FILL_HOLES": True}},
        {"normalisation": "percentile:1,99", "invert": True},
    ],
)
def test_options(onnx_run: Path, options: dict[str, Any]) -> None:
    with_torch = Predictor(model=onnx_run, device="cpu", **options)
    without = Predictor(model=onnx_run / "model.onnx", **options)
    assert (without.rule, without.scale) == (with_torch.rule, with_torch.scale)
    assert without.normalisation == with_torch.normalisation
    images = [without.normalise(spots(90, 120, seed)) for seed in (0, 1)]
    for found, expected in zip(without.predict(images), with_torch.predict(images), strict=True):
        assert_equal(found, expected)


def test_tiles_and_every_format(onnx_run: Path, tmp_path: Path) -> None:
    """The command writes the same bytes with either form, whole and in tiles; scores in the tables are rounded."""
    tifffile.imwrite(tmp_path / "a.tif", spots(200, 260))
    for name, flags in (("whole", ["--format", "label-tiff,overlay,geojson"]), ("tiles", ["--tile", "128"])):
        results = []
        for form, model in (("torch", onnx_run), ("onnx", onnx_run / "model.onnx")):
            out = tmp_path / name / form
            assert main(["predict", str(tmp_path / "a.tif"), "--model", str(model), "--out", str(out), *flags]) == 0
            results.append(out)
        for path in sorted(results[0].iterdir()):
            other = results[1] / path.name
            if path.suffix == ".geojson":
                shapes = [[f["geometry"] for f in json.loads(p.read_text())["features"]] for p in (path, other)]
                assert shapes[0] == shapes[1]
                assert shapes[0]
            else:
                assert path.read_bytes() == other.read_bytes()


def test_without_torch(onnx_run: Path, tmp_path: Path) -> None:
    """The command and Predictor where torch and Detectron2 cannot be imported: the folder's ONNX file is taken."""
    tifffile.imwrite(tmp_path / "a.tif", spots(100, 120))
    assert main(["predict", str(tmp_path / "a.tif"), "--model", str(onnx_run), "--out", str(tmp_path / "torch")]) == 0
    code = f"""
from pathlib import Path
from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
from pffnet_d2.model_zoo import find
find.ROOT = Path({str(onnx_run.parent)!r})
assert main(["predict", "a.tif", "--out", "onnx", "--format", "label-tiff,overlay,geojson,csv,coco"]) == 0
assert main(["predict", "a.tif", "--out", "tiles", "--tile", "64", "--overlap", "32"]) == 0
print(Predictor()("a.tif").label_map.max())
assert not {{"torch", "detectron2", "torchvision"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, cwd=tmp_path, env=_environment()
    )
    assert done.returncode == 0, done.stderr
    expected = tifffile.imread(tmp_path / "torch/a_labels.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "onnx/a_labels.tif"), expected)
    assert done.stdout.splitlines()[-1] == str(expected.max())
    assert {path.suffix for path in (tmp_path / "onnx").iterdir()} == {".tif", ".png", ".geojson", ".csv", ".json"}


def test_without_torch_or_a_model_in_onnx(packaged: Path, tmp_path: Path) -> None:
    """One line says what to install."""
    tifffile.imwrite(tmp_path / "a.tif", spots())
    code = f"""
from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
try:
    Predictor(model={str(packaged)!r})
except ImportError as error:
    print(error)
sys.exit(main(["predict", "a.tif", "--model", {str(packaged)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, cwd=tmp_path, env=_environment()
    )
    assert done.returncode == 2
    assert done.stdout.startswith("pffnet_d2.Predictor: not everything it needs is installed (torch: missing")
    assert done.stderr.startswith("pffnet: error: predict: not everything it needs is installed (torch: missing")
    assert done.stderr.count("\n") == 1


def test_which_form(onnx_run: Path, packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = onnx_run / "model.onnx"
    assert find.onnx_form(file) == file
    assert find.onnx_form("none.ONNX") == Path("none.ONNX")
    assert find.onnx_form(onnx_run) is None  # torch is installed
    (tmp_path / "model.onnx").write_bytes(file.read_bytes())
    assert find.onnx_form(tmp_path) == tmp_path / "model.onnx"  # there is nothing else in the folder
    monkeypatch.setattr(find.env, "missing", lambda *_: True)
    assert find.onnx_form(onnx_run) == file
    assert find.onnx_form(packaged) is None
    monkeypatch.setattr(find, "ROOT", onnx_run.parent)
    assert find.onnx_form() == file


def test_files_that_are_no_models(onnx_run: Path, tmp_path: Path) -> None:
    """Each is named in one line."""
    good = (onnx_run / "model.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    other = onnx.load(str(onnx_run / "model.onnx"))
    del other.metadata_props[:]
    onnx.save(other, str(tmp_path / "other.onnx"))
    onnx.helper.set_model_props(other, {"pffnet_d2": '{"facts": {"format": 1}}'})
    onnx.save(other, str(tmp_path / "table.onnx"))
    for name, fault in (
        ("cut", "not read by onnxruntime"),
        ("empty", "not read by onnxruntime"),
        ("text", "not read by onnxruntime"),
        ("none", "no such model file"),
        ("pointer", "a Git LFS pointer"),
        ("other", "not a file of `pffnet export`"),
        ("table", "the table of pffnet_d2 in it is damaged"),
    ):
        path = tmp_path / f"{name}.onnx"
        with pytest.raises(InputError) as raised:
            Predictor(model=path)
        said = str(raised.value)
        assert said.startswith(f"{path}: {fault}")
        assert "\n" not in said


def test_a_file_of_other_weights_than_the_card_describes(onnx_run: Path, packaged: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packaged, tmp_path / "copy")
    shutil.copy(onnx_run / "model.onnx", folder)
    with pytest.raises(InputError, match=r"model\.onnx: was made of other weights than card\.json describes"):
        Predictor(model=folder / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"opts": ["TEST.DETECTIONS_PER_IMAGE", "9"]},
            "opts TEST.DETECTIONS_PER_IMAGE 9: the keys of an exported model",
        ),
        ({"device": "cuda"}, "device cuda: a model in ONNX is predicted on the CPU"),
        ({"precision": "bfloat16"}, "precision bfloat16: a model in ONNX computes in float32"),
        ({"thresholds": {"NO": 1}}, "thresholds: unknown key NO"),
        ({"thresholds": {"SCORE_THRESH": 2}}, "thresholds: SCORE_THRESH 2: give a number"),
        ({"config": "a.yaml"}, "and a config: give one of them"),
    ],
)
def test_options_that_do_not_apply(onnx_run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        Predictor(**{"model": onnx_run / "model.onnx", **options})


def test_several_processes(onnx_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", spots())
    flags = ["--model", str(onnx_run / "model.onnx"), "--processes", "2", "--out", str(tmp_path / "out")]
    assert main(["predict", str(tmp_path / "a.tif"), *flags]) == 2
    assert capsys.readouterr().err.startswith("pffnet: error: 2 processes: a model in ONNX is predicted in one")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
