"""Do large images cost more than their pixels? Memory and time of tiles against the image at once.

    python benchmarks/large_image.py [--sides 2048 4096 8192 16384] [--tile 1024] [--overlap 64]
    python benchmarks/large_image.py --config FILE --weights FILE [--side 2048] [--tiles 256 512 1024]

First form: mosaics of one generated image (``data/phantoms.py``), sliced lazily, and a threshold instead of a network,
so that reading, stitching and writing (label TIFF, GeoJSON, CSV) are what is measured. Each side runs in a process of
its own; its memory is the peak beyond what the process held after a first small image. Prints memory and CPU time a
pixel to those of the first side.

Second form: a trained model on a mosaic that still fits at once; object F1 at IoU 0.5 of the label map of the tiles
against that of the whole image, and the ratio of their Mpx/s (CPU time, and wall). ``--images`` makes the mosaic of the
images of a folder instead of phantoms.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from label_map import peak
from numpy.typing import NDArray
from report import report
from scipy import ndimage

from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.evaluation.metrics import panoptic_quality
from pffnet_d2.imaging.microscopy import read_microscopy_image
from pffnet_d2.inference.large import TileModel, predict_large
from pffnet_d2.inference.options import ImageOptions

PIECE = 512
FIELD = 520 * 696  # pixels of an image that a configuration's caps on proposals and detections are meant for
COMPARED = {"memory": "added_mb", "CPU time per pixel": "cpu_s_per_mpx"}


class Mosaic:
    """An image repeated as often as fits; only what is sliced exists."""

    def __init__(self, piece: NDArray[Any], side: int) -> None:
        self.piece, self.shape, self.dtype = piece, (side, side), piece.dtype

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        rows, columns = (np.arange(part.start, part.stop) % n for part, n in zip(key, self.piece.shape, strict=True))
        return self.piece[np.ix_(rows, columns)]


@dataclass(frozen=True)
class Objects:
    label_map: NDArray[np.int32]
    scores: dict[str, NDArray[np.float32]]
    capped: tuple[str, ...] = ()


def threshold(images: list[NDArray[np.uint8]]) -> list[Objects]:
    """Bright parts of at least 20 pixels: stands for a network."""
    out = []
    for image in images:
        labels, _ = ndimage.label(image[:, :, 0] > 60)
        sizes = np.bincount(labels.ravel())
        number = np.where(sizes >= 20, 1, 0)
        number[0] = 0
        labels = (np.cumsum(number) * number).astype(np.int32)[labels]
        out.append(Objects(labels, {"score": np.ones(labels.max(), np.float32)}))
    return out


def piece() -> NDArray[np.uint8]:
    """A generated fluorescence image, grey."""
    image, _ = synthetic_image(0, 0, size=(PIECE, PIECE), style="fluorescence")
    return np.ascontiguousarray(image[:, :, 0])


def stand_in(side: int, tile: int, overlap: int) -> dict[str, Any]:
    """One side in this process."""
    nuclei = piece()
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder), "a", ImageOptions(tile=tile, overlap=overlap, formats=("label-tiff", "geojson", "csv"))
        predict_large(TileModel(threshold, "warm"), Mosaic(nuclei, tile), *asked)
        before = peak("cpu", reset=True)
        wall, cpu = time.perf_counter(), time.process_time()
        done = predict_large(TileModel(threshold, "threshold"), Mosaic(nuclei, side), *asked)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        result: dict[str, Any] = {
            "side": side,
            "objects": done.objects,
            "tiles": done.tiles,
            "larger": len(done.larger),
        }
        result |= {"cpu_s": round(cpu, 1), "wall_s": round(wall, 1), "cpu_s_per_mpx": round(cpu / side**2 * 1e6, 4)}
        result["added_mb"] = max((peak("cpu") - before) // 10**6, 1)  # the others' divisor
    return result


def real_mosaic(folder: Path | None, side: int) -> NDArray[Any]:
    """(side, side): phantoms, or the images of a folder one beside the other, row after row."""
    if folder is None:
        return Mosaic(piece(), side)[0:side, 0:side]
    images = [read_microscopy_image(path).pixels for path in sorted(folder.iterdir())]
    h, w = images[0].shape[:2]
    images = [image for image in images if image.shape[:2] == (h, w)]
    rows = []
    for i in range(-(-side // h)):
        across = -(-side // w)
        rows.append(np.concatenate([images[(i * across + j) % len(images)] for j in range(across)], axis=1))
    return np.concatenate(rows)[:side, :side]


def network(args: argparse.Namespace) -> None:
    """The second form."""
    from pffnet_d2 import Predictor

    predictor = Predictor(args.config, args.weights, device=args.device)
    more = -(-(args.side**2) // FIELD)
    test, rpn = predictor.cfg.TEST, predictor.cfg.MODEL.RPN
    caps = {
        "TEST.DETECTIONS_PER_IMAGE": test.DETECTIONS_PER_IMAGE * more,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": rpn.PRE_NMS_TOPK_TEST * more,
        "MODEL.RPN.POST_NMS_TOPK_TEST": rpn.POST_NMS_TOPK_TEST * more,
    }
    opts = [str(word) for pair in caps.items() for word in pair]
    at_once = Predictor(args.config, args.weights, device=args.device, opts=opts)
    image = real_mosaic(args.images, args.side)
    at_once(image[:256, :256])  # warms up
    wall, cpu = time.perf_counter(), time.process_time()
    whole = at_once(image)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    for tile in args.tiles:
        with tempfile.TemporaryDirectory() as folder:
            tiled, busy = time.perf_counter(), time.process_time()
            done = predictor.predict_large(image, folder, tile=tile, overlap=args.overlap)
            busy, tiled = time.process_time() - busy, time.perf_counter() - tiled
            labels = tifffile.imread(done.files["label-tiff"]).astype(np.int32)
        f1 = panoptic_quality(whole.label_map, labels).dq  # F1 of pairs with IoU > 0.5
        case = f"{args.side}x{args.side}, {whole.label_map.max()} objects, tiles of {tile}, overlap {done.overlap}"
        ratios = {"F1 against the whole": f1, "Mpx/s to the whole, CPU": cpu / busy, "wall": wall / tiled}
        report("tiles of a network", case, ratios, objects=done.objects, seconds=[wall, tiled], cpu_s=[cpu, busy])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--config")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=Path, help="folder of images of one size")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 512, 1024])
    args = parser.parse_args()
    if args.config:
        network(args)
        return
    first: dict[str, Any] = {}
    for side in args.sides:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            result = pool.submit(stand_in, side, args.tile, args.overlap).result()
        first = first or result
        case = f"{side}x{side}, {result['objects']} objects, tiles of {args.tile}, {result['added_mb']} MB"
        ratios = {key: result[name] / first[name] for key, name in COMPARED.items()}
        report(f"tiles (to {first['side']}x{first['side']})", case, ratios, **result)


if __name__ == "__main__":
    main()
