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
        # leaves are few; the coursework's cap is its own
        assert (50 if "cvppp" in name else 100 if "coursework" in name else 500) <= cfg.TEST.DETECTIONS_PER_IMAGE
        assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST >= cfg.TEST.DETECTIONS_PER_IMAGE
        assert not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        assert cfg.INPUT.MASK_FORMAT == "bitmask"
        assert cfg.MODEL.WEIGHTS or cfg.MODEL.BACKBONE.FREEZE_AT == 0


@pytest.mark.parametrize("name", [c for c in CONFIGS if "R18" in c])
def test_compact_configs_build(name: str) -> None:
    model = build_model(read(name))
    assert type(model).__name__ == ("GeneralizedRCNN" if "MaskRCNN" in name else "PFFNet")


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
