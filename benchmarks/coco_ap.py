"""How fast is COCO's mask AP of dense images with faster-coco-eval, against pycocotools?

    python benchmarks/coco_ap.py [--images 6] [--size 1000] [--nuclei 700]

Prints one line: the seconds of both in this process, after checking that they give the same AP, and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from typing import Any

import numpy as np
from metrics import discs
from pycocotools.coco import COCO
from report import report

from pffnet_d2.evaluation import coco_ap
from pffnet_d2.masks.coco import label_map_to_annotations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--size", type=int, default=1000, help="side of the square images")
    parser.add_argument("--nuclei", type=int, default=700)
    args = parser.parse_args()
    if coco_ap.faster_coco_eval is None:
        print("COCO AP: faster-coco-eval is not installed, nothing to compare")
        return

    rng = np.random.default_rng(0)
    truths: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for image_id in range(1, args.images + 1):
        gt, pred = discs(args.size, args.nuclei, 0.1, rng), discs(args.size, args.nuclei, 0.2, rng)
        truths += label_map_to_annotations(gt, image_id, len(truths) + 1)
        records += [a | {"score": rng.random()} for a in label_map_to_annotations(pred, image_id)]
    images = [{"id": i + 1, "height": args.size, "width": args.size} for i in range(args.images)]

    seconds, values = [], []
    for module in (coco_ap.faster_coco_eval, None):
        coco_ap.faster_coco_eval = module
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "nucleus"}]}
            coco.createIndex()
            start = time.perf_counter()
            counted = coco_ap.count_average_precision(coco, records, "segm", 4000)
        seconds.append(time.perf_counter() - start)
        values.append(counted.stats[:6])
    if not np.allclose(values[0], values[1], atol=1e-9):
        raise SystemExit(f"the two sides disagree: {values}")
    case = f"{args.images} images, {len(truths)} truths, {len(records)} detections"
    report("COCO mask AP", case, {"pycocotools / faster-coco-eval": seconds[1] / seconds[0]}, seconds=seconds)


if __name__ == "__main__":
    main()
