"""How well are nuclei found in blurred, noisy and dim copies of an image?

    python benchmarks/robustness.py [--split datasets/bbbc039/val] [--images 20] [--models nuclei OTHER_FOLDER]

Prints a table of mean AJI: a row for each model, and one for Otsu's threshold with a watershed; a column for the images
as they are and one for each kind of damage. Images without nuclei are left out, because their AJI is 1 or 0. Nothing is
prepared or downloaded: without the split it says so and ends.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pffnet_d2 import Predictor
from pffnet_d2.data.prepared import PreparedSplit
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.baseline import otsu_watershed
from pffnet_d2.evaluation.metrics import aji
from pffnet_d2.imaging.read import read_image

Pixels = NDArray[np.uint8]
Method = Callable[[Pixels], NDArray[np.int32]]


def blurred(image: Pixels, sigma: float) -> Pixels:
    return cv2.GaussianBlur(image, (0, 0), sigma).astype(np.uint8)


def noisy(image: Pixels, sigma: float) -> Pixels:
    """Gaussian noise, the same in all channels of a grey image saved as RGB."""
    grey = image.ndim == 3 and not (image != image[..., :1]).any()
    shape = (*image.shape[:2], 1) if grey else image.shape
    noise = np.random.default_rng(0).normal(0, sigma, shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def dim(image: Pixels, factor: float) -> Pixels:
    return np.rint(image * factor).astype(np.uint8)


DAMAGES: dict[str, Callable[[Pixels], Pixels]] = {
    "as they are": lambda image: image,
    "blurred, sigma 2 px": lambda image: blurred(image, 2),
    "blurred, sigma 4 px": lambda image: blurred(image, 4),
    "noisy, sigma 10": lambda image: noisy(image, 10),
    "noisy, sigma 30": lambda image: noisy(image, 30),
    "an eighth of the light": lambda image: dim(image, 0.125),
}


def label_maps_of(model: str) -> Method:
    predictor = Predictor(model=model)
    return lambda image: predictor(image).label_map


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", type=Path, default=Path("datasets/bbbc039/val"), help="a prepared split")
    parser.add_argument("--images", type=int, default=20, help="evenly spread over the split")
    parser.add_argument("--models", nargs="+", default=["nuclei"], help="shipped models, or model folders")
    args = parser.parse_args()
    try:
        chosen = [image for image in PreparedSplit(args.split).labelled_images() if image.truth().any()]
    except InputError as error:
        print(f"robustness: left out, {error}")
        return
    chosen = chosen[:: max(1, len(chosen) // args.images)][: args.images]
    truths = [image.truth() for image in chosen]
    images = [np.asarray(read_image(image.file), np.uint8) for image in chosen]

    methods = {"Otsu + watershed": otsu_watershed} | {model: label_maps_of(model) for model in args.models}
    print(f"mean AJI, {len(images)} images of {args.split}\n")
    print("| | " + " | ".join(DAMAGES) + " |\n|---|" + "--:|" * len(DAMAGES))
    for name, method in methods.items():
        scores = [
            statistics.mean(aji(truth, method(damage(image))) for image, truth in zip(images, truths, strict=True))
            for damage in DAMAGES.values()
        ]
        print(f"| {name} | " + " | ".join(f"{score:.3f}" for score in scores) + " |", flush=True)


if __name__ == "__main__":
    main()
