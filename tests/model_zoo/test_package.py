"""What is packaged: the weights that prediction uses, at half precision, and a config that builds just them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
from pffnet_d2.config import add_pffnet_config, config_path, differences, read_config
from pffnet_d2.errors import InputError
from pffnet_d2.model_zoo.package import package_model, read_about

pytestmark = pytest.mark.usefixtures("leave_no_trace")


def test_only_what_prediction_uses_at_half_precision(tiny_run: Path, packaged: Path) -> None:
    whole = torch.load(tiny_run / "model_final.pth", weights_only=True)["model"]
    content = torch.load(packaged / "model_final.pth", weights_only=True)
    assert content.keys() == {"model"}
    state = content["model"]
    left = {name.partition(".")[0] for name in whole.keys() - state.keys()}
    assert left == {"sem_seg_head", "fusion_head"}
    assert state.keys() <= whole.keys()
    for name, value in state.items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(value, whole[name].half(), rtol=0, atol=0)


def test_the_packaged_model_predicts_with_these_weights(tiny_run: Path, packaged: Path) -> None:
    whole = torch.load(tiny_run / "model_final.pth", weights_only=True)["model"]
    predictor = Predictor(model=packaged, device="cpu")
    assert predictor.model.model.sem_seg_head is None
    assert predictor.model.model.fusion_head is None
    state = predictor.model.model.state_dict()
    for name, value in state.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, whole[name].half().float(), rtol=0, atol=0)


def test_the_config_stands_alone(tiny_run: Path, packaged: Path) -> None:
    keys = yaml.safe_load((packaged / "config.yaml").read_text())
    assert keys.keys() <= {"MODEL", "INPUT", "TEST", "VERSION"}
    assert not {"DEVICE", "WEIGHTS"} & keys["MODEL"].keys()
    before, after = (read_config(str(folder / "config.yaml")) for folder in (tiny_run, packaged))
    before.MODEL.DEVICE = after.MODEL.DEVICE  # of the machine
    after.MODEL.SEM_SEG_HEAD.NAME, after.MODEL.PFFNET.FUSION.NAME = "GCNHead", "RAFFHead"
    after.MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT = before.MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT
    assert after.MODEL == before.MODEL
    assert after.INPUT == before.INPUT
    assert after.TEST == before.TEST


def test_the_card(packaged: Path) -> None:
    card = json.loads((packaged / "card.json").read_text())
    assert card["licence"] == "CC0 1.0"
    assert card["bytes"] == (packaged / "model_final.pth").stat().st_size
    assert 2 * card["parameters"] < card["bytes"] < 2.1 * card["parameters"]
    assert (card["diameter"], card["images"]) == (20.0, "fluorescence")
    assert card["thresholds"]["SCORE_THRESH"] == 0.01
    assert card["normalisation"]["name"] == "auto"


@pytest.mark.parametrize("name", ["PFFNet_R101_FPN.yaml", "bbbc039/PFFNet_R18_FPN.yaml"])
def test_differences_give_the_config_back(name: str, tmp_path: Path) -> None:
    from detectron2.config import get_cfg

    cfg = read_config(str(config_path(name)), ["MODEL.PFFNET.LABEL_MAP.MIN_SIZE", "7"])
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump(differences(cfg)))
    assert "_BASE_" not in (tmp_path / "flat.yaml").read_text()
    assert read_config(str(tmp_path / "flat.yaml")) == cfg
    (tmp_path / "dumped.yaml").write_text(cfg.dump())  # as training writes it: with lists for all tuples
    assert differences(read_config(str(tmp_path / "dumped.yaml"))) == differences(cfg)
    defaults = get_cfg()
    add_pffnet_config(defaults)
    assert differences(defaults) == {"VERSION": 2}


def test_the_command(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = tmp_path / "about.yaml"
    about.write_text("sources: [BBBC039]\n")
    arguments = ["--config", str(tiny_run / "config.yaml"), "--weights", str(tiny_run / "model_final.pth")]
    extra = ["--about", str(about), "--opts", "MODEL.PFFNET.DIAMETER", "31.0"]
    assert main(["package", *arguments, "--out", str(tmp_path / "a" / "b"), *extra]) == 0
    assert "MB; use it with --model" in capsys.readouterr().out
    card = json.loads((tmp_path / "a" / "b" / "card.json").read_text())
    assert (card["sources"], card["diameter"]) == (["BBBC039"], 31.0)
    assert Predictor(model=tmp_path / "a" / "b").cfg.MODEL.PFFNET.DIAMETER == 31
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["card.json", "config.yaml", "model_final.pth"]


def test_what_cannot_be_packaged(tiny_run: Path, tmp_path: Path) -> None:
    config, weights = str(tiny_run / "config.yaml"), str(tiny_run / "model_final.pth")
    with pytest.raises(InputError, match=r"no\.pth: no such weights file"):
        package_model(config, str(tmp_path / "no.pth"), tmp_path / "out")
    with pytest.raises(InputError, match="does not fit the model"):
        package_model(config, weights, tmp_path / "out", opts=["MODEL.FPN.OUT_CHANNELS", "64"])
    with pytest.raises(InputError, match=r"MODEL\.PFFNET\.IMAGES 'xray'"):
        package_model(config, weights, tmp_path / "out", opts=["MODEL.PFFNET.IMAGES", "xray"])
    content = torch.load(weights, weights_only=True)
    content["model"]["backbone.fpn_output2.weight"][0] = 1e6
    torch.save(content, tmp_path / "large.pth")
    with pytest.raises(
        InputError, match=r"backbone\.fpn_output2\.weight: has values that are not finite or exceed half precision"
    ):
        package_model(config, str(tmp_path / "large.pth"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        package_model(config, weights, tmp_path / "file" / "out")


def test_files_that_are_not_the_text_of_a_card(tmp_path: Path) -> None:
    file = tmp_path / "about.yaml"
    with pytest.raises(InputError, match="cannot be read"):
        read_about(file)
    for text, words in (("- 1", "contains no keys"), ("a: [", "is not YAML"), ("a: 2020-01-01", "of plain values")):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            read_about(file)


def test_packaging_what_is_packaged_changes_nothing(packaged: Path, tmp_path: Path) -> None:
    again = shutil.copytree(packaged, tmp_path / "again")
    package_model(str(again / "config.yaml"), str(again / "model_final.pth"), again)
    assert (again / "config.yaml").read_text() == (packaged / "config.yaml").read_text()
    first, second = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (packaged, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
