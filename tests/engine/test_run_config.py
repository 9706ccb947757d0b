"""run_config.py: one line for every mistake before a model is built, and the CPU where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pffnet_d2.config import config_path, read_config
from pffnet_d2.engine.arguments import argument_parser
from pffnet_d2.engine.run_config import check_config, setup
from pffnet_d2.engine.trainer import run
from pffnet_d2.errors import InputError

pytestmark = pytest.mark.usefixtures("leave_no_trace")

COMPACT = str(config_path("demo/PFFNet_R18_FPN.yaml"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, asked in ((0, 2), (1, 2), (2, 3)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=here: here > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda here=here: here)
        with pytest.raises(InputError, match=f"^--num-gpus {asked}: this machine has {here} CUDA device"):
            run(["--config-file", COMPACT, "--num-gpus", str(asked)])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATASETS.TEST", "('phantom_val',)"], r"phantom_val: no such data set; did you mean .*phantoms_val"),
        (["DATASETS.TRAIN", "('xyzzy',)"], r"xyzzy: no such data set; did you mean .*phantoms_train"),
        (["DATASETS.TRAIN", "()"], r"DATASETS\.TRAIN is empty"),
        (["DATASETS.TEST", "('bbbc039_val',)"], r"bbbc039_val is not prepared: .*pffnet prepare bbbc039"),
        (["MODEL.BACKBONE.FREEZE_AT", "2"], r"set MODEL\.BACKBONE\.FREEZE_AT 0"),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], r"set SOLVER\.AMP\.ENABLED False"),
        (["SOLVER.IMS_PER_BATCH", "3", "SOLVER.REFERENCE_WORLD_SIZE", "2"], "does not divide among 2 processes"),
        (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH 0"),
        (
            ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.PFFNET.OUTPUTS", "['panoptic']"],
            r"OUTPUTS: GeneralizedRCNN has no output panoptic; leave it out, or set MODEL\.META_ARCHITECTURE PFFNet",
        ),
        (
            ["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.PFFNET.OUTPUTS", "['semantic_fused']"],
            "OUTPUTS: PanopticFPN has no output semantic_fused",
        ),
        (
            ["MODEL.PFFNET.TTA", "['hflip']", "MODEL.PFFNET.OUTPUTS", "['semantic']"],
            r"TTA merges instances only; set MODEL\.PFFNET\.OUTPUTS",
        ),
        (["SOLVER.STEPS", "(30, 30)"], r"SOLVER\.STEPS \(30, 30\): each must be later"),
        (
            ["SOLVER.PFFNET.CLIP_NORM", "1.0"],
            r"CLIP_NORM and SOLVER\.CLIP_GRADIENTS\.ENABLED: gradients are clipped in one",
        ),
    ],
)
def test_check_finds_mistakes_before_training(datasets: Path, opts: list[str], message: str) -> None:
    check_config(read_config(COMPACT), train=True)
    with pytest.raises(InputError, match=message) as error:
        check_config(read_config(COMPACT, opts), train=True)
    assert "\n" not in str(error.value)


def test_check_of_the_batch_on_several_gpus(datasets: Path) -> None:
    cfg = read_config(COMPACT, ["SOLVER.IMS_PER_BATCH", "2"])
    check_config(cfg, train=True, processes=2)
    with pytest.raises(InputError, match="does not divide among 4 processes"):
        check_config(cfg, train=True, processes=4)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 1
    check_config(cfg, train=True, processes=4)


def test_evaluation_needs_neither_training_data_nor_starting_weights(datasets: Path) -> None:
    check_config(read_config(COMPACT, ["DATASETS.TRAIN", "()", "MODEL.BACKBONE.FREEZE_AT", "2"]), train=False)
    with pytest.raises(InputError, match=r"DATASETS\.TEST is empty"):
        check_config(read_config(COMPACT, ["DATASETS.TEST", "()"]), train=False)


@pytest.mark.usefixtures("no_gpu")
def test_default_flags_run_on_the_cpu_and_say_so(datasets: Path, tmp_path: Path) -> None:
    # A config written down on a machine with a GPU names it.
    args = argument_parser().parse_args(
        ["--config-file", COMPACT, "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cuda"]
    )
    cfg = setup(args)
    assert cfg.MODEL.DEVICE == "cpu"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("no CUDA device: running on the CPU") == 1


def test_other_grey_values_in_prediction_are_said(datasets: Path, tmp_path: Path) -> None:
    """Once a data set, only where it is used."""
    for key, said in (("auto", 0), ("stretch", 1)):
        opts = ["--config-file", COMPACT, "MODEL.PFFNET.NORMALISATION", key, "OUTPUT_DIR"]
        setup(argument_parser().parse_args([*opts, str(tmp_path / key)]))
        log = (tmp_path / key / "log.txt").read_text()
        for name in ("phantoms_train", "phantoms_val"):
            assert log.count(f"{name}: its images were not stretched") == said
        setup(argument_parser().parse_args(["--eval-only", *opts, str(tmp_path / key / "scores")]))
        assert "phantoms_train: its" not in (tmp_path / key / "scores" / "log.txt").read_text()


def test_output_folder_that_cannot_be_written(datasets: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    args = argument_parser().parse_args(["--config-file", COMPACT, "OUTPUT_DIR", str(tmp_path / "file" / "run")])
    with pytest.raises(InputError, match=r"OUTPUT_DIR .*file/run: .*; choose a folder"):
        setup(args)
