"""Every yaml that is shipped builds the model it says."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from pffnet_d2 import add_pffnet_config, config_path
from pffnet_d2.data.augmentation import build_augmentations
from pffnet_d2.errors import InputError

CONFIGS = sorted(str(p.relative_to(config_path())) for p in config_path().rglob("*.yaml"))


def read(name: str) -> CfgNode:
    cfg = get_cfg()
    add_pffnet_config(cfg)
    cfg.merge_from_file(str(config_path(name)), allow_unsafe=False)
    return cfg


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_known_keys_and_dense_caps(name: str) -> None:
    cfg = read(name)
    if not name.startswith("Base-"):
        assert cfg.OUTPUT_DIR.startswith("output/")
        assert (50 if "cvppp" in name else 500) <= cfg.TEST.DETECTIONS_PER_IMAGE  # leaves are few
        assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST >= cfg.TEST.DETECTIONS_PER_IMAGE
        assert not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        assert cfg.INPUT.MASK_FORMAT == "bitmask"
        assert cfg.MODEL.WEIGHTS or cfg.MODEL.BACKBONE.FREEZE_AT == 0


@pytest.mark.parametrize("name", [c for c in CONFIGS if "R18" in c])
def test_compact_configs_build(name: str) -> None:
    model = build_model(read(name))
    method = name.rpartition("/")[2].partition("_")[0]
    assert type(model).__name__ == {"MaskRCNN": "GeneralizedRCNN", "ObjectGuided": "ObjectGuided"}.get(method, "PFFNet")


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
    assert not any(p.requires_grad for p in model.backbone.bottom_up.stem.parameters())  # FREEZE_AT 2, as released


def test_object_guided_as_published() -> None:
    """100 epochs of 402 images in batches of 8, Adam at 1.25e-4 without a schedule, 512 x 512."""
    cfg = read("dsb2018/ObjectGuided_R50.yaml")
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == ("ADAM", 1.25e-4, 0)
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.IMS_PER_BATCH) == ((), 0, 8)
    assert cfg.SOLVER.MAX_ITER * 8 == 402 * 100
    square, flip = build_augmentations(cfg, is_train=True)
    assert (square.size, square.scales) == (512, [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    assert (flip.prob, flip.horizontal, flip.vertical) == (0.5, True, False)


def test_table_ii_of_object_guided() -> None:
    """k and beta of its strategies; the chosen one is the base's."""
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
        refine = read(f"ablations/ObjectGuided_{name}.yaml").MODEL.OBJECT_GUIDED.REFINE
        assert strategy == (refine.K, refine.BETA)


def test_augmentations_are_the_papers() -> None:
    """[P] IV-A: flips and rotations; for all but BBBC039 also blurs and noise."""
    every = ["flip", "rotate90", "gaussian_blur", "median_blur", "gaussian_noise"]
    for name, augmentations in (("", every), ("tnbc/", every), ("cvppp/", every), ("bbbc039/", every[:2])):
        cfg = read(f"{name}PFFNet_R101_FPN.yaml")
        assert augmentations == cfg.INPUT.PFFNET.AUGMENTATIONS
        assert build_augmentations(cfg, is_train=True)


def test_a_wrong_name_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"PFFNet_R50\.yaml: no such config; pffnet_d2 ships .*PFFNet_R101_FPN\.yaml"):
        config_path("PFFNet_R50.yaml")
