"""All that a CUDA machine can tell, in one command: `make gpu`, or benchmarks/gpu.sh where make is missing.

    python benchmarks/gpu.py [--out output/gpu] [--only tests speed] [--stop-after MINUTES] [--minutes 5] [--cpu]

In this order: the CUDA tests, speed beside peers, a training of the recipe of the shipped model with larger batches,
and one of PFFNet R50. A training gets ``--minutes``: its first steps are timed, and it takes as many as fit. Data are
those of $DETECTRON2_DATASETS; what is not prepared there is left out, and without any the trainings take generated
images. OUT gets a log and a json file for each part, and report.md; checkpoints lie in OUT/../gpu_runs.

Called again it goes on where it stopped: finished parts are kept, a training resumes from its last checkpoint.
``--stop-after`` ends the command after that time. ``--cpu`` does everything small, to see that it runs. Speed rows need
a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from run import machine

from pffnet_d2.atomic_write import write_text
from pffnet_d2.config import config_path, read_config
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.prepared import find_splits, root

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NUCLEI = "nuclei/PFFNet_Lite0_FPN.yaml"
R50 = "bbbc039/PFFNet_R101_FPN.yaml"
SCORES = ("AJI", "PQ", "F1", "Dice", "DSB_mAP", "AP")  # of the report; the json has all
TIMED = 40  # steps that tell how long one takes


class Stopped(Exception):
    """The time of ``--stop-after`` is over."""


class Job(NamedTuple):
    """Where results and checkpoints go, on which device, and until when.

    Attributes:
        out, runs: folders of results and of checkpoints.
        device: "cuda" or "cpu".
        minutes: of each training.
        end: seconds of ``time.monotonic``.
    """

    out: Path
    runs: Path
    device: str
    minutes: float
    end: float

    @property
    def small(self) -> bool:
        return self.device == "cpu"

    def call(self, log: str, *command: object, **variables: str) -> list[str]:
        """The lines that a Python program prints, which are also added to the file ``log`` of OUT.

        Raises:
            Stopped: it did not end in time, and was killed.
            SystemExit: it failed.
        """
        left = self.end - time.monotonic()
        if left < 5:
            raise Stopped
        print(" ".join(map(str, command)), flush=True)
        path = self.out / log
        with path.open("a", encoding="utf-8") as file:
            start = file.tell()
            try:
                code = subprocess.run(
                    [sys.executable, *map(str, command)],
                    cwd=ROOT,
                    env=os.environ | variables,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=left,
                ).returncode
            except subprocess.TimeoutExpired:
                raise Stopped from None
        printed = path.read_text(encoding="utf-8")[start:]
        if code:
            raise SystemExit(f"{path}: exit code {code}; its last lines:\n{printed[-2000:]}")
        return printed.splitlines()


def tests(job: Job) -> list[dict[str, Any]]:
    printed = job.call("tests.txt", "-m", "pytest", "-q", "tests/modeling/test_cuda.py", PFFNET_DEVICE=job.device)
    return [{"case": "tests/modeling/test_cuda.py", "result": printed[-1].strip("= ")}]


def speed(job: Job) -> list[dict[str, Any]]:
    device = ("--device", job.device)
    throughput = ("throughput.py", *device)
    if job.small:
        cases: Iterable[tuple[object, ...]] = [
            ("fusion.py", *device, "--repeat", 2),
            (*throughput, "--batches", 1, "--size", 64, "--repeat", 1),
        ]
    else:
        batches = ("--batches", 1, 2, 4, 8, 16)
        cases = [
            ("fusion.py", *device, "--all"),
            ("rpn.py", *device),
            ("label_map.py", *device),
            *(
                (*throughput, "--models", name, *batches, *amp)
                for name in ("compact", "R50", "R101")
                for amp in ((), ("--amp",))
            ),
        ]
    lines = [line for script, *flags in cases for line in job.call("speed.txt", HERE / str(script), *flags)]
    return [json.loads(line) for line in lines if line.startswith("{")]


def data_sets(job: Job, cfg: CfgNode) -> tuple[Path, list[str], list[str]]:
    """The root of the prepared data sets, and those that the config trains and evaluates on; generated ones where any
    of the two has none."""
    here = {"_".join(split.folder.parts[-2:]) for split in find_splits(root(), depths=(2,))}
    train, test = ([name for name in names if name in here] for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
    if train and test:
        return root(), train, test
    made = job.runs / "datasets"
    prepare("phantoms", None, made, Selection(count=4 if job.small else 200))
    return made, ["phantoms_train"], ["phantoms_val"]


def training(job: Job, name: str, config: str, opts: list[str]) -> list[dict[str, Any]]:
    """Train as long as ``job.minutes``, evaluate, and package. Only the packaged model goes to OUT."""
    folder, planned = job.runs / name, job.runs / f"{name}.json"
    cfg = read_config(str(config_path(config)), opts)
    data, train, test = data_sets(job, cfg)
    base = ["-m", "pffnet_d2.cli", "train", "--config-file", config_path(config)]
    opts = [*opts, "MODEL.DEVICE", job.device, "DATASETS.TRAIN", repr(tuple(train)), "DATASETS.TEST", repr(tuple(test))]
    where = {"DETECTRON2_DATASETS": str(data)}
    if not planned.is_file():
        steps = 6 if job.small else TIMED  # Detectron2 times them from the fourth on
        trial = job.runs / f"{name}_timed"
        short = ["SOLVER.MAX_ITER", steps, "SOLVER.STEPS", "()", "DATASETS.TEST", "()", "OUTPUT_DIR", trial]
        job.call(f"{name}.txt", *base, *opts, *short, **where)
        seconds = json.loads((trial / "metrics.json").read_text(encoding="utf-8").splitlines()[-1])["time"]
        write_text(planned, json.dumps({"seconds": seconds, "iterations": max(15, int(60 * job.minutes / seconds))}))
    plan = json.loads(planned.read_text(encoding="utf-8"))
    count = 15 if job.small else plan["iterations"]
    long = ["SOLVER.MAX_ITER", count, "SOLVER.STEPS", repr((count * 4 // 5, count * 14 // 15))]
    long += ["SOLVER.CHECKPOINT_PERIOD", max(1, int(60 / plan["seconds"])), "OUTPUT_DIR", folder]
    job.call(f"{name}.txt", *base, "--resume", *opts, *long, **where)
    job.call(
        f"{name}.txt",
        *("-m", "pffnet_d2.cli", "package", "--config", folder / "config.yaml"),
        *("--weights", folder / "model_final.pth", "--out", job.out / name),
    )
    final = json.loads((folder / "metrics.json").read_text(encoding="utf-8").splitlines()[-1])
    scores = {key: value for key, value in final.items() if key.startswith(("label_map", "segm", *test))}
    return [{"case": f"{config} on {', '.join(train)}", "options": opts, **plan, "iterations": count, "scores": scores}]


def nuclei(job: Job) -> list[dict[str, Any]]:
    """The recipe of the shipped model: batches of 16, the learning rate of Adam raised by less than the square root."""
    if job.small:
        return training(job, "nuclei", NUCLEI, ["SOLVER.IMS_PER_BATCH", "2", "MODEL.WEIGHTS", "", *SMALL])
    larger = ["SOLVER.IMS_PER_BATCH", "16", "SOLVER.BASE_LR", "0.001", "DATALOADER.NUM_WORKERS", str(workers())]
    return training(job, "nuclei", NUCLEI, [*larger, *BFLOAT16])


def r50(job: Job) -> list[dict[str, Any]]:
    """PFFNet R50 from random weights, since where none can be fetched there are no others."""
    opts = ["MODEL.RESNETS.DEPTH", "50", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0"]
    if job.small:
        return training(job, "r50", R50, [*opts, "SOLVER.IMS_PER_BATCH", "1", *SMALL])
    larger = ["SOLVER.IMS_PER_BATCH", "8", "DATALOADER.NUM_WORKERS", str(workers())]
    return training(job, "r50", R50, [*opts, *larger, *BFLOAT16])


SMALL = ["DATALOADER.NUM_WORKERS", "0", "INPUT.SQUARE.TRAIN", "64", "INPUT.CROP.SIZE", "[64, 64]"]
BFLOAT16 = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]
PARTS: dict[str, Callable[[Job], list[dict[str, Any]]]] = {"tests": tests, "speed": speed, "nuclei": nuclei, "r50": r50}


def workers() -> int:
    return max(1, min(12, (os.cpu_count() or 1) - 2))


def shown(row: dict[str, Any]) -> str:
    """A line of the report: ratios, else scores, else what there is."""
    if "result" in row:
        return f"- {row['case']}: {row['result']}"
    scores = {key: value for key, value in row.get("scores", {}).items() if key.rpartition("/")[2] in SCORES}
    return f"- {row['case']}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.get("ratios", scores).items())


def report(job: Job) -> str:
    lines = [f"# {machine(job.device)}", ""]
    for name in PARTS:
        file = job.out / f"{name}.json"
        lines += [f"## {name}", ""]
        lines += [shown(row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else ["not run"]
        lines += [""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "gpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=5, help="of each training (default: %(default)s)")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="MINUTES", help="end by then")
    parser.add_argument("--cpu", action="store_true", help="everything small, on the CPU")
    args = parser.parse_args()
    out = args.out.resolve()
    job = Job(
        out,
        out.parent / "gpu_runs",
        "cpu" if args.cpu else "cuda",
        args.minutes,
        time.monotonic() + 60 * args.stop_after,
    )
    for folder in (job.out, job.runs):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        for name in args.only:
            done = job.out / f"{name}.json"
            if not done.is_file():
                write_text(done, json.dumps(PARTS[name](job), indent=1))
    except Stopped:
        print(f"stopped after {args.stop_after} minutes: the same command goes on")
    finally:
        write_text(job.out / "report.md", report(job))
    print(report(job))


if __name__ == "__main__":
    main()
