"""How many times as fast are several processes as one, where `pffnet predict` predicts the images of a plate?

    PFFNET_DATA=FOLDER python benchmarks/plate.py [--model MODEL] [--processes 2] [--images 24] [--repeat 2]

One thread each (OMP_NUM_THREADS=1), turn by turn; leave the machine alone meanwhile. The images are fields of BBBC039
(FOLDER/bbbc039 holds the publisher's files), copied if more are wanted; the results are label maps and tables. The
throughput is that of the summary, which does not count the loading of the model. Prints the throughputs, their ratio
for the best turns, how much of one process's time reading and writing would take if they did not overlap with
prediction, and a json line.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

import tifffile
from report import report

from pffnet_d2.data.readers import READERS


def predict(images: Path, out: Path, processes: int, model: list[str]) -> tuple[float, str]:
    """Images per second, and the line of the summary that says it."""
    command = [sys.executable, "-m", "pffnet_d2.cli", "predict", str(images), "--out", str(out), "--device", "cpu"]
    command += ["--format", "label-tiff,csv", "--processes", str(processes), *model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    (line,) = (line for line in said.splitlines() if "images/s" in line)
    found = re.search(r"([\d.]+) images/s", line)
    assert found is not None
    return float(found[1]), line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as for `pffnet predict`")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=2, help="turns; the best counts")
    args = parser.parse_args()
    folder = Path(os.environ.get("PFFNET_DATA", "")) / "bbbc039"
    if not folder.is_dir() or (os.cpu_count() or 1) < args.processes:
        print(f"plate: left out; it needs {args.processes} cores, and the folder bbbc039 in PFFNET_DATA")
        return
    best: dict[int, tuple[float, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary) / "images"
        images.mkdir()
        fields = [record.read_image() for record in islice(READERS["bbbc039"].records(folder, "val"), args.images)]
        for i, field in enumerate(islice(cycle(fields), args.images)):
            tifffile.imwrite(images / f"{i:04}.tif", field)
        for turn in range(args.repeat):
            for processes in (1, args.processes):
                out = Path(temporary) / f"{turn}-{processes}"
                found = predict(images, out, processes, ["--model", args.model] if args.model else [])
                best[processes] = max(best.get(processes, found), found)
    for processes, (_, line) in best.items():
        print(f"{processes} processes: {line}")
    ratio = best[args.processes][0] / best[1][0]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
    report("plate", f"{args.images} images, {args.processes} processes to 1", {"images/s": ratio}, load=load)


if __name__ == "__main__":
    main()
