"""How much CPU time does a field of BBBC039 take, beside StarDist and Detectron2's own Mask R-CNN?

    PFFNET_DATA=FOLDER python benchmarks/prediction.py [--model MODEL] [--onnx model.onnx] [--fields 4] [--repeat 5]
        [--sides torch onnxruntime ...] [--objects N]

One thread each (OMP_NUM_THREADS=1), the sides turn by turn, from the normalised image to the label map. FOLDER/bbbc039
holds the publisher's files. MODEL is a name or folder as for `pffnet predict`; without --onnx it is exported first. Of
Mask R-CNN (R50, as its configuration in Detectron2's model zoo) and StarDist (as the model "2D_versatile_fluo") only
the architecture is published without a download, so they have random weights. Both get a realistic number of objects:
Mask R-CNN keeps as many boxes as a field has nuclei, and StarDist's suppression gets the distances and probabilities of
the true nuclei (`pip install stardist tensorflow-cpu`; left out without them). Prints for each side the precision, the
best CPU seconds a field, the CPU seconds of starting a process and loading the model, and the time relative to torch in
float32, with a json line.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

from itertools import islice

import numpy as np
from numpy.typing import NDArray
from report import report

from pffnet_d2 import Predictor
from pffnet_d2.data.readers import READERS
from pffnet_d2.device import faster_in_bfloat16
from pffnet_d2.inference.model_config import config_of
from pffnet_d2.inference.options import ModelOptions
from pffnet_d2.model_zoo.export import export_onnx

SIDES = ("torch", "torch in bfloat16", "onnxruntime", "Mask R-CNN R50", "StarDist")
# What configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml of Detectron2 and its base change of the defaults,
# but one class; and every box that is asked for is kept, whatever the random weights think of it.
MASK_RCNN: dict[str, Any] = {
    "META_ARCHITECTURE": "GeneralizedRCNN",
    "WEIGHTS": "",
    "DEVICE": "cpu",
    "MASK_ON": True,
    "BACKBONE.NAME": "build_resnet_fpn_backbone",
    "RESNETS.DEPTH": 50,
    "RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "RPN.PRE_NMS_TOPK_TEST": 1000,
    "RPN.POST_NMS_TOPK_TEST": 1000,
    "ROI_HEADS.NAME": "StandardROIHeads",
    "ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "ROI_BOX_HEAD.NUM_FC": 2,
    "ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "ROI_MASK_HEAD.NUM_CONV": 4,
    "ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "ROI_HEADS.NUM_CLASSES": 1,
    "ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "ROI_HEADS.NMS_THRESH_TEST": 1.0,
}
Field = tuple[NDArray[np.uint8], NDArray[np.int32]]  # a normalised image (H, W, 3) and its true label map
Side = Callable[[Field], Any]  # predicts a field


class Skipped(Exception):
    """A side cannot be measured here; the message says why."""


def ours(**options: Any) -> Side:
    predictor = Predictor(**options)
    return lambda field: predictor.predict([field[0]])


def mask_rcnn(objects: int) -> Side:
    """Detectron2's Mask R-CNN R50-FPN, which pastes its masks into the image."""
    import torch
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_list([x for key, value in MASK_RCNN.items() for x in (f"MODEL.{key}", value)])
    cfg.TEST.DETECTIONS_PER_IMAGE = objects
    torch.manual_seed(0)
    model = build_model(cfg).eval()

    @torch.inference_mode()
    def predict(field: Field) -> Any:
        height, width = field[0].shape[:2]
        image = torch.from_numpy(np.ascontiguousarray(field[0].transpose(2, 0, 1)))
        return model([{"image": image, "height": height, "width": width}])

    return predict


def stardist() -> Side:
    try:
        from csbdeep.utils import normalize
        from stardist import edt_prob, star_dist
        from stardist.models import Config2D, StarDist2D
    except ImportError as error:
        raise Skipped(f"{error}; type: pip install stardist tensorflow-cpu") from error
    model = StarDist2D(Config2D(n_rays=32, grid=(2, 2), n_channel_in=1), name=None, basedir=None)
    true: dict[int, Any] = {}

    def predict(field: Field) -> Any:
        image, truth = field
        if id(truth) not in true:  # before the time counts: every side predicts each field once to warm up
            true[id(truth)] = edt_prob(truth)[::2, ::2], star_dist(truth, 32, grid=(2, 2))
        model.predict(normalize(image[:, :, 0], 1, 99.8))
        return model._instances_from_prediction(truth.shape, *true[id(truth)], prob_thresh=0.5, nms_thresh=0.4)

    return predict


def side(name: str, args: argparse.Namespace, folder: Path) -> Side:
    """Raises Skipped."""
    model = {"model": args.model} if args.model else {}
    if name == "torch":
        return ours(device="cpu", **model)
    if name == "torch in bfloat16":
        if not faster_in_bfloat16("cpu"):
            raise Skipped("this CPU is not faster in it")
        return ours(device="cpu", precision="bfloat16", **model)
    if name == "onnxruntime":
        try:
            args.onnx = args.onnx or export_onnx(config_of(ModelOptions(device="cpu", **model)), folder).path
            return ours(model=args.onnx)
        except ImportError as error:
            raise Skipped(str(error)) from error
    return mask_rcnn(args.objects) if name == "Mask R-CNN R50" else stardist()


def startup(name: str, args: argparse.Namespace) -> float:
    """CPU seconds of a process that loads the model."""
    given = args.onnx and args.onnx.resolve() if name == "onnxruntime" else args.model
    model = f"model={str(given)!r}" if given else ""
    code = {
        "Mask R-CNN R50": "import prediction; prediction.mask_rcnn(100)",
        "StarDist": "import prediction; prediction.stardist()",
    }.get(name, f"from pffnet_d2 import Predictor; Predictor({model})")

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parent)
    return spent() - before


def measure(sides: dict[str, Side], fields: list[Field], repeat: int) -> dict[str, float]:
    """The mean over the fields of the best CPU seconds of each side."""
    best = {name: [float("inf")] * len(fields) for name in sides}
    for turn in range(repeat + 1):
        for i, field in enumerate(fields):
            for name, predict in sides.items():
                start = time.process_time()
                predict(field)
                if turn:  # the first warms up
                    best[name][i] = min(best[name][i], time.process_time() - start)
    return {name: sum(times) / len(fields) for name, times in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or folder (default: the model that comes with the package)")
    parser.add_argument("--onnx", type=Path, help="model.onnx of that model")
    parser.add_argument("--fields", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5, help="turns; the best counts")
    parser.add_argument("--objects", type=int, default=110, help="boxes that Mask R-CNN keeps")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    args = parser.parse_args()
    folder = Path(os.environ.get("PFFNET_DATA", "")) / "bbbc039"
    if not folder.is_dir():
        print("prediction: PFFNET_DATA has no folder bbbc039, nothing to predict")
        return
    normalise = Predictor(device="cpu", **({"model": args.model} if args.model else {})).normalise
    records = islice(READERS["bbbc039"].records(folder, "val"), args.fields)
    fields = [(normalise(record.read_image()), record.read_label_map()) for record in records if record.read_label_map]
    sides: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.sides:
            try:
                sides[name] = side(name, args, Path(temporary))
            except Skipped as reason:
                print(f"{name}: left out, {reason}")
        seconds = measure(sides, fields, args.repeat)
        starts = {name: startup(name, args) for name in sides}
    first = seconds[args.sides[0]]
    print(f"{'':20} {'precision':10} {'CPU s a field':>14} {'CPU s to start':>15} {'relative':>9}")
    for name, value in seconds.items():
        precision = "bfloat16" if name.endswith("bfloat16") else "float32"
        print(f"{name:20} {precision:10} {value:14.3f} {starts[name]:15.1f} {value / first:9.2f}")
    objects = sum(int(truth.max()) for _, truth in fields) // len(fields)
    case = f"{len(fields)} BBBC039 fields of {objects} nuclei, float32, one thread"
    ratios = {f"{name} / {args.sides[0]}": value / first for name, value in list(seconds.items())[1:]}
    report("prediction", case, ratios, seconds=seconds, startup=starts)


if __name__ == "__main__":
    main()
