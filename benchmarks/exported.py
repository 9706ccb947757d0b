"""How much CPU time does a field of BBBC039 take in ONNX, beside torch? And in how many pixels do label maps differ?

    PFFNET_DATA=FOLDER python benchmarks/exported.py [--fields 4] [--repeat 3] [--model model.onnx]

The shipped model, float32, one thread each (OMP_NUM_THREADS=1), the two sides turn by turn, from the normalised image
to the label map. FOLDER/bbbc039 holds the publisher's files. Without --model the model is exported first. Prints the
ratio of the best times, the pixels that differ in all fields, and a json line.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and onnxruntime are imported

from itertools import islice

import numpy as np
from numpy.typing import NDArray
from report import report

from pffnet_d2 import Predictor
from pffnet_d2.data.readers import READERS
from pffnet_d2.inference.model_config import config_of
from pffnet_d2.inference.options import ModelOptions
from pffnet_d2.model_zoo.export import export_onnx


def measure(sides: dict[str, Predictor], images: list[NDArray[np.uint8]], repeat: int) -> None:
    """Print the ratio for these images."""
    seconds = {name: [float("inf")] * len(images) for name in sides}
    maps: dict[str, list[NDArray[np.int32]]] = {name: [] for name in sides}
    for predictor in sides.values():
        predictor.predict(images[:1])
    for i, image in enumerate(images):
        for turn in range(repeat):
            for name, predictor in sides.items():
                start = time.process_time()
                (prediction,) = predictor.predict([image])
                seconds[name][i] = min(seconds[name][i], time.process_time() - start)
                if not turn:
                    maps[name].append(prediction.label_map)
    each = {name: sum(times) / len(images) for name, times in seconds.items()}
    pairs = list(zip(*maps.values(), strict=True))
    differ = [int((a != b).sum()) for a, b in pairs], [int(((a > 0) != (b > 0)).sum()) for a, b in pairs]
    print(", ".join(f"{name} {value:.3f} s of CPU a field" for name, value in each.items()))
    print(f"pixels that differ: {sum(differ[0])} of the label maps, {sum(differ[1])} of the foreground")
    objects = sum(int(a.max()) for a, _ in pairs)
    case = f"{len(images)} BBBC039 fields, {objects} objects, float32, one thread"
    report("ONNX", case, {"onnxruntime / torch": each["onnxruntime"] / each["torch"]}, seconds=each, pixels=differ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", type=Path, help="model.onnx of the shipped model")
    args = parser.parse_args()
    folder = Path(os.environ.get("PFFNET_DATA", "")) / "bbbc039"
    if not folder.is_dir():
        print("ONNX: PFFNET_DATA has no folder bbbc039, nothing to predict")
        return
    with_torch = Predictor(device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        file = args.model or export_onnx(config_of(ModelOptions(device="cpu")), Path(temporary)).path
        sides = {"torch": with_torch, "onnxruntime": Predictor(model=file)}
        records = islice(READERS["bbbc039"].records(folder, "val"), args.fields)
        measure(sides, [with_torch.normalise(record.read_image()) for record in records], args.repeat)


if __name__ == "__main__":
    main()
