"""From a folder of label images to a model folder, in two iterations; what is kept for validation, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
from pffnet_d2.config import config_path, read_config
from pffnet_d2.engine.finetune import adapt, prepare_own, starting_config
from pffnet_d2.errors import InputError
from pffnet_d2.model_zoo import find as pretrained

pytestmark = pytest.mark.usefixtures("leave_no_trace")

SHORT = ["SOLVER.MAX_ITER", "2", "INPUT.CROP.SIZE", "[64, 64]", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"]


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fine-tuning sets it for its process."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))


def write_images(folder: Path, count: int, *, bright: bool = False) -> Path:
    """images/ (8 bit) and labels/ (16 bit) of three discs of radius 10 each."""
    rows, columns = np.mgrid[:64, :96]
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        labels = np.zeros((64, 96), np.uint16)
        for k, (y, x) in enumerate(((16, 20), (40, 50), (30, 80)), start=1):
            labels[(rows - y - i % 3) ** 2 + (columns - x) ** 2 <= 100] = k
        image = np.where(labels > 0, 180, 10 + i).astype(np.uint8)
        Image.fromarray(255 - image if bright else image).save(folder / "images" / f"{i}.png")
        tifffile.imwrite(folder / "labels" / f"{i}.tif", labels)
    return folder


def test_five_images_one_command(packaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_images(tmp_path / "mine", 5), tmp_path / "run"
    assert main(["train", "--from", str(packaged), str(source), "--out", str(out), *SHORT]) == 0
    said = capsys.readouterr().out
    assert "2 iterations of 2 crops" in said
    assert "fewer than 10 images: all were trained on" in said
    assert f"pffnet predict IMAGE --model {out}" in said
    assert len(said.splitlines()) < 15
    assert len(list((out / "overlays").iterdir())) == 5

    before, after = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (packaged, out))
    assert before.keys() == after.keys()
    moved = [(after[name] - before[name].float()).abs().max().item() for name in before]
    assert 0 < max(moved) < 0.1  # two steps away from where it started
    cfg = read_config(str(out / "config.yaml"))
    average = torch.load(out / "model_final.pth", weights_only=True)["weight_average"]["average"]
    share = cfg.SOLVER.PFFNET.START_SHARE
    assert share > 0
    for name in before:
        torch.testing.assert_close(after[name], before[name].float().lerp(average[name], 1 - share))
    radius = np.sqrt(np.count_nonzero(np.hypot(*np.mgrid[-10:11, -10:11]) <= 10) / np.pi)
    assert pytest.approx(2 * radius, abs=0.01) == cfg.MODEL.PFFNET.DIAMETER
    assert (cfg.MODEL.PFFNET.IMAGES, cfg.MODEL.PFFNET.PIXEL_SIZE) == ("fluorescence", 0)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("own_train",), ())

    assert main(["predict", str(source / "images" / "0.png"), "--model", str(out), "--out", str(tmp_path / "r")]) == 0
    assert tifffile.imread(tmp_path / "r" / "0_labels.tif").shape == (64, 96)


def test_with_validation_the_model_is_scored_before_and_after(
    packaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "ROOT", packaged.parent)
    source = write_images(tmp_path / "mine", 2)
    shutil.move(source, tmp_path / "train")
    (tmp_path / "source").mkdir()
    shutil.move(tmp_path / "train", tmp_path / "source" / "train")
    write_images(tmp_path / "source" / "val", 1)
    out = tmp_path / "run"
    assert main(["train", "--from", "pretrained", str(tmp_path / "source"), "--out", str(out), *SHORT]) == 0
    said = capsys.readouterr().out
    assert "before, on the images kept for validation" in said
    assert "after, on the images kept for validation" in said
    assert json.loads((out / "inference" / "own_val" / "label_map.json").read_text())["images"] == 1
    assert [p.name for p in (out / "overlays").iterdir()] == ["0.png"]
    # Again, with one iteration more.
    more = ["--resume", *SHORT[2:], "SOLVER.MAX_ITER", "3"]
    assert main(["train", "--from=pretrained", str(tmp_path / "source"), "--out", str(out), *more]) == 0
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 2


@pytest.mark.parametrize(("count", "splits"), [(1, {"train": 1}), (9, {"train": 9}), (10, {"train": 8, "val": 2})])
def test_what_is_kept_for_validation(count: int, splits: dict[str, int], tmp_path: Path) -> None:
    source = write_images(tmp_path / "mine", count)
    assert prepare_own(source, tmp_path / "data", {}) == list(splits)
    for split, n in splits.items():
        assert len(list((tmp_path / "data" / "own" / split / "images").iterdir())) == n
    # A corrected label under the same name is read anew, and the user's division goes before the rule.
    tifffile.imwrite(source / "labels" / "0.tif", np.zeros((64, 96), np.uint16))
    assert prepare_own(source, tmp_path / "data", {"fractions": "train=1"}) == ["train"]
    coco = json.loads((tmp_path / "data" / "own" / "train" / "instances.json").read_text())
    assert len(coco["annotations"]) == 3 * count - 3


def test_what_the_images_decide(packaged: Path, tmp_path: Path) -> None:
    source = write_images(tmp_path / "mine", 3, bright=True)
    splits = prepare_own(source, tmp_path / "data", {})
    cfg = starting_config(str(packaged), None)
    padding = cfg.MODEL.PIXEL_MEAN
    adapt(cfg, splits, measure_padding=False)
    assert cfg.MODEL.PFFNET.IMAGES == ""
    assert padding == cfg.MODEL.PIXEL_MEAN
    assert cfg.MODEL.PFFNET.CAPS_AREA == starting_config(str(packaged), None).MODEL.PFFNET.CAPS_AREA
    cfg = starting_config("scratch", None)
    cfg.MODEL.PFFNET.CAPS_AREA = 64 * 48  # half an image, so that prediction doubles the caps
    rpn = cfg.MODEL.RPN
    rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 31, 21, 11
    adapt(cfg, splits, measure_padding=True)
    assert (rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (62, 42, 22)
    assert cfg.MODEL.PFFNET.CAPS_AREA == 64 * 96
    assert cfg.MODEL.PIXEL_MEAN == [244.0] * 3  # 255 - 10, - 11 and - 12: the second is the median
    for file in (source / "labels").iterdir():
        tifffile.imwrite(file, np.zeros((64, 96), np.uint16))
    splits = prepare_own(source, tmp_path / "data", {})
    with pytest.raises(InputError, match="no image for training has an object"):
        adapt(cfg, splits, measure_padding=False)


def test_where_training_starts(packaged: Path, tiny_run: Path, tmp_path: Path) -> None:
    recipe = read_config(str(config_path("finetune.yaml")))
    folder = starting_config(str(packaged), None)
    assert str(packaged / "model_final.pth") == folder.MODEL.WEIGHTS
    assert folder.MODEL.FPN.OUT_CHANNELS == 32  # the model's
    assert recipe.SOLVER == folder.SOLVER
    assert not folder.MODEL.SEM_SEG_HEAD.NAME
    file = starting_config(str(tiny_run / "model_final.pth"), None)  # config.yaml lies beside it
    assert file.MODEL.SEM_SEG_HEAD.NAME == "GCNHead"
    lonely = shutil.copy(tiny_run / "model_final.pth", tmp_path / "lonely.pth")
    with pytest.raises(InputError, match=r"lonely\.pth: no config\.yaml beside it; give .* --config-file"):
        starting_config(str(lonely), None)
    assert str(lonely) == starting_config(str(lonely), str(tiny_run / "config.yaml")).MODEL.WEIGHTS
    scratch = starting_config("scratch", None)
    assert scratch.MODEL.WEIGHTS == ""
    assert scratch.MODEL.PFFNET.FUSION.NAME == "RAFFHead"
    with pytest.raises(InputError, match="has its own"):
        starting_config(str(packaged), "a.yaml")
    with pytest.raises(InputError, match="cells: no such model"):
        starting_config("cells", None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "MODEL", "NONE"], "NONE: no such folder"),
        (["--from", "MODEL", "MINE", "--option", "labels"], "--option labels: give KEY=VALUE"),
        (["--from", "MODEL", "MINE", "--option", "colour=red"], "unknown option 'colour'"),
        (["--from", "MODEL", "MINE", "SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITERS"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, packaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"MODEL": packaged, "NONE": tmp_path / "NONE", "MINE": write_images(tmp_path / "mine", 2)}
    typed = [str(names.get(argument, argument)) for argument in arguments]
    assert main(["train", *typed[:3], "--out", str(tmp_path / "run"), *typed[3:]]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "it/s" not in line]
    assert words in line


def test_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--from", "pretrained", "--help"])
    assert "images/ and labels/" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "pffnet finetune FOLDER" in capsys.readouterr().out


def test_a_fine_tuned_model_warns_as_its_images_were(packaged: Path, tmp_path: Path) -> None:
    """Trained on bright images, it takes them without a word."""
    splits = prepare_own(write_images(tmp_path / "mine", 1, bright=True), tmp_path / "data", {})
    cfg = starting_config(str(packaged), None)
    adapt(cfg, splits, measure_padding=False)
    bright = np.full((64, 64, 3), 240, np.uint8)
    assert not Predictor(cfg).doubt(bright)
    assert Predictor(model=packaged).doubt(bright)
