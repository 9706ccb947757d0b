"""``pffnet train`` and configs that are damaged, contradict themselves, or are laid over each other wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pffnet_d2.config import config_path
from pffnet_d2.masks.coco import label_map_to_annotations
from tests.robustness.case import Case, by_name

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
import torch.utils.cpp_extension  # noqa: F401  (it warns, once, where there is a CUDA toolkit and no GPU)


def file(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Writes one file."""

    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def files(**contents: str) -> Callable[[Path], None]:
    """Writes NAME.yaml for each."""

    def write(folder: Path) -> None:
        for name, content in contents.items():
            (folder / f"{name}.yaml").write_text(content)

    return write


def prepared(folder: Path) -> None:
    """A prepared data set of one image, datasets/phantoms/train."""
    root = folder / "datasets" / "phantoms" / "train"
    for name in ("images", "semantic"):
        (root / name).mkdir(parents=True)
    labels = np.zeros((32, 32), np.int32)
    labels[8:20, 8:20] = 1
    Image.fromarray(np.repeat((labels * 200).astype(np.uint8)[..., None], 3, axis=2)).save(root / "images" / "a.png")
    Image.fromarray(labels.astype(np.uint8)).save(root / "semantic" / "a.png")
    annotations = [{**a, "id": 1, "image_id": 1} for a in label_map_to_annotations(labels)]
    content = {
        "info": {"dataset": "phantoms", "split": "train", "reader": "phantoms"},
        "images": [{"id": 1, "file_name": "a.png", "height": 32, "width": 32}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "nucleus", "supercategory": "nucleus"}],
    }
    (root / "instances.json").write_text(json.dumps(content))


CONFIGS = config_path()
TRAIN = "train --config-file bad.yaml"
# Of the trained tiny model, on the data set of ``prepared``.
TINY = "train --config-file {run}/config.yaml"
DATA = "DATASETS.TRAIN \"('phantoms_train',)\" DATASETS.TEST () OUTPUT_DIR out"


def contradiction(name: str, keys: str, *says: str) -> Case:
    """Keys that do not go together. They are found when the network is built, after OUTPUT_DIR was made."""
    words = " ".join(f"MODEL.{w}" if i % 2 == 0 else w for i, w in enumerate(keys.split(" ")))
    return Case(name, f"{TINY} {DATA} {words}", says, prepared, leaves=("out/*",))


FILES = [
    Case("no config file", "train", ("no config file given", "--config-file")),
    Case("config file that is not there", "train --config-file none.yaml", ("none.yaml: no such config file",)),
    Case("a folder as config", "train --config-file .", (".: is a folder", "give a yaml file")),
    Case("empty config", TRAIN, ("bad.yaml: is empty", "give a config"), file("bad.yaml", "")),
    Case("config of comments alone", TRAIN, ("bad.yaml: is empty",), file("bad.yaml", "# MODEL:\n")),
    Case("config that is a list", TRAIN, ("bad.yaml: contains a list, not keys",), file("bad.yaml", "- MODEL\n")),
    Case("config that is a word", TRAIN, ("bad.yaml: contains a str, not keys",), file("bad.yaml", "MODEL\n")),
    Case("yaml with a tab", TRAIN, ("bad.yaml, line 2: not YAML",), file("bad.yaml", "MODEL:\n\tMASK_ON: True\n")),
    Case(
        "yaml with an open bracket", TRAIN, ("bad.yaml, line", "not YAML"), file("bad.yaml", "MODEL: {MASK_ON: True\n")
    ),
    Case(
        "yaml that runs python",
        TRAIN,
        ("bad.yaml, line 1: not YAML of plain values",),
        file("bad.yaml", "MODEL: !!python/object/apply:os.getcwd []\n"),
    ),
    Case(
        "config in Latin 1",
        TRAIN,
        ("bad.yaml: not YAML of plain values",),
        file("bad.yaml", b"OUTPUT_DIR: r\xe9sultat\n"),
    ),
    Case(
        "a picture as config",
        TRAIN,
        ("bad.yaml", "not YAML of plain values"),
        file("bad.yaml", b"\x89PNG\r\n\x1a\n\0\0"),
    ),
    Case(
        "base that is not there",
        TRAIN,
        ("bad.yaml: its _BASE_ none.yaml does not exist",),
        file("bad.yaml", "_BASE_: none.yaml\n"),
    ),
    Case(
        "base that is a number", TRAIN, ("bad.yaml: its _BASE_ 3 is not a file name",), file("bad.yaml", "_BASE_: 3\n")
    ),
    Case(
        "list of bases with a gap",
        TRAIN,
        ("bad.yaml: its _BASE_ None is not a file name",),
        files(bad="_BASE_: [a.yaml, ~]\n", a="VERSION: 2\n"),
    ),
    Case(
        "second of two bases that is not there",
        TRAIN,
        ("bad.yaml: its _BASE_ b.yaml does not exist",),
        files(bad="_BASE_: [a.yaml, b.yaml]\n", a="VERSION: 2\n"),
    ),
    Case(
        "second of two bases that is empty",
        TRAIN,
        ("b.yaml: is empty",),
        files(bad="_BASE_: [a.yaml, b.yaml]\n", a="VERSION: 2\n", b=""),
    ),
    Case(
        "base on the web",
        TRAIN,
        ("https://example.org/a.yaml is not a local file",),
        file("bad.yaml", "_BASE_: https://example.org/a.yaml\n"),
    ),
    Case(
        "config based on itself",
        TRAIN,
        ("bad.yaml: its _BASE_ files name each other in a circle",),
        file("bad.yaml", "_BASE_: bad.yaml\n"),
    ),
    Case(
        "two configs based on each other",
        TRAIN,
        ("bad.yaml: its _BASE_ files name each other",),
        files(bad="_BASE_: [a.yaml]\n", a="_BASE_: bad.yaml\n"),
    ),
    Case(
        "unknown section",
        TRAIN,
        ("bad.yaml: Non-existent config key: MODLE",),
        file("bad.yaml", "MODLE: {MASK_ON: True}\nVERSION: 2\n"),
    ),
    Case(
        "unknown key",
        TRAIN,
        ("bad.yaml: Non-existent config key: MODEL.PFFNET.FUSSION",),
        file("bad.yaml", "MODEL: {PFFNET: {FUSSION: 1}}\nVERSION: 2\n"),
    ),
    Case(
        "a word for a number",
        TRAIN,
        ("bad.yaml", "SOLVER.MAX_ITER"),
        file("bad.yaml", "SOLVER: {MAX_ITER: many}\nVERSION: 2\n"),
    ),
    Case(
        "a value for a section",
        TRAIN,
        ("bad.yaml: Type mismatch", "for config key: MODEL"),
        file("bad.yaml", "MODEL: 3\nVERSION: 2\n"),
    ),
    Case("config of a later version", TRAIN, ("bad.yaml",), file("bad.yaml", "VERSION: 9\n")),
    Case(
        "without data sets", TRAIN, ("DATASETS.TRAIN is empty", "name the data sets"), file("bad.yaml", "VERSION: 2\n")
    ),
]

PARTS = [
    Case(
        "method that is not there",
        f"{TINY} --method none.yaml",
        ("none.yaml: no such file", "give a part of a config"),
    ),
    Case("a folder as method", f"{TINY} --method .", (".: is a folder",)),
    Case("empty method", f"{TINY} --method bad.yaml", ("bad.yaml: is empty",), file("bad.yaml", "")),
    Case(
        "method with an unknown key",
        f"{TINY} --method bad.yaml",
        ("bad.yaml: Non-existent config key: MODEL.FUSION",),
        file("bad.yaml", "MODEL: {FUSION: 1}\n"),
    ),
    Case(
        "method of the wrong type",
        f"{TINY} --method bad.yaml",
        ("bad.yaml", "MODEL.PFFNET.FUSION.DETACH"),
        file("bad.yaml", "MODEL: {PFFNET: {FUSION: {DETACH: [1]}}}\n"),
    ),
    Case(
        "method with a value out of range",
        f"{TINY} --method bad.yaml",
        ("with bad.yaml: MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT -1",),
        file("bad.yaml", "MODEL: {PFFNET: {CONSISTENCY_LOSS_WEIGHT: -1.0}}\n"),
    ),
    Case(
        "second method that is damaged",
        f"{TINY} --method good.yaml --method bad.yaml",
        ("bad.yaml, line 2: not YAML",),
        files(good="TEST: {EVAL_PERIOD: 1}\n", bad="MODEL: [\n"),
    ),
    Case(
        "method based on what is not there",
        f"{TINY} --method bad.yaml",
        ("bad.yaml: its _BASE_ ../methods/V2.yaml does not exist",),
        file("bad.yaml", "_BASE_: ../methods/V2.yaml\n"),
    ),
    Case(
        "a whole config as method",
        f"{TINY} --method bad.yaml",
        ("bad.yaml: is a complete config", "--config-file"),
        file("bad.yaml", "DATASETS: {TRAIN: [a]}\n"),
    ),
    Case(
        "a method as config",
        f"train --config-file {CONFIGS}/methods/CellRCNN.yaml",
        ("CellRCNN.yaml: is a part of a config", "--method"),
    ),
    Case(
        "an ablation as config",
        f"train --config-file {CONFIGS}/ablations/Without_quality.yaml",
        ("Without_quality.yaml: is a part of a config", "--config-file configs/tnbc/PFFNet_R101_FPN.yaml --method"),
    ),
    Case(
        "method after KEY VALUE pairs",
        f"{TINY} SEED 1 --method good.yaml",
        ("command line", "--method"),
        files(good="TEST: {EVAL_PERIOD: 1}\n"),
    ),
    Case(
        "kfold with a method that is not there",
        "kfold --config-file {run}/config.yaml --method none.yaml --dataset cells --folds 2",
        ("none.yaml: no such file",),
    ),
    Case(
        "evaluate with a method that is not there",
        "evaluate --config-file {run}/config.yaml --method none.yaml",
        ("none.yaml: no such file",),
    ),
]

MASK_RCNN = (
    "META_ARCHITECTURE GeneralizedRCNN BACKBONE.NAME build_resnet_fpn_backbone ROI_HEADS.NAME StandardROIHeads "
    "ROI_MASK_HEAD.NAME MaskRCNNConvUpsampleHead"
)

CONTRADICTIONS = [
    contradiction(
        "maps that the backbone does not have",
        "RPN.IN_FEATURES \"['p2','p9']\"",
        "the keys below MODEL describe no network",
    ),
    contradiction(
        "fusion without semantic branch but with consistency",
        'SEM_SEG_HEAD.NAME ""',
        "CONSISTENCY_LOSS_WEIGHT",
        "set MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT 0.0",
    ),
    contradiction(
        "consistency without fusion",
        'PFFNET.FUSION.NAME ""',
        "MODEL.PFFNET.FUSION.NAME",
        "set MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT 0.0",
    ),
    contradiction(
        "output of a branch that is left out",
        'SEM_SEG_HEAD.NAME "" PFFNET.CONSISTENCY_LOSS_WEIGHT 0.0 PFFNET.OUTPUTS "[\'semantic\']"',
        "semantic without its branch",
        "MODEL.SEM_SEG_HEAD.NAME GCNHead",
    ),
    contradiction(
        "two semantic maps",
        "PFFNET.OUTPUTS \"['semantic','semantic_fused']\"",
        "MODEL.PFFNET.OUTPUTS names two semantic maps",
    ),
    contradiction(
        "an output that does not exist",
        "PFFNET.OUTPUTS \"['boxes']\"",
        "MODEL.PFFNET.OUTPUTS ['boxes'] is unknown; choose from",
    ),
    contradiction(
        "an unknown fusion",
        "PFFNET.FUSION.MODE sum",
        "MODEL.PFFNET.FUSION.MODE 'sum'",
        "residual_attention, attention, summation, replacement",
    ),
    contradiction("unknown ROIs", "PFFNET.FUSION.ROIS first", "MODEL.PFFNET.FUSION.ROIS 'first'", "all, best"),
    contradiction("unknown boxes", "PFFNET.FUSION.BOXES true", "MODEL.PFFNET.FUSION.BOXES", "proposal, predicted"),
    contradiction(
        "unknown channels",
        "PFFNET.FUSION.CHANNELS both",
        "MODEL.PFFNET.FUSION.CHANNELS 'both'",
        "foreground, per_channel",
    ),
    contradiction(
        "replacement that the loss would not see",
        "PFFNET.FUSION.MODE replacement PFFNET.FUSION.POST_CONVS False",
        "CHANNELS foreground",
        "set MODEL.PFFNET.FUSION.CHANNELS per_channel",
    ),
    contradiction(
        "two channels of a mask head of one",
        "PFFNET.FUSION.CHANNELS per_channel ROI_MASK_HEAD.NAME MaskRCNNConvUpsampleHead",
        "masks have 1 channels, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 2",
        "DualModalMaskHead or TwoChannelMaskHead",
    ),
    contradiction(
        "ROI heads that hand no masks on",
        "ROI_HEADS.NAME StandardROIHeads",
        "MODEL.PFFNET.FUSION.NAME RAFFHead",
        "set MODEL.ROI_HEADS.NAME PFFNetROIHeads",
    ),
    contradiction(
        "refined boxes of Mask R-CNN",
        f"{MASK_RCNN} PFFNET.BOX_REFINEMENTS 1",
        "MODEL.PFFNET.BOX_REFINEMENTS 1: MODEL.META_ARCHITECTURE GeneralizedRCNN",
        "set it to 0",
    ),
    contradiction(
        "rescoring without a semantic branch",
        f"{MASK_RCNN} PFFNET.SEMANTIC_POWER 0.5",
        "MODEL.PFFNET.SEMANTIC_POWER 0.5: MODEL.META_ARCHITECTURE GeneralizedRCNN",
        "set it to 0.0",
    ),
    contradiction("no masks", "MASK_ON False", "MODEL.MASK_ON False", "set MODEL.MASK_ON True"),
    contradiction("three classes", "ROI_HEADS.NUM_CLASSES 3", "MODEL.ROI_HEADS.NUM_CLASSES 3", "set it to 1"),
    contradiction(
        "a backbone without its stages",
        "BACKBONE.NAME build_resnet_fpn_backbone",
        "no res2",
        "set MODEL.BACKBONE.NAME build_pffnet",
    ),
    contradiction(
        "an unknown way to reshape masks",
        "ROI_MASK_QUALITY_HEAD.RESHAPE flat",
        "MODEL.ROI_MASK_QUALITY_HEAD.RESHAPE",
        "space_to_depth",
    ),
    contradiction("an unknown trunk", "ROI_MASK_HEAD.TRUNK mine", "MODEL.ROI_MASK_HEAD.TRUNK", "paper"),
    contradiction(
        "a fusion head that does not exist", "PFFNET.FUSION.NAME Fuse", "MODEL.PFFNET.FUSION.NAME", "RAFFHead"
    ),
    contradiction(
        "layers that train from nothing and are frozen",
        'BACKBONE.FREEZE_AT 2 WEIGHTS ""',
        "MODEL.WEIGHTS is empty",
        "set MODEL.BACKBONE.FREEZE_AT 0",
    ),
    Case(
        "steps that go back",
        f"{TINY} {DATA} SOLVER.STEPS (20,10)",
        ("SOLVER.STEPS (20, 10)", "later than the one before"),
        prepared,
    ),
    Case(
        "a data set nobody knows",
        f"{TINY} DATASETS.TRAIN \"('phantom_train',)\"",
        ("phantom_train: no such data set", "phantoms_train"),
    ),
    Case(
        "a data set that is not prepared",
        f"{TINY} DATASETS.TRAIN \"('tnbc_train',)\"",
        ("tnbc_train is not prepared", "pffnet prepare tnbc"),
    ),
]


@by_name([*FILES, *PARTS, *CONTRADICTIONS])
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)
