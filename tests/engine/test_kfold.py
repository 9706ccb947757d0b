"""kfold.py: folds are prepared once, trained once, and end in one table."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from pffnet_d2.cli.main import main, parse
from pffnet_d2.config import config_path, read_config
from pffnet_d2.data import synthetic
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.engine import kfold
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.report import SHOWN
from pffnet_d2.evaluation.scores import read_scores, score, write_scores
from pffnet_d2.parallel import launch

CONFIG = str(config_path("demo/PFFNet_R18_FPN.yaml"))
FOLDS = ["--dataset", "cells", "--folds", "2", "--config-file", CONFIG]


def kfold_command(flags: list[str]) -> int:
    """``pffnet kfold``, whose errors are not told in one line but raised."""
    return kfold.cross_validate(parse(["kfold", *flags]))


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Five synthetic images as a user's own, in two folds."""
    source, root = tmp_path / "source", tmp_path / "datasets"
    for record in synthetic.records("train", 5, size=(64, 64)):
        for kind, array in (("images", record.read_image()), ("labels", record.read_label_map())):
            (source / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(source / kind / f"{record.image_id}.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    before = set(DatasetCatalog.list())
    prepare("own", source, root, Selection(folds=2, seed=4), dataset="cells")
    yield root
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for training: the folds trained, each scored with the truth of its images against itself."""
    trained: list[str] = []

    def run_command(arguments: list[str], *, directory: str | None = None, variables: dict[str, str]) -> int:
        assert directory in (None, os.getcwd())
        assert variables == {"DETECTRON2_DATASETS": os.environ["DETECTRON2_DATASETS"]}
        parts = [after for word, after in pairwise(arguments) if word == "--method"]
        cfg = read_config(CONFIG, arguments[arguments.index("0", arguments.index("--cpu-ranks")) + 1 :], parts)
        (val,), out = cfg.DATASETS.TEST, Path(cfg.OUTPUT_DIR)
        assert (val.replace("_val", "_train"),) == cfg.DATASETS.TRAIN
        assert arguments[0] == "train"
        assert "--resume" in arguments
        trained.append(out.name)
        square = np.pad(np.ones((4, 4), int), 2)
        found = [square, np.zeros_like(square), np.roll(square, 1)]
        rows = [score(Path(x["file_name"]).stem, square, found[i]) for i, x in enumerate(DatasetCatalog.get(val))]
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(cfg.dump())
        write_scores(out / "inference" / val, rows, {})
        return 1 if len(trained) == 2 else 0

    monkeypatch.setattr(launch, "run_command", run_command)
    return trained


def test_called_again_it_trains_what_is_left_and_reports(
    datasets: Path, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["kfold", *FOLDS, "SEED", "3", "OUTPUT_DIR", str(out)]
    assert main(command) == 1  # the second fold is interrupted
    assert "fold1: ended with exit code 1; the same command goes on" in capsys.readouterr().err
    assert not (out / "fold1" / "label_map.csv").exists()
    assert main(command) == 0
    assert runs == ["fold0", "fold1", "fold1"]
    assert main(command) == 0
    assert runs == ["fold0", "fold1", "fold1"]

    folds = [read_scores(out / name) for name in ("fold0", "fold1")]
    assert sorted(len(rows) for rows in folds) == [2, 3]
    dice = [[row["Dice"] for row in rows] for rows in folds]
    assert [values[:2] for values in dice] == [[1, 0], [1, 0]]
    last = max(dice, key=len)[2]
    assert 0 < last < 1
    means = [np.mean(values) for values in dice]
    every = [value for values in dice for value in values]
    table = (out / "folds.md").read_text()
    assert f"{np.mean(means):.4f} ({np.std(means):.4f})" in table.split("over folds")[1].splitlines()[0]
    assert f"{np.mean(every):.4f} ({np.std(every):.4f})" in table.split("over images")[1].splitlines()[0]
    assert capsys.readouterr().out.endswith(table)
    with (out / "report.csv").open() as lines:
        report = {row["metric"]: float(row["mean"]) for row in csv.DictReader(lines)}
    assert report["Dice"] == pytest.approx(np.mean(every))


def test_the_tables_of_leaves_hold_sbd(datasets: Path, runs: list[str], tmp_path: Path) -> None:
    prepare(
        "own", tmp_path / "source", datasets, Selection(folds=2, seed=4, options={"category": "leaf"}), dataset="cells"
    )
    out = tmp_path / "run"
    assert main(["kfold", *FOLDS, "OUTPUT_DIR", str(out)]) == 1  # the second fold is interrupted
    assert main(["kfold", *FOLDS, "OUTPUT_DIR", str(out)]) == 0
    for file in ("folds.md", "report.md"):
        assert "| SBD" in (out / file).read_text()


def test_a_fold_begun_with_another_config_is_not_mixed_in(datasets: Path, runs: list[str], tmp_path: Path) -> None:
    out = ["OUTPUT_DIR", str(tmp_path / "run")]
    kfold_command([*FOLDS, *out])
    with pytest.raises(InputError, match=r"fold0: was begun with SOLVER\.MAX_ITER 700, not 9; delete it"):
        kfold_command([*FOLDS, "SOLVER.MAX_ITER", "9", *out])
    assert kfold_command([*FOLDS, "DATALOADER.NUM_WORKERS", "2", *out]) == 0


def test_a_method_is_laid_over_every_fold(
    datasets: Path, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*FOLDS, "--method", str(config_path("ablations/Without_quality.yaml"))]
    kfold_command(command)
    assert kfold_command(command) == 0
    out = Path("output/demo_Without_quality")
    for fold in ("fold0", "fold1"):
        assert read_config(str(out / fold / "config.yaml")).MODEL.ROI_MASK_QUALITY_HEAD.NAME == ""
    assert "PFFNet_R18_FPN_Without_quality" in (out / "report.md").read_text()
    with pytest.raises(
        InputError, match=r"fold0: was begun with MODEL.ROI_MASK_QUALITY_HEAD.NAME , not MaskQualityHead"
    ):
        kfold_command([*FOLDS, "OUTPUT_DIR", str(out)])


def test_mistakes(datasets: Path, runs: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cells: its 3 folds are not prepared in .*; run `pffnet prepare` with"):
        kfold_command([*FOLDS, "--folds", "3"])
    with pytest.raises(InputError, match=r"cells: its 2 folds in .* were divided by seed 4, not 5; prepare them again"):
        kfold_command([*FOLDS, "--seed", "5"])
    with pytest.raises(InputError, match="tnbc needs --source"):
        kfold_command([*FOLDS, "--dataset", "tnbc"])
    with pytest.raises(InputError, match="leave out --num-machines and --eval-only"):
        kfold_command([*FOLDS, "--eval-only"])
    info = datasets / "cells" / "fold1of2_val" / "instances.json"
    info.write_text(info.read_text().replace('"seed": 4', '"seed": 6'))
    with pytest.raises(InputError, match="were divided by seed 4, 6; prepare them again"):
        kfold_command(FOLDS)
    assert runs == []


def test_folds_are_prepared_where_they_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    calls: list[tuple[object, ...]] = []

    def prepared(*arguments: object) -> None:
        calls.append(arguments)
        raise InputError("enough")

    monkeypatch.setattr(kfold, "prepare", prepared)
    with pytest.raises(InputError, match="enough"):
        kfold.prepared_folds("tnbc", 2, Path("zips"), 7)
    assert calls == [("tnbc", Path("zips"), tmp_path, Selection(folds=2, seed=7))]


def test_on_workers(
    datasets: Path,
    runs: list[str],
    tmp_path: Path,
    scheduler: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A fold that fails is tried again at once; the tables are those of one process."""
    monkeypatch.chdir(tmp_path)
    command = ["kfold", *FOLDS, "--scheduler", scheduler]
    assert main([*command, "OUTPUT_DIR", "run"]) == 0
    assert runs == ["fold0", "fold1", "fold1"]
    assert main([*command, "OUTPUT_DIR", "run"]) == 0
    assert runs == ["fold0", "fold1", "fold1"]
    assert "fold1: done" in capsys.readouterr().out
    assert main(["kfold", *FOLDS, "OUTPUT_DIR", "alone"]) == 0
    for file in ("folds.md", "report.md", "report.csv", "fold1/label_map.csv"):
        assert Path("run", file).read_text() == Path("alone", file).read_text()


def test_a_fold_that_fails_twice_on_workers(
    datasets: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other fold goes on; the exit code is that of the fold, or 1 where a signal ended it."""
    tried: list[str] = []

    def run_command(arguments: list[str], **where: object) -> int:
        tried.append(Path(arguments[-1]).name)
        return -9 if tried[-1] == "fold0" else 3

    monkeypatch.setattr(launch, "run_command", run_command)
    out = tmp_path / "run"
    assert main(["kfold", *FOLDS, "--scheduler", scheduler, "OUTPUT_DIR", str(out)]) in (1, 3)
    assert sorted(tried) == ["fold0", "fold0", "fold1", "fold1"]
    said = capsys.readouterr().err
    assert "fold0: ended with exit code -9; the same command goes on from there" in said
    assert "fold1: ended with exit code 3" in said
    assert not (out / "folds.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", [[], ["--workers", "2"]])
def test_two_folds(datasets: Path, tmp_path: Path, where: list[str]) -> None:
    """From prepared folds to the table, each fold trained for an iteration in a process of its own."""
    out = tmp_path / "run"
    tiny = ["MODEL.DEVICE", "cpu", "INPUT.CROP.SIZE", "[48, 64]", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"]
    schedule = ["SOLVER.MAX_ITER", "1", "TEST.DETECTIONS_PER_IMAGE", "20", "OUTPUT_DIR", str(out)]
    assert kfold_command([*FOLDS, *where, *tiny, *schedule]) == 0
    assert (out / "fold1" / "model_final.pth").is_file()
    assert "over images" in (out / "folds.md").read_text()
    assert all(f"{metric}" in (out / "report.md").read_text() for metric in SHOWN)
