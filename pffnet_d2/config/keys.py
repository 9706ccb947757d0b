"""The keys that this plugin adds to Detectron2's config.

The comment of a key says what it does, gives the symbol of the papers, and where to find it in the papers ([P] PFFNet,
IEEE TIP 30, 2021; [V2] Cell R-CNN V2, IJCAI 2019; [OG] ObjectGuided, IEEE TMI 40, 2021) or in the code released with
[P] or [OG].
"""

from __future__ import annotations

from typing import Any


def add_pffnet_config(cfg: Any) -> None:
    """Add the keys of PFFNet and its family to ``cfg`` (a detectron2 ``CfgNode``), in place."""
    from detectron2.config import CfgNode as CN

    _add_input(cfg, CN)
    _add_prediction(cfg, CN)
    _add_fusion(cfg, CN)
    _add_heads(cfg, CN)
    _add_other_networks(cfg, CN)
    _add_training(cfg, CN)
    _add_object_guided(cfg, CN)


def _add_input(cfg: Any, CN: Any) -> None:
    """How images are prepared for a network."""
    cfg.INPUT.PFFNET = CN()
    # Augmentations during training, in this order: flip, rotate90, gaussian_blur, median_blur, gaussian_noise, emboss,
    # sharpen, channel_shuffle, jitter, contrast, brightness, stain, colour, invert, copy_paste. "scale" happens before
    # the crop. ([P] IV-A: flips and rotations for every data set, blurs and noise for all but BBBC039.)
    cfg.INPUT.PFFNET.AUGMENTATIONS = ["flip", "rotate90"]
    # Range of the factor by which "scale" resizes.
    cfg.INPUT.PFFNET.SCALE_RANGE = [0.5, 2.0]
    # Strength of "stain": largest change of a stain's concentration, as a factor and as an offset (Tellez et al., 2019:
    # 0.05 light, 0.2 strong; with densities, as used here, 0.1 still looks like real slides, 0.2 does not).
    cfg.INPUT.PFFNET.STAIN_SIGMA = 0.1
    # Probability that "invert" inverts an image.
    cfg.INPUT.PFFNET.INVERT_CHANCE = 0.1
    # Probability that "copy_paste" pastes objects of another image of the same data set and type.
    cfg.INPUT.PFFNET.COPY_PASTE_CHANCE = 0.5

    # Resize all images to one size, as [OG] does, instead of INPUT.CROP and MIN_SIZE_TRAIN / _TEST; 0: do not.
    cfg.INPUT.SQUARE = CN()
    # Training: side in pixels of the square to which a square view of the image is resized.
    cfg.INPUT.SQUARE.TRAIN = 0
    # Sides of the view in units of the image's longer side; black outside the image.
    cfg.INPUT.SQUARE.SCALES = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]
    # Prediction: pixels of the longer side of the image ...
    cfg.INPUT.SQUARE.TEST = 0
    # ... or of both sides (the code of [OG] does this, which distorts images that are not square).
    cfg.INPUT.SQUARE.STRETCH = False


def _add_prediction(cfg: Any, CN: Any) -> None:
    """What a model returns, and how its detections become a label map."""
    cfg.MODEL.PFFNET = CN()
    # How training images were converted to 8 bit, to convert images for prediction in the same way. "auto" leaves 8-bit
    # images as they are; "stretch" stretches them to the full range too, stained tissue excepted
    # (imaging/normalisation.py).
    cfg.MODEL.PFFNET.NORMALISATION = "auto"
    # Outputs of inference in addition to the instances: "panoptic", and as sem_seg either "semantic" (S_sem of the GCN
    # branch) or "semantic_fused" (S_ins, the detections above beta fused into F_0). A branch runs only if its output
    # is asked for.
    cfg.MODEL.PFFNET.OUTPUTS = ["instances"]
    # Multiplies the class scores of detections by (mean of S_sem under the mask) ** this, in prediction; 0: as in the
    # papers, which drop the semantic branch (docs/studies/lite-recipe.md).
    cfg.MODEL.PFFNET.SEMANTIC_POWER = 0.0
    # How often the box head of PFFNetROIHeads or RefinedBoxROIHeads regresses the boxes of detections once more before
    # their masks are predicted; 0: as in the papers. 2 makes outlines better at little cost
    # (docs/studies/lite-recipe.md).
    cfg.MODEL.PFFNET.BOX_REFINEMENTS = 0
    # Weight of the mask loss.
    cfg.MODEL.PFFNET.MASK_LOSS_WEIGHT = 1.0
    # alpha_2 of [P] Eq. 5, the weight of the semantic consistency loss (Eq. 4); 0: no such loss.
    cfg.MODEL.PFFNET.CONSISTENCY_LOSS_WEIGHT = 1.0

    # From scored instances to a label map.
    cfg.MODEL.PFFNET.LABEL_MAP = CN()
    # beta: only instances with a higher class score are used. Release: 0.5 Kumar and TNBC, 0.35 BBBC039, 0.6 CVPPP.
    cfg.MODEL.PFFNET.LABEL_MAP.SCORE_THRESH = 0.5
    # Mask probability from which a pixel belongs to an instance.
    cfg.MODEL.PFFNET.LABEL_MAP.MASK_THRESH = 0.5
    # An instance is dropped if better ones cover more than this fraction of it (release; not in [P]).
    cfg.MODEL.PFFNET.LABEL_MAP.MAX_COVERED = 0.7
    # None of the next three is in [P] or its release.
    # Fill the holes of each mask.
    cfg.MODEL.PFFNET.LABEL_MAP.FILL_HOLES = False
    # Keep only the largest connected part of each instance.
    cfg.MODEL.PFFNET.LABEL_MAP.LARGEST_COMPONENT = False
    # Drop instances that keep fewer pixels.
    cfg.MODEL.PFFNET.LABEL_MAP.MIN_SIZE = 0
    # Give contested pixels to the largest instance, not to the best (DSB2018 coursework: configs/dsb2018/coursework).
    cfg.MODEL.PFFNET.LABEL_MAP.LARGEST_FIRST = False

    # Test-time augmentation: prediction and evaluation run on each of these views of an image and merge the detections.
    # modeling/tta.py lists the names. Empty: the image is used once, as it is.
    cfg.MODEL.PFFNET.TTA = []

    # What the model was made for; `pffnet package` keeps these keys, and fine-tuning adapts them to its images.
    # Mean diameter of its objects in pixels, 2 sqrt(area / pi), which --diameter refers to; 0: unknown.
    cfg.MODEL.PFFNET.DIAMETER = 0.0
    # Side in micrometres of a pixel of its images, to which --match-pixel-size resizes others; 0: unknown. Fine-tuning
    # sets it to 0, because prepared images do not state theirs.
    cfg.MODEL.PFFNET.PIXEL_SIZE = 0.0
    # "fluorescence" (bright objects on dark) or "nuclei" (also stained tissue and brightfield): other images cause a
    # warning (inference/modality.py). "": no warning.
    cfg.MODEL.PFFNET.IMAGES = ""
    # Size in pixels of an image for which TEST.DETECTIONS_PER_IMAGE and MODEL.RPN.{PRE,POST}_NMS_TOPK_TEST are enough
    # (an image of BBBC039, 520 x 696). `predict` and Predictor multiply the three for larger images
    # (inference/caps.py); training and evaluation on data sets use them as they are, and evaluation says which were
    # reached. 0: never multiply them.
    cfg.MODEL.PFFNET.CAPS_AREA = 361920


def _add_fusion(cfg: Any, CN: Any) -> None:
    """Residual attention feature fusion (RAFF), [P] Algorithm 1."""
    cfg.MODEL.PFFNET.FUSION = CN()
    # A name of FEATURE_FUSION_HEAD_REGISTRY; "": no fusion (Cell R-CNN).
    cfg.MODEL.PFFNET.FUSION.NAME = "RAFFHead"
    # [P] Fig. 10: "residual_attention" (d), "attention" (c), "summation" (b), "replacement" (a, Cell R-CNN V2).
    cfg.MODEL.PFFNET.FUSION.MODE = "residual_attention"
    # True: no gradient from the fused map into the masks (release). In [P] the fused map trains the mask generator.
    cfg.MODEL.PFFNET.FUSION.DETACH = False
    # Where P_i is pasted: "proposal" (the mask's own frame) or "predicted" (the regressed box, as released).
    cfg.MODEL.PFFNET.FUSION.BOXES = "proposal"
    # K: "all" positive ROIs ([P] Algorithm 1, release) or "best", the ROI of each object with the highest class score
    # ([V2] 3.1 pastes "the bounding box with the highest class score": configs/methods/CellRCNN_V2.yaml).
    cfg.MODEL.PFFNET.FUSION.ROIS = "all"
    # P_i: "foreground" (one map for both channels of F_0, [P]) or "per_channel" (one map per channel, release).
    cfg.MODEL.PFFNET.FUSION.CHANNELS = "foreground"
    # ReLU, conv 3x3, ReLU, conv 1x1 on F_K (release; not in [P]'s text).
    cfg.MODEL.PFFNET.FUSION.POST_CONVS = True
    # alpha_1 of [P] Eq. 5 for the loss of S_ins. That of S_sem is MODEL.SEM_SEG_HEAD.LOSS_WEIGHT. Release: 1.
    cfg.MODEL.PFFNET.FUSION.LOSS_WEIGHT = 0.1


def _add_heads(cfg: Any, CN: Any) -> None:
    """The heads of PFFNet."""
    cfg.MODEL.ROI_MASK_QUALITY_HEAD = CN()
    # A name of ROI_MASK_QUALITY_HEAD_REGISTRY; "": no such head, and scores are class scores.
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.NAME = "MaskQualityHead"
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.NUM_CONV = 4  # [P] Table I (its text says 3)
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.CONV_DIM = 256
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.FC_DIM = 1024
    # How the 28x28 mask is turned into 14x14 channels: "space_to_depth" (4, aligned with the ROI feature), "view" (4,
    # the release's memory reshape) or "max_pool" (1, Mask Scoring R-CNN).
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.RESHAPE = "space_to_depth"
    # Sigmoid on the output ([P]: a value in (0, 1)); False: linear (release).
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.SIGMOID = True
    cfg.MODEL.ROI_MASK_QUALITY_HEAD.LOSS_WEIGHT = 1.0

    # DualModalMaskHead; it takes NUM_CONV (shared convolutions), CONV_DIM and NORM from Detectron2's keys.
    # "paper": NUM_CONV shared convolutions; the spatial path's first convolution is its own ([V2] Table 1, NUM_CONV 3).
    # "release": NUM_CONV (4) shared convolutions; the spatial path repeats the last one with the same weights.
    cfg.MODEL.ROI_MASK_HEAD.TRUNK = "paper"
    # Channels entering the fully connected layer of the FC path (paper 128: 19.7 M parameters).
    cfg.MODEL.ROI_MASK_HEAD.FC_PATH_DIM = 128
    # ReLU on the FC path's map (release), so that the map can only raise the logits.
    cfg.MODEL.ROI_MASK_HEAD.FC_RELU = False

    # GCNHead; it takes CONVS_DIM (64), NORM and LOSS_WEIGHT (alpha_1) from Detectron2's keys.
    # ReLU in the boundary refinement blocks, as in the original GCN. Neither the code nor the text of [P] has it.
    cfg.MODEL.SEM_SEG_HEAD.GCN_RELU = False


def _add_other_networks(cfg: Any, CN: Any) -> None:
    """The light backbone and the baseline."""
    cfg.MODEL.EFFICIENTNET_LITE = CN()
    # 0, 1 or 2: EfficientNet-Lite0 (3.0 M parameters without its classifier), Lite1 (3.7 M), Lite2 (4.4 M).
    cfg.MODEL.EFFICIENTNET_LITE.VERSION = 0

    # FCN8s (modeling/fcn8s.py), the coursework's baseline.
    cfg.MODEL.FCN8S = CN()
    # Channels of the five stages of VGG-16; these fit torchvision's weights.
    cfg.MODEL.FCN8S.WIDTHS = [64, 128, 256, 512, 512]
    # Channels of fc6 and fc7; 4096 fits torchvision's weights.
    cfg.MODEL.FCN8S.FC_DIM = 4096
    # Norm of VGG's convolutions; torchvision's weights have none. Training from random weights is far better with "BN".
    cfg.MODEL.FCN8S.NORM = ""
    # Radius in pixels of the erosion that splits touching nuclei; 0: connected parts. The coursework does not give it.
    # With the true foreground of DSB2018's training images, 4 gave the best AJI and DSB mAP of 0 to 8.
    cfg.MODEL.FCN8S.EROSION_RADIUS = 4


def _add_training(cfg: Any, CN: Any) -> None:
    """How training images are drawn, how weights are updated, and what evaluation reports."""
    cfg.DATALOADER.PFFNET = CN()
    # Draw images of small groups more often. 0: every image equally often; 1: every group equally often; 0.5: in
    # between. An image of a group of n images is drawn (m / n) ** BALANCE times as often as one of the largest group,
    # which has m images. A group is a type of image, such as "histology", or a data set whose images have no type.
    cfg.DATALOADER.PFFNET.BALANCE = 0.0
    # Upper limit of this factor.
    cfg.DATALOADER.PFFNET.MAX_REPEAT = 4.0
    # Additional factors, "NAME=FACTOR" each: how much more often images of a type or of a data set of DATASETS.TRAIN
    # are drawn, such as ["histology=2", "bbbc039_train=0.5"].
    cfg.DATALOADER.PFFNET.WEIGHTS = []

    # Precision if SOLVER.AMP.ENABLED is True: "float16" (CUDA only; gradients are scaled) or "bfloat16" (also CPU).
    cfg.SOLVER.AMP.DTYPE = "float16"

    cfg.SOLVER.PFFNET = CN()
    # "SGD" (Detectron2's), "ADAM" (weight decay is coupled, L2) or "ADAMW" (it is not); the last two do not read
    # SOLVER.MOMENTUM.
    cfg.SOLVER.PFFNET.OPTIMIZER = "SGD"
    # Adam's epsilon (PyTorch's default; FCN8s: 1e-5, of the code the coursework modified).
    cfg.SOLVER.PFFNET.ADAM_EPSILON = 1e-8
    # Largest norm of all gradients together (SOLVER.CLIP_GRADIENTS limits that of each parameter); 0: no limit.
    cfg.SOLVER.PFFNET.CLIP_NORM = 0.0
    # Decay of the moving average of the weights that is evaluated and saved as the model, such as 0.999; 0: no average.
    cfg.SOLVER.PFFNET.EMA_DECAY = 0.0
    # Share that the weights of MODEL.WEIGHTS keep in the model that is evaluated and saved; the rest is the average or,
    # without one, the trained weights. For fine-tuning on few images.
    cfg.SOLVER.PFFNET.START_SHARE = 0.0

    cfg.TEST.PFFNET = CN()
    # Also report the VOC 2010 average precision of masks and of their boxes (docs/metrics.md).
    cfg.TEST.PFFNET.VOC_AP = False


def _add_object_guided(cfg: Any, node: Any) -> None:
    """MODEL.OBJECT_GUIDED; defaults are those of the released code."""
    own = cfg.MODEL.OBJECT_GUIDED = node()
    # Channels of c1, the two convolutions on the image itself.
    own.SHALLOW_CHANNELS = 64
    # Normalisation of the decoder; the trunk's is MODEL.RESNETS.NORM.
    own.NORM = "BN"
    # Channels inside the three branches of the centre head.
    own.HEAD_DIM = 256
    # The branch with two 7x7 convolutions: "size" (code) or "offset" (paper's figure).
    own.LARGE_KERNEL = "size"
    # The IoU that a box still has if its centre is moved by the Gaussian's radius.
    own.MIN_OVERLAP = 0.7
    # "cornernet" (code: CornerNet's wrong roots, 0.273 of the side) or "exact" (0.082).
    own.RADIUS = "cornernet"
    # Standard deviation of the Gaussian: "code" (2 r + 1) / 6 or "paper" r / 3.
    own.SIGMA = "code"
    # Loss of sizes and offsets: "l1" (code) or "smooth_l1" (paper).
    own.REGRESSION_LOSS = "l1"
    # Losses of sizes, offsets, masks and refinement: "mean" over objects (code) or "sum" (paper).
    own.LOSS_REDUCTION = "mean"
    # Weights of heatmap, size, offset, mask, refinement (code; the paper sums the first three without weights).
    own.LOSS_WEIGHTS = [1.0, 0.1, 1.0, 2.0, 1.0]
    # Objects with a shorter side, in pixels of the network's input, are not training targets (code; 1: all are).
    own.MIN_SIDE = 4
    # Factor from a box to its region of interest (code; paper: 1.0).
    own.ROI_EXPAND = 1.1
    # "adaptive": each object at its own resolution; "fixed": ROI_SIZE points per side at stride 1, half of it at 2 ...
    own.ROI_MODE = "adaptive"
    own.ROI_SIZE = 64
    # Number of objects per image that train the masks, drawn at random; 0: all (paper and code).
    own.MAX_TRAIN_ROIS = 0
    # Learned scale and shift in the instance normalisation (paper's Eq. 6; the code has none).
    own.NORM_AFFINE = False
    # Detections need a higher heatmap score (code). TEST.DETECTIONS_PER_IMAGE (code: 500) limits their number.
    own.SCORE_THRESH_TEST = 0.3
    # Of two masks with a larger IoU the worse one is dropped (code; not in the paper: 1.0).
    own.MASK_NMS = 0.2
    # m of the returned (k, 1, m, m) masks, in the frames of their extents.
    own.MASK_SIZE = 56

    # Auxiliary feature refinement, in training only.
    own.REFINE = node()
    own.REFINE.ENABLED = True
    # For an object of H x W pixels, N = H W // D. K * N points are drawn, the BETA * N most uncertain kept (Table II).
    own.REFINE.D = 8
    own.REFINE.K = 3.0
    own.REFINE.BETA = 0.75
    # Inputs of the two heads: "code" {e1}, {e1, e2} or "figure" {e2}, {e1, e2}.
    own.REFINE.HEADS = "code"
    # Uncertainty of a point: "map_first" (code) interpolates the map of -|2p - 1|; "sample_first" interpolates p.
    own.REFINE.UNCERTAINTY = "map_first"
