"""Do images come as fast as the network trains, and how much faster than through Detectron2's mapper?

    python benchmarks/mapper.py [--dataset bbbc039_train] [--images 20]

Decoding, cropping, turning and the masks of all objects, one CPU core, the compact configuration's augmentations; the
peer is ``DatasetMapper`` with the same augmentations, bitmasks and boxes recomputed from them. Without --dataset,
fields of generated nuclei as large and as full as BBBC039's are prepared in a temporary folder. Prints a line and a
json line.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, DatasetMapper
from PIL import Image
from report import report

from pffnet_d2.config import config_path, read_config
from pffnet_d2.data.augmentation import build_augmentations
from pffnet_d2.data.catalog import register_all
from pffnet_d2.data.mapper import PFFNetDatasetMapper
from pffnet_d2.data.prepare import prepare
from pffnet_d2.data.synthetic import synthetic_image


def prepare_fields(folder: Path, count: int) -> str:
    """Label images of 2 x 3 phantoms each, prepared as a user's own; the name in the catalog."""
    for part in ("images", "labels"):
        (folder / "source" / part).mkdir(parents=True)
    for i in range(count):
        tiles = [synthetic_image(0, 6 * i + k) for k in range(6)]
        rows = [np.concatenate([tiles[3 * r + c][0] for c in range(3)], axis=1) for r in range(2)]
        ids = [np.where(labels > 0, labels + 1000 * k, 0) for k, (_, labels) in enumerate(tiles)]
        truth = [np.concatenate(ids[3 * r : 3 * r + 3], axis=1) for r in range(2)]
        Image.fromarray(np.concatenate(rows)).save(folder / f"source/images/{i}.png")
        Image.fromarray(np.concatenate(truth).astype(np.uint16)).save(folder / f"source/labels/{i}.png")
    os.environ["DETECTRON2_DATASETS"] = str(folder)
    prepare("own", folder / "source", folder, dataset="fields")
    register_all()
    return "fields_train"


def median_seconds(mapper: Callable[[dict[str, Any]], Any], entries: list[dict[str, Any]]) -> float:
    mapper(copy.deepcopy(entries[0]))
    times = []
    for entry in entries:
        given = copy.deepcopy(entry)
        start = time.perf_counter()
        mapper(given)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="name of a prepared data set; default: generated fields")
    parser.add_argument("--images", type=int, default=20)
    args = parser.parse_args()
    cfg = read_config(str(config_path("Base-PFFNet-Compact.yaml")))
    with tempfile.TemporaryDirectory() as folder:
        name = args.dataset or prepare_fields(Path(folder), args.images)
        entries = DatasetCatalog.get(name)[: args.images]
        np.random.seed(0)  # noqa: NPY002
        ours = median_seconds(PFFNetDatasetMapper(cfg, is_train=True), entries)
        augmentations = build_augmentations(cfg, is_train=True)
        options = {"image_format": cfg.INPUT.FORMAT, "use_instance_mask": True, "instance_mask_format": "bitmask"}
        peer = DatasetMapper(True, augmentations=augmentations, recompute_boxes=True, **options)
        theirs = median_seconds(peer, entries)
    objects = statistics.mean(len(entry["annotations"]) for entry in entries)
    case = f"{name}, {objects:.0f} objects per image"
    report("mapper", case, {"Detectron2's / ours": theirs / ours}, ours_s=ours, detectron2_s=theirs)


if __name__ == "__main__":
    main()
