"""Are nuclei of another magnification found with --diameter as well as at the size the model knows?

    python benchmarks/diameter.py [--dataset bbbc039_val] [--images 12] [--model nuclei] [--scales 0.25 0.5 1 2 4]

Images and truth of a prepared data set are resized (0.5 to 3 times, unless --scales say otherwise), predicted with the
diameter that its nuclei then have, with --diameter auto and without, and scored at the resized size. Prints AJI with,
with auto, and without, over AJI of the images as they are.
Nothing is prepared or downloaded: without the data set it says so and ends.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray
from report import report

from pffnet_d2 import Predictor
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.metrics import aji
from pffnet_d2.imaging.read import read_image
from pffnet_d2.masks.coco import annotations_to_label_map
from pffnet_d2.masks.compose import contiguous

SCALES = (0.5, 1.0, 1.5, 2.0, 3.0)


def resized(image: NDArray[np.uint8], truth: NDArray[np.int32], scale: float) -> tuple[NDArray[Any], NDArray[np.int32]]:
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    # uint16 travels through OpenCV; there are fewer objects than that
    nearest = cv2.resize(truth.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image, size, interpolation=smooth), contiguous(nearest.astype(np.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="bbbc039_val", help="name of a prepared data set")
    parser.add_argument("--images", type=int, default=12, help="evenly spread over the data set")
    parser.add_argument("--model", default="nuclei", help="a shipped model, or a model folder")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="factors of the sides of the images")
    args = parser.parse_args()
    try:
        entries = [entry for entry in DatasetCatalog.get(args.dataset) if entry["annotations"]]
    except (InputError, KeyError) as error:
        print(f"diameter: left out, {error}")
        return
    entries = entries[:: max(1, len(entries) // args.images)][: args.images]
    truths = [annotations_to_label_map(e["annotations"], e["height"], e["width"]) for e in entries]
    images = [read_image(entry["file_name"]) for entry in entries]
    areas = np.concatenate([np.bincount(truth.ravel())[1:] for truth in truths])
    diameter = float((2 * np.sqrt(areas / np.pi)).mean())

    plain = Predictor(model=args.model)

    def score(predictor: Predictor, scale: float) -> float:
        pairs = [resized(image, truth, scale) for image, truth in zip(images, truths, strict=True)]
        return statistics.mean(aji(truth, predictor(image).label_map) for image, truth in pairs)

    base = score(plain, 1.0)
    automatic = Predictor(model=args.model, diameter="auto")
    for scale in args.scales:
        sized, unsized = score(Predictor(model=args.model, diameter=diameter * scale), scale), score(plain, scale)
        auto = score(automatic, scale)
        ratios = {
            "AJI with --diameter / as it is": sized / base,
            "with auto / as it is": auto / base,
            "without / as it is": unsized / base,
        }
        case = f"{len(entries)} of {args.dataset}, {scale:g} times as large, diameter {diameter * scale:.1f}"
        report("diameter", case, ratios, aji_with=sized, aji_auto=auto, aji_without=unsized)


if __name__ == "__main__":
    main()
