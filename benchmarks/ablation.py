"""What do PFFNet's parts add in equal time? Trains variants of a config over several seeds and compares them.

    python benchmarks/ablation.py --config dsb2018/PFFNet_R18_FPN.yaml --train dsb2018_fold0of5_train
        --val dsb2018_fold0of5_val [--iterations 1000] [--seeds 1 2 3] [--variants Without_fusion MaskRCNN_GN ...]
        [--out output/ablation] [--workers 2 | --scheduler tcp://10.0.0.1:8786] [KEY VALUE ...]

A variant is a file of configs/ablations, configs/methods or configs/backbones that is laid over the config, KEY=VALUE,
or several of them joined by +, such as MaskRCNN_GN+EfficientNet_Lite0 (MaskRCNN_GN alone changes the backbone). First a
few training steps of all of them are timed by turns, and each gets as many iterations as fit into the time of the
config's own. Then every seed of every variant is trained and evaluated, and OUT gets report.md, report.csv and
boxes.png: means over images, paired tests on scores averaged over seeds, and the spread of the seeds. Called again it
goes on where it stopped. Hours on a CPU core; several calls with other ``--seeds`` may share OUT once its
iterations.json is there. With ``--workers`` or ``--scheduler`` each worker of a Dask cluster trains one at a time
(docs/cluster.md); the steps are timed in this process, so its machine should be like those of the workers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.utils.events import EventStorage

from pffnet_d2 import engine
from pffnet_d2.atomic_write import write_text
from pffnet_d2.cli.arguments import add_cluster
from pffnet_d2.config import PARTS, config_path, read_config
from pffnet_d2.data.catalog import register_all
from pffnet_d2.data.prepared import root
from pffnet_d2.device import device_here
from pffnet_d2.errors import InputError
from pffnet_d2.evaluation.report import Report, merge_runs
from pffnet_d2.evaluation.scores import CSV, read_scores
from pffnet_d2.parallel.dask_tasks import ClusterOptions
from pffnet_d2.parallel.launch import run_commands

SHOWN = ("AJI", "AJI_plus", "Dice", "F1", "PQ", "DSB_mAP")
VARIANTS = ("Without_fusion", "Without_consistency", "Without_quality", "Fusion_detached", "MaskRCNN_GN")


class Variant(NamedTuple):
    """A config with parts laid over it, and KEY VALUE pairs."""

    methods: list[str]
    opts: list[str]


def part(name: str) -> str:
    """The file of configs/ablations, configs/methods or configs/backbones that is called so."""
    for kind in PARTS:
        file = config_path(kind) / f"{name}.yaml"
        if file.is_file():
            return str(file)
    raise SystemExit(f"{name}: none of {', '.join(f'configs/{kind}' for kind in PARTS)} has {name}.yaml")


def parse_variant(spec: str, opts: list[str]) -> Variant:
    """Read ``FILE``, ``KEY=VALUE`` or several of them joined by ``+``; ``opts`` come first."""
    pieces = spec.split("+")
    pairs = [word for piece in pieces if "=" in piece for word in piece.split("=", 1)]
    return Variant([part(piece) for piece in pieces if "=" not in piece], [*opts, *pairs])


def step_times(config: str, variants: Mapping[str, Variant], rounds: int = 9, steps: int = 6) -> dict[str, float]:
    """Time of a training step of each variant, data and optimizer included, relative to the first variant.

    They take turns, and the median over the rounds of the ratio within a round is returned: other programs then slow
    both sides of it. On the CPU it is CPU time, of which they take least.
    """
    clock = time.process_time if device_here() == "cpu" else time.perf_counter
    trainers = {}
    spent: dict[str, list[float]] = {name: [] for name in variants}
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        for name, variant in variants.items():
            cfg = read_config(
                config, [*variant.opts, "MODEL.DEVICE", device_here(), "OUTPUT_DIR", folder], variant.methods
            )
            engine.check_config(cfg, train=True)
            trainers[name] = engine.Trainer(cfg)
        for turn in range(rounds):
            for name, trainer in trainers.items():
                with EventStorage(turn * steps):
                    start = clock()
                    for step in range(turn * steps, (turn + 1) * steps):
                        trainer.iter = trainer._trainer.iter = step
                        trainer.run_step()
                    if turn:  # the first warms up
                        spent[name].append(clock() - start)
    base = next(iter(spent.values()))
    return {
        name: statistics.median(own / other for own, other in zip(times, base, strict=True))
        for name, times in spent.items()
    }


def schedule(iterations: int) -> list[str]:
    steps = (iterations * 3 // 4, iterations * 9 // 10)
    return ["SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", str(steps), "SOLVER.CHECKPOINT_PERIOD", str(iterations)]


class Run(NamedTuple):
    """A training: its OUTPUT_DIR and the arguments of ``pffnet``."""

    folder: Path
    arguments: list[str]


def planned_runs(args: argparse.Namespace, config: str, variants: Mapping[str, Variant]) -> list[Run]:
    """The trainings that are not done, each with as many iterations as ``iterations.json`` of OUT says."""
    iterations = json.loads((args.out / "iterations.json").read_text(encoding="utf-8"))
    unknown = [name for name in variants if name not in iterations]
    if unknown:
        file = args.out / "iterations.json"
        raise SystemExit(f"{file}: says nothing of {', '.join(unknown)}; add it, or choose another --out")
    print("iterations in equal time: " + ", ".join(f"{name} {iterations[name]}" for name in variants))
    runs = []
    for seed in args.seeds:
        for name, variant in variants.items():
            folder = args.out / name / f"seed{seed}"
            if (folder / "inference" / args.val / CSV).is_file():
                continue
            flags = ["--config-file", config, "--resume", *(w for file in variant.methods for w in ("--method", file))]
            opts = [*variant.opts, *schedule(iterations[name]), "SEED", str(seed), "OUTPUT_DIR", str(folder)]
            runs.append(Run(folder, ["train", *flags, *opts]))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="dsb2018/PFFNet_R18_FPN.yaml", help="under configs/")
    parser.add_argument("--train", required=True, help="a prepared data set")
    parser.add_argument("--val", required=True, help="another")
    parser.add_argument("--iterations", type=int, default=1000, help="of the config itself")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--out", type=Path, default=Path("output/ablation"))
    add_cluster(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="for all of them")
    args = parser.parse_args()
    try:
        ablation(args)
    except InputError as error:
        raise SystemExit(f"ablation: {error}") from error


def ablation(args: argparse.Namespace) -> None:
    """Time, train, evaluate, report.

    Raises:
        InputError: a config, a data set or the cluster cannot be used.
        SystemExit: a training failed.
    """
    register_all()
    config = str(config_path(args.config))
    data = ["DATASETS.TRAIN", f"('{args.train}',)", "DATASETS.TEST", f"('{args.val}',)", *args.opts]
    base = Path(config).stem.partition("_")[0]
    variants = {base: Variant([], data)} | {name: parse_variant(name, data) for name in args.variants}

    planned = args.out / "iterations.json"
    args.out.mkdir(parents=True, exist_ok=True)
    if not planned.is_file():
        times = step_times(config, variants)
        write_text(planned, json.dumps({name: round(args.iterations / each) for name, each in times.items()}))
    runs = planned_runs(args, config, variants)
    cluster = ClusterOptions.given(args.workers, args.scheduler)
    variables = {"DETECTRON2_DATASETS": str(root().absolute())}
    ended = run_commands([run.arguments for run in runs], cluster, variables)
    failed = [f"{runs[number].folder}: training ended with exit code {code}" for number, code in ended if code]
    if failed:
        raise SystemExit("\n".join(failed))

    parts = {
        name: [read_scores(file.parent) for file in sorted((args.out / name).glob(f"seed*/inference/{args.val}/{CSV}"))]
        for name in variants
    }
    report = Report({name: merge_runs(name, part) for name, part in parts.items()}, base, parts)
    report.write(args.out, SHOWN)
    print(report.markdown(SHOWN))


if __name__ == "__main__":
    main()
