"""Every shipped yaml builds the right model."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from pffnet_d2 import add_pffnet_config, config_path
from pffnet_d2.config import PARTS, read_config
from pffnet_d2.data.augmentation import build_augmentations
from pffnet_d2.errors import InputError

# The files in methods/ and ablations/ are merged into others and are not complete configs.
CONFIGS = sorted(str(p.relative_to(config_path())) for p in config_path().rglob("*.yaml") if p.parent.name not in PARTS)
ABLATIONS = sorted(path.stem for path in config_path("ablations").iterdir())
METHODS = ("MaskRCNN_GN", "PanopticFPN", "CellRCNN", "CellRCNN_V2")


def read(name: str) -> CfgNode:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    cfg.merge_from_file(str(config_path(name)), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_known_keys_and_dense_caps(name: str) -> None:
    cfg = read(name)
    if not name.startswith("Base-") and name != "finetune.yaml":  # finetune.yaml is merged into a model's config
        assert cfg.OUTPUT_DIR.startswith("output/")
        # plants have few leaves; the coursework has its own limit
        assert (50 if "cvppp" in name else 100 if "coursework" in name else 500) <= cfg.TEST.DETECTIONS_PER_IMAGE
        assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST >= cfg.TEST.DETECTIONS_PER_IMAGE
        assert not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        assert cfg.INPUT.MASK_FORMAT == "bitmask"
        assert cfg.MODEL.WEIGHTS or cfg.MODEL.BACKBONE.FREEZE_AT == 0


@pytest.mark.parametrize("folder", ["kumar", "tnbc", "bbbc039", "cvppp", "dsb2018", "cpm17"])
def test_methods_differ_only_in_the_method(folder: str) -> None:
    pffnet = read(f"{folder}/PFFNet_R101_FPN.yaml")
    for method in METHODS:
        cfg = read_config(
            str(config_path(f"{folder}/PFFNet_R101_FPN.yaml")), [], [str(config_path(f"methods/{method}.yaml"))]
        )
        assert f"output/{folder}/PFFNet_R101_FPN_{method}" == cfg.OUTPUT_DIR
        for part in ("INPUT", "DATASETS", "SOLVER", "TEST"):
            assert cfg[part] == pffnet[part]
        for part in ("WEIGHTS", "PIXEL_MEAN", "RESNETS", "FPN", "ANCHOR_GENERATOR", "RPN", "ROI_BOX_HEAD"):
            assert cfg.MODEL[part] == pffnet.MODEL[part]
        assert pffnet.MODEL.PFFNET.LABEL_MAP == cfg.MODEL.PFFNET.LABEL_MAP
        meta = {"MaskRCNN_GN": "GeneralizedRCNN", "PanopticFPN": "PanopticFPN"}.get(method, "PFFNet")
        assert meta == cfg.MODEL.META_ARCHITECTURE


def test_output_folders_are_the_names() -> None:
    """Two configs that write into the same folder would resume each other."""
    folders = [read(name).OUTPUT_DIR for name in CONFIGS if not name.startswith("Base-")]
    assert len(set(folders)) == len(folders)


# Released configs: test proposals before and after NMS, ROI batch, NMS threshold, detections, beta, iterations.
RELEASED = {
    "kumar": (30000, 8000, 512, 0.3, 4000, 0.5, 25600),
    "tnbc": (4000, 1000, 256, 0.3, 500, 0.5, 12000),
    "bbbc039": (4000, 1500, 256, 0.3, 800, 0.35, 12000),
    "cvppp": (1000, 200, 128, 0.35, 50, 0.6, 6400),
}


@pytest.mark.parametrize("folder", RELEASED)
def test_numbers_of_the_released_configs(folder: str) -> None:
    cfg = read(f"{folder}/PFFNet_R101_FPN.yaml")
    rpn, roi = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS
    assert RELEASED[folder] == (
        rpn.PRE_NMS_TOPK_TEST,
        rpn.POST_NMS_TOPK_TEST,
        roi.BATCH_SIZE_PER_IMAGE,
        roi.NMS_THRESH_TEST,
        cfg.TEST.DETECTIONS_PER_IMAGE,
        cfg.MODEL.PFFNET.LABEL_MAP.SCORE_THRESH,
        cfg.SOLVER.MAX_ITER,
    )
    assert cfg.SOLVER.STEPS == (cfg.SOLVER.MAX_ITER * 3 // 4,)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32], [64], [128], [256], [512]]
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.WARMUP_ITERS) == (0.003, 1, 500)


def test_generalisation_is_tested_on_kumars_fourteen() -> None:
    cfg = read("cpm17/PFFNet_R101_FPN.yaml")
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("cpm17_train",), ("kumar_test_seen", "kumar_test_unseen"))


def test_data_sets_are_registered() -> None:
    known = set(DatasetCatalog.list())
    for name in CONFIGS:
        if not name.startswith("Base-"):
            cfg = read(name)
            assert {d for d in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if "fold" not in d} <= known, name


def test_the_papers_model() -> None:
    """Kumar: the released yaml's numbers, and parameters at the paper's widths."""
    cfg = read("PFFNet_R101_FPN.yaml")
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == cfg.SOLVER.IMS_PER_BATCH == 1
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == (0.003, (19200,), 25600)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 4000
    model = build_model(cfg)
    sizes = {
        "mask": sum(p.numel() for p in model.roi_heads.mask_head.parameters()),
        "quality": sum(p.numel() for p in model.roi_heads.mask_quality_head.parameters()),
        "gcn": sum(p.numel() for p in model.sem_seg_head.parameters()),
    }
    assert sizes == {"mask": 25_277_458, "quality": 16_269_313, "gcn": 3_140_482}
    assert not any(
        p.requires_grad for p in model.backbone.bottom_up.stem.parameters()
    )  # FREEZE_AT 2, as in the release


def test_object_guided_as_published() -> None:
    """100 epochs of 402 images in batches of 8, Adam at 1.25e-4 without a schedule, 512 x 512."""
    cfg = read("dsb2018/ObjectGuided_R50.yaml")
    assert (cfg.SOLVER.PFFNET.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == ("ADAM", 1.25e-4, 0)
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.IMS_PER_BATCH) == ((), 0, 8)
    assert cfg.SOLVER.MAX_ITER * 8 == 402 * 100
    square, flip = build_augmentations(cfg, is_train=True)
    assert (square.size, square.scales) == (512, [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    assert (flip.prob, flip.horizontal, flip.vertical) == (0.5, True, False)


def test_table_ii_of_object_guided() -> None:
    """k and beta of its strategies; the base config has the chosen one."""
    strategies = {
        "uniform_small": (1, 1),
        "biased_small": (1, 0.5),
        "uniform": (3, 3),
        "mildly_biased": (3, 2),
        "slightly_biased": (3, 1),
        "greatly_biased": (5, 0.75),
        "heavily_biased": (10, 0.75),
    }
    base = read("dsb2018/ObjectGuided_R50.yaml").MODEL.OBJECT_GUIDED.REFINE
    assert (base.K, base.BETA) == (3, 0.75)
    for name, strategy in strategies.items():
        part = str(config_path(f"ablations/ObjectGuided_{name}.yaml"))
        for folder in ("dsb2018", "cvppp"):
            refine = read_config(
                str(config_path(f"{folder}/ObjectGuided_R50.yaml")), [], [part]
            ).MODEL.OBJECT_GUIDED.REFINE
            assert list(strategy) == [refine.K, refine.BETA]


@pytest.mark.parametrize("folder", ["kumar", "tnbc", "bbbc039", "cvppp"])
@pytest.mark.parametrize("name", [name for name in ABLATIONS if not name.startswith("ObjectGuided")])
def test_an_ablation_can_be_merged_into_any_data_set(folder: str, name: str) -> None:
    """It changes only the network, and the run gets its own folder."""
    config = f"{folder}/PFFNet_R101_FPN.yaml"
    whole, cut = read(config), read_config(str(config_path(config)), [], [str(config_path(f"ablations/{name}.yaml"))])
    assert f"output/{folder}/PFFNet_R101_FPN_{name}" == cut.OUTPUT_DIR
    for part in ("INPUT", "DATASETS", "SOLVER", "TEST"):
        assert cut[part] == whole[part]
    for part in ("WEIGHTS", "RPN", "ROI_BOX_HEAD", "BACKBONE"):
        assert cut.MODEL[part] == whole.MODEL[part]
    assert cut.MODEL != whole.MODEL


def test_tables_ix_to_xi_of_pffnet() -> None:
    """Each row is PFFNet with one thing changed."""

    def row(name: str) -> CfgNode:
        files = [str(config_path(f"ablations/{name}.yaml"))] if name else []
        return read_config(str(config_path("bbbc039/PFFNet_R101_FPN.yaml")), [], files).MODEL

    pffnet = row("")
    modes = [("", "residual_attention"), ("Fusion_a_replacement", "replacement"), ("Fusion_b_summation", "summation")]
    for name, mode in [*modes, ("Fusion_c_attention", "attention")]:
        assert mode == row(name).PFFNET.FUSION.MODE
        assert row(name).PFFNET.CONSISTENCY_LOSS_WEIGHT == pffnet.PFFNET.CONSISTENCY_LOSS_WEIGHT == 1
    x, xi = row("Without_quality"), row("Without_consistency")
    assert (x.ROI_MASK_QUALITY_HEAD.NAME, x.PFFNET) == ("", pffnet.PFFNET)
    assert (xi.PFFNET.CONSISTENCY_LOSS_WEIGHT, xi.ROI_MASK_QUALITY_HEAD) == (0, pffnet.ROI_MASK_QUALITY_HEAD)


def test_parts_are_merged_in_order_and_then_the_keys(tmp_path: Path) -> None:
    config = str(config_path("bbbc039/PFFNet_R18_FPN.yaml"))
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("MODEL: {PFFNET: {CONSISTENCY_LOSS_WEIGHT: 0.5, MASK_LOSS_WEIGHT: 2.0}}\nTEST: {EVAL_PERIOD: 7}")
    second.write_text("MODEL: {PFFNET: {CONSISTENCY_LOSS_WEIGHT: 0.25}}")
    cfg = read_config(config, ["TEST.EVAL_PERIOD", "9"], [str(first), str(second)])
    assert (cfg.MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT, cfg.MODEL.PFFNET.MASK_LOSS_WEIGHT) == (0.25, 2)
    assert cfg.TEST.EVAL_PERIOD == 9
    assert cfg.OUTPUT_DIR == "output/bbbc039/PFFNet_R18_FPN_first_second"
    assert read_config(config, ["OUTPUT_DIR", "here"], [str(first)]).OUTPUT_DIR == "here"


def test_cell_rcnn_v2_as_published() -> None:
    """[V2] 4.2, without any layer that normalises."""
    cfg = read("kumar/CellRCNN_V2_published_R101_FPN.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == (0.0025, (8640, 12960), 17280)
    assert (cfg.SOLVER.GAMMA, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.IMS_PER_BATCH) == (0.1, 500, 1)
    assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY, cfg.INPUT.CROP.SIZE) == (0.9, 0.0001, [512, 512])
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("kumar_train",), ("kumar_val",))
    assert build_augmentations(cfg, is_train=True)
    norms = {
        type(m).__name__ for m in build_model(cfg).modules() if "Norm" in type(m).__name__ and not list(m.children())
    }
    assert norms == {"FrozenBatchNorm2d"}


@pytest.mark.parametrize("folder", ["bbbc039", "dsb2018", "kumar", "tnbc"])
def test_cell_rcnn_laid_over_v2_is_cell_rcnn(folder: str) -> None:
    """On Lite0 the config of Cell R-CNN is laid over V2's: nothing of V2's network is left, the data is the same."""
    v2, cell = (read(f"{folder}/{name}_Lite0_FPN.yaml") for name in ("CellRCNN_V2", "CellRCNN"))
    plain = read("dsb2018/PFFNet_Lite0_FPN.yaml")
    plain.merge_from_file(str(config_path("methods/CellRCNN.yaml")), allow_unsafe=False)
    plain.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    assert str(build_model(cell)) == str(build_model(plain)) != str(build_model(v2))
    assert (cell.DATASETS, cell.INPUT, cell.TEST) == (v2.DATASETS, v2.INPUT, v2.TEST)
    assert cell.MODEL.PFFNET.SEMANTIC_POWER == v2.MODEL.PFFNET.SEMANTIC_POWER == 0.5


def test_augmentations_are_the_papers() -> None:
    """[P] IV-A: flips and rotations; for all but BBBC039 also blurs and noise."""
    every = ["flip", "rotate90", "gaussian_blur", "median_blur", "gaussian_noise"]
    for name, augmentations in (("", every), ("tnbc/", every), ("cvppp/", every), ("bbbc039/", every[:2])):
        cfg = read(f"{name}PFFNet_R101_FPN.yaml")
        assert augmentations == cfg.INPUT.PFFNET.AUGMENTATIONS
        assert build_augmentations(cfg, is_train=True)


def test_a_wrong_name_lists_the_configs() -> None:
    with pytest.raises(InputError, match=r"PFFNet_R50\.yaml: no such config; pffnet_d2 ships .*PFFNet_R101_FPN\.yaml"):
        config_path("PFFNet_R50.yaml")


def test_the_courseworks_stages_train_what_it_says() -> None:
    trained = []
    for name in ("MaskRCNN_R101_FPN_heads", "MaskRCNN_R101_FPN"):
        cfg = read(f"dsb2018/coursework/{name}.yaml")
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.RESNETS.DEPTH = 50
        model = build_model(cfg)
        trained.append({n for n, p in model.named_parameters() if p.requires_grad})
        assert {n.split(".")[0] for n in trained[-1]} == {"backbone", "proposal_generator", "roi_heads"}
        assert any(n.startswith("backbone.fpn_lateral2") for n in trained[-1])
    heads, more = trained
    assert not any("bottom_up" in n for n in heads)
    assert {n.split(".")[2] for n in more - heads} == {"res4", "res5"}
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.001, 5000)
