"""train, evaluate, kfold, thresholds and train_net.py, and bad input."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.robustness.case import Case, by_name

RUN = "--config-file {run}/config.yaml OUTPUT_DIR run"
TRAIN, EVALUATE = f"train {RUN} SOLVER.MAX_ITER 1 SOLVER.STEPS ()", f"evaluate {RUN}"
WEIGHTS = "MODEL.WEIGHTS {run}/model_final.pth"
# OUTPUT_DIR holds log.txt and config.yaml by the time that weights are read.
BEGUN = ("run/*",)
DEEP = "[" * 100_000


@pytest.fixture(scope="module", autouse=True)
def whole_datasets(datasets: Path) -> Iterator[None]:
    """The prepared images, whose folder the environment also names for the cases that copy it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHOLE_DATASETS", str(datasets))
        yield


def config(content: str, name: str = "c.yaml") -> Callable[[Path], None]:
    return raw(content.encode(), name)


def several(**files: str) -> Callable[[Path], None]:
    """Writes name.yaml of each."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / f"{name}.yaml").write_text(content)

    return write


def weights(content: Any, name: str = "w.pth") -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / name)


def raw(content: bytes, name: str = "w.pth") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def empty_folder(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).mkdir()


def all_of(*writers: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for each in writers:
            each(folder)

    return write


def labels(folder: Path) -> None:
    """images/ and labels/ of two images."""
    for part in ("mine/images", "mine/labels"):
        (folder / part).mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(np.full((64, 64), 9, np.uint8)).save(folder / "mine/images" / f"{name}.png")
        Image.fromarray(np.eye(64, dtype=np.uint8)).save(folder / "mine/labels" / f"{name}.png")


def occupied(folder: Path) -> None:
    (folder / "taken").write_text("")


def damaged_run(**damage: bytes) -> Callable[[Path], None]:
    """Writes run/ with checkpoints of these contents, the last of which is the last."""

    def write(folder: Path) -> None:
        (folder / "run").mkdir()
        for name, content in damage.items():
            (folder / "run" / f"{name}.pth").write_bytes(content)
            (folder / "run" / "last_checkpoint").write_text(f"{name}.pth")

    return write


CONFIGS = [
    Case("no config", "train", ("no config file given", "pffnet finetune FOLDER")),
    Case("a folder alone", "train images/", ("no config file given", "pffnet finetune FOLDER")),
    Case("evaluate without config", "evaluate", ("no config file given", "--truth DIR --prediction DIR")),
    Case("missing config", "train --config-file no.yaml", ("no.yaml: no such config file",)),
    Case("a folder as config", "train --config-file c", ("c: is a folder",), empty_folder("c")),
    Case("empty config", "train --config-file c.yaml", ("c.yaml: is empty",), config("")),
    Case("config of a comment", "train --config-file c.yaml", ("c.yaml: is empty",), config("# nothing\n")),
    Case("config that is a list", "train --config-file c.yaml", ("c.yaml: contains a list",), config("- 1\n- 2\n")),
    Case("config of words", "train --config-file c.yaml", ("c.yaml: contains a str",), config("just words\n")),
    Case("config nested too deep", "train --config-file c.yaml", ("c.yaml: nested too deeply",), config(DEEP)),
    Case("half a config", "train --config-file c.yaml", ("c.yaml, line 2: not YAML",), config("MODEL: [1, 2\n")),
    Case("config of bytes", "train --config-file c.yaml", ("c.yaml: not YAML",), raw(b"\xff\xfe\x00\x01", "c.yaml")),
    Case("a picture as config", "train --config-file c.png", ("c.png: not YAML",), raw(b"\x89PNG\r\n\x1a\n", "c.png")),
    Case(
        "config with code",
        "train --config-file c.yaml",
        ("c.yaml, line 1: not YAML of plain values",),
        config("SEED: !!python/object/apply:os.system ['true']\n"),
    ),
    Case("unknown key", "train --config-file c.yaml", ("c.yaml: ", "MODEL.NONE"), config("MODEL:\n  NONE: 1\n")),
    Case(
        "missing base",
        "train --config-file c.yaml",
        ("c.yaml: its _BASE_ no.yaml does not exist",),
        config("_BASE_: no.yaml\n"),
    ),
    Case(
        "base of itself",
        "train --config-file c.yaml",
        ("c.yaml: its _BASE_ files", "circle"),
        config("_BASE_: c.yaml\n"),
    ),
    Case(
        "bases in a circle",
        "train --config-file a.yaml",
        ("a.yaml: its _BASE_ files", "circle"),
        several(a="_BASE_: b.yaml\n", b="_BASE_: c.yaml\n", c="_BASE_: b.yaml\n"),
    ),
    Case(
        "base that is a list",
        "train --config-file a.yaml",
        ("b.yaml: contains a list",),
        several(a="_BASE_: b.yaml\n", b="- 1\n"),
    ),
    Case(
        "base that is empty", "train --config-file a.yaml", ("b.yaml: is empty",), several(a="_BASE_: b.yaml\n", b="")
    ),
    Case(
        "one of several bases is missing",
        "train --config-file a.yaml",
        ("a.yaml: its _BASE_ no.yaml does not exist",),
        several(a="_BASE_: [b.yaml, no.yaml]\n", b="SEED: 1\n"),
    ),
    Case("no such date", "train --config-file c.yaml", ("c.yaml: not YAML of plain",), config("SEED: 2024-02-31\n")),
    Case("base that is a number", "train --config-file c.yaml", ("c.yaml: its _BASE_ 3",), config("_BASE_: 3\n")),
    Case(
        "base from the network",
        "train --config-file c.yaml",
        ("c.yaml: its _BASE_ https://x.org/b.yaml is not a local file",),
        config("_BASE_: https://x.org/b.yaml\n"),
    ),
    Case(
        "type of a key", "train --config-file c.yaml", ("c.yaml: ", "MAX_ITER"), config("SOLVER:\n  MAX_ITER: many\n")
    ),
    Case("key alone", f"{TRAIN} SEED", ("SEED",)),
    Case("unknown key typed", f"{TRAIN} MODEL.NONE 1", ("MODEL.NONE",)),
    Case("type of a key typed", f"{TRAIN} SOLVER.BASE_LR fast", ("SOLVER.BASE_LR", "fast")),
]

VALUES = [
    Case("no iterations", f"{TRAIN} SOLVER.MAX_ITER 0", ("SOLVER.MAX_ITER 0",)),
    Case("negative iterations", f"{TRAIN} SOLVER.MAX_ITER -5", ("SOLVER.MAX_ITER -5",)),
    Case("checkpoints never", f"{TRAIN} SOLVER.CHECKPOINT_PERIOD 0", ("SOLVER.CHECKPOINT_PERIOD 0",)),
    Case("no images a batch", f"{TRAIN} SOLVER.IMS_PER_BATCH 0", ("SOLVER.IMS_PER_BATCH 0",)),
    Case("learning rate that is not a number", f"{TRAIN} SOLVER.BASE_LR nan", ("SOLVER.BASE_LR",)),
    Case("seed too large", f"{TRAIN} SEED 99999999999999", ("SEED 99999999999999",)),
    Case("steps out of order", f"{TRAIN} SOLVER.STEPS (5,3)", ("SOLVER.STEPS (5, 3)", "later")),
    Case("half precision on the CPU", f"{TRAIN} MODEL.DEVICE cpu SOLVER.AMP.ENABLED True", ("SOLVER.AMP", "bfloat16")),
    Case("unknown precision", f"{TRAIN} SOLVER.AMP.DTYPE int8", ("SOLVER.AMP.DTYPE 'int8'", "bfloat16")),
    Case("frozen random weights", f"{TRAIN} MODEL.BACKBONE.FREEZE_AT 2", ("MODEL.BACKBONE.FREEZE_AT",)),
    Case(
        "unknown sampler",
        f"{TRAIN} DATALOADER.SAMPLER_TRAIN Mine",
        ("DATALOADER.SAMPLER_TRAIN Mine", "TrainingSampler"),
        leaves=BEGUN,
    ),
    Case("unknown output", f"{TRAIN} MODEL.PFFNET.OUTPUTS ['outlines']", ("MODEL.PFFNET.OUTPUTS",), leaves=BEGUN),
    Case(
        "unknown training data",
        f"{TRAIN} DATASETS.TRAIN \"('phantom_train',)\"",
        ("phantom_train: no such data set", "phantoms_train"),
    ),
    Case("unknown test data", f"{EVALUATE} DATASETS.TEST \"('cells',)\"", ("cells: no such data set",)),
    Case("no training data", f"{TRAIN} DATASETS.TRAIN ()", ("DATASETS.TRAIN is empty",)),
    Case("nothing to evaluate on", f"{EVALUATE} DATASETS.TEST ()", ("DATASETS.TEST is empty",)),
    Case(
        "data that is not prepared",
        f"{EVALUATE} DATASETS.TEST \"('bbbc039_val',)\"",
        ("bbbc039_val is not prepared", "pffnet prepare bbbc039"),
    ),
    Case("more GPUs than there are", f"train --num-gpus 99 {RUN}", ("--num-gpus 99",)),
    Case("negative GPUs", f"train --num-gpus -1 {RUN}", ("--num-gpus -1",)),
    Case("no machines", f"train --num-machines 0 {RUN}", ("--num-machines 0",)),
    Case(
        "machine that is not there",
        f"train --num-machines 2 --machine-rank 2 --cpu-ranks 1 {RUN}",
        ("--machine-rank 2",),
    ),
    Case("GPUs and ranks on the CPU", f"train --num-gpus 2 --cpu-ranks 2 {RUN}", ("--cpu-ranks 2",)),
    Case("number that is none", f"train --num-gpus two {RUN}", ("--num-gpus", "two")),
    Case(
        "output in a file",
        "train --config-file {run}/config.yaml OUTPUT_DIR taken",
        ("OUTPUT_DIR taken: File exists",),
        occupied,
    ),
    Case(
        "output below a file",
        "train --config-file {run}/config.yaml OUTPUT_DIR taken/run",
        ("OUTPUT_DIR taken/run: Not a directory",),
        occupied,
    ),
    Case(
        "output where nothing can be",
        "train --config-file {run}/config.yaml OUTPUT_DIR /proc/run",
        ("OUTPUT_DIR /proc/run: ",),
    ),
]

START = [
    Case(
        "start of nothing",
        f"{TRAIN} MODEL.WEIGHTS no.pth",
        ("no.pth: no such weights file", "MODEL.WEIGHTS ''"),
        leaves=BEGUN,
    ),
    Case("start of words", f"{TRAIN} MODEL.WEIGHTS w.pth", ("w.pth: not read",), raw(b"words"), leaves=BEGUN),
    Case(
        "start of other weights",
        f"{TRAIN} MODEL.WEIGHTS w.pth",
        ("w.pth: does not fit the model",),
        weights({"x": torch.zeros(2)}),
        leaves=BEGUN,
    ),
    Case(
        "start of a catalog's nothing",
        f"{TRAIN} MODEL.WEIGHTS catalog://None",
        ("catalog://None: these weights cannot be fetched",),
        leaves=BEGUN,
    ),
    Case("evaluate without weights", EVALUATE, ("no weights to evaluate; give MODEL.WEIGHTS FILE",), leaves=BEGUN),
    Case(
        "evaluate missing weights",
        f"{EVALUATE} MODEL.WEIGHTS no.pth",
        ("no.pth: no such weights file; give the file that training wrote",),
        leaves=BEGUN,
    ),
    Case(
        "evaluate an empty file",
        f"{EVALUATE} MODEL.WEIGHTS w.pth",
        ("w.pth: truncated, damaged or not a weights file",),
        raw(b""),
        leaves=BEGUN,
    ),
    Case(
        "evaluate half a pickle",
        f"{EVALUATE} MODEL.WEIGHTS w.pkl",
        ("w.pkl: ",),
        raw(b"\x80\x04\x95\xff", "w.pkl"),
        leaves=BEGUN,
    ),
    Case(
        "evaluate a list",
        f"{EVALUATE} MODEL.WEIGHTS w.pth",
        ("w.pth: not a checkpoint: it contains a list",),
        weights([1, 2]),
        leaves=BEGUN,
    ),
    Case(
        "evaluate a table of texts",
        f"{EVALUATE} MODEL.WEIGHTS w.pth",
        ("w.pth: not a checkpoint",),
        weights({"model": {"a": "b"}}),
        leaves=BEGUN,
    ),
    Case(
        "evaluate a folder",
        f"{EVALUATE} MODEL.WEIGHTS w",
        ("w: a folder, not a weights file",),
        empty_folder("w"),
        leaves=BEGUN,
    ),
    Case(
        "evaluate other weights",
        f"{EVALUATE} {WEIGHTS} MODEL.FPN.OUT_CHANNELS 64",
        ("model_final.pth: does not fit the model",),
        leaves=BEGUN,
    ),
    Case(
        "evaluate a file that cannot be read",
        f"{EVALUATE} MODEL.WEIGHTS /proc/self/mem",
        ("/proc/self/mem: cannot be read (Input/output error)",),
        leaves=BEGUN,
    ),
    Case(
        "evaluate a classifier",
        f"{EVALUATE} MODEL.WEIGHTS catalog://ImageNetPretrained/FAIR/R-101-GN",
        ("an ImageNet classifier",),
        leaves=BEGUN,
    ),
    Case(
        "resume nothing whole",
        f"train --resume {RUN}",
        ("model_final.pth: ", "omit --resume"),
        damaged_run(model_0000001=b"half", model_final=b"half"),
        leaves=BEGUN,
    ),
    Case(
        "resume a missing file",
        f"train --resume {RUN}",
        ("model_0000001.pth: no such file", "omit --resume"),
        raw(b"model_0000001.pth", "run/last_checkpoint"),
        leaves=BEGUN,
    ),
    Case(
        "resume an empty name",
        f"train --resume {RUN}",
        ("run", "omit --resume"),
        raw(b"", "run/last_checkpoint"),
        leaves=BEGUN,
    ),
    Case(
        "evaluate a damaged run",
        f"evaluate --resume {RUN}",
        ("model_final.pth: ", "no complete checkpoint"),
        damaged_run(model_final=b"half"),
        leaves=BEGUN,
    ),
]

FOLDS = "kfold --config-file {run}/config.yaml --dataset"
KFOLD = [
    Case("no folds", f"{FOLDS} bbbc039 --folds 0", ("--folds 0: give at least 2",)),
    Case("one fold", f"{FOLDS} bbbc039 --folds 1", ("--folds 1: give at least 2",)),
    Case("negative folds", f"{FOLDS} bbbc039 --folds -3", ("--folds -3: give at least 2",)),
    Case("folds in words", f"{FOLDS} bbbc039 --folds five", ("--folds", "five")),
    Case("negative seed of folds", f"{FOLDS} bbbc039 --folds 2 --seed -1", ("--seed -1: give 0 or",)),
    Case("folds of an unknown data set", f"{FOLDS} cells --folds 2", ("cells: its 2 folds are not prepared",)),
    Case("folds without source", f"{FOLDS} bbbc039 --folds 2", ("bbbc039 needs --source",)),
    Case("folds of no folder", f"{FOLDS} bbbc039 --folds 2 --source nowhere", ("nowhere",)),
    Case(
        "folds of no config",
        "kfold --config-file no.yaml --dataset bbbc039 --folds 2",
        ("no.yaml: no such config file",),
    ),
    Case("folds without config", "kfold --dataset bbbc039 --folds 2", ("no config file given",)),
    Case("folds without data set", "kfold --config-file {run}/config.yaml --folds 2", ("--dataset",)),
    Case(
        "folds that only evaluate",
        "kfold --config-file {run}/config.yaml --eval-only --dataset bbbc039 --folds 2",
        ("leave out",),
    ),
    Case("prepare no folds", "prepare bbbc039 --source . --folds 0", ("--folds 0: give at least 2",)),
    Case("prepare with a negative seed", "prepare bbbc039 --source . --folds 2 --seed -1", ("--seed -1: give 0 or",)),
]

THRESHOLDS = [
    Case("thresholds without config", "thresholds", ("no config file given",)),
    Case(
        "thresholds of an unknown metric",
        f"thresholds --stored --metric mAP {RUN}",
        ("--metric mAP", "AJI"),
        leaves=BEGUN,
    ),
    Case("thresholds without weights", f"thresholds {RUN}", ("no weights to evaluate",), leaves=BEGUN),
    Case(
        "thresholds of what was not stored",
        f"thresholds --stored {RUN}",
        ("no stored prediction", "run without --stored"),
        leaves=BEGUN,
    ),
    Case(
        "thresholds on two data sets",
        f"thresholds {RUN} DATASETS.TEST \"('phantoms_train','phantoms_val')\"",
        ("DATASETS.TEST", "name the one data set"),
        leaves=BEGUN,
    ),
    Case("thresholds in two processes", f"thresholds --cpu-ranks 2 {RUN}", ("thresholds: runs in one process",)),
]

FINETUNE = [
    Case("fine-tune nothing", "train --from pretrained nowhere", ("nowhere",)),
    Case("fine-tune no folder", "train --from pretrained", ("FOLDER",)),
    Case(
        "fine-tune an empty folder",
        "train --from scratch mine --out run",
        ("mine",),
        empty_folder("mine"),
        leaves=BEGUN,
    ),
    Case("fine-tune of no model", "train --from nuclie mine --out run", ("nuclie: no such model", "nuclei"), labels),
    Case(
        "fine-tune of an empty model",
        "train --from model mine --out run",
        ("model/config.yaml: is missing",),
        all_of(labels, empty_folder("model")),
    ),
    Case(
        "fine-tune weights without config",
        "train --from w.pth mine --out run",
        ("w.pth: no config.yaml beside it",),
        all_of(labels, weights({})),
    ),
    Case(
        "fine-tune a model and a config",
        "train --from pretrained mine --config-file c.yaml",
        ("--config-file c.yaml",),
        labels,
    ),
    Case(
        "fine-tune into a file",
        "train --from {run} mine --out taken",
        ("taken",),
        all_of(labels, occupied),
    ),
    Case(
        "fine-tune with unknown key",
        "train --from {run} mine --out run MODEL.NONE 1",
        ("MODEL.NONE",),
        labels,
        leaves=BEGUN,
    ),
    Case(
        "fine-tune with unknown option",
        "train --from {run} mine --out run --option colour=red",
        ("colour",),
        labels,
        leaves=BEGUN,
    ),
    Case(
        "fine-tune an option without value",
        "train --from {run} mine --out run --option colour",
        ("--option colour: give KEY=VALUE",),
        labels,
    ),
]


@by_name([*CONFIGS, *VALUES, *START, *KFOLD, *THRESHOLDS, *FINETUNE])
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def spoiled(part: str, content: bytes | None) -> Callable[[Path], None]:
    """Writes datasets/, the prepared images with one file of phantoms/train changed, or removed."""

    def write(folder: Path) -> None:
        shutil.copytree(os.environ["WHOLE_DATASETS"], folder / "datasets")
        place = folder / "datasets" / "phantoms" / "train" / part
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            file.unlink() if content is None else file.write_bytes(content)

    return write


DATA = [
    Case(
        "half a json",
        TRAIN,
        ("phantoms/train/instances.json: is not the JSON of a prepared",),
        spoiled("instances.json", b"{"),
    ),
    Case(
        "json that is a list",
        TRAIN,
        ("phantoms/train/instances.json: is not the JSON of a prepared",),
        spoiled("instances.json", b"[]"),
    ),
    Case(
        "json nested too deep",
        TRAIN,
        ("phantoms/train/instances.json: is not the JSON of a prepared",),
        spoiled("instances.json", DEEP.encode()),
    ),
    Case(
        "json of bytes",
        TRAIN,
        ("phantoms/train/instances.json: is not the JSON of a prepared",),
        spoiled("instances.json", b"\xff\xfe\x00"),
    ),
    Case(
        "no json",
        TRAIN,
        ("phantoms/train/instances.json is missing", "pffnet prepare phantoms"),
        spoiled("instances.json", None),
    ),
    Case("half an image", TRAIN, ("phantoms/train/images/",), spoiled("images", b"\x89PNG\r\n\x1a\n"), leaves=BEGUN),
    Case("empty image", TRAIN, ("phantoms/train/images/",), spoiled("images", b""), leaves=BEGUN),
    Case("missing image", TRAIN, ("phantoms/train/images/",), spoiled("images", None), leaves=BEGUN),
    Case("missing semantic map", TRAIN, ("phantoms/train/semantic/",), spoiled("semantic", None), leaves=BEGUN),
    Case(
        "half an image, read by a worker",
        f"{TRAIN} DATALOADER.NUM_WORKERS 1",
        ("phantoms/train/images/",),
        spoiled("images", b"\x89PNG"),
        leaves=BEGUN,
    ),
]


@by_name(DATA)
def test_damaged_data(case: Case, check: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    check(case)
