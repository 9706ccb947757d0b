"""``pffnet demo``: generate images, train a small PFFNet in minutes, score it on other images, draw overlays."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pffnet_d2 import env

HELP = "train, evaluate and draw on generated images, in a few minutes on a CPU"
CONFIG = "demo/PFFNet_R18_FPN.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("output/demo"), help="folder (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`demonstrate`.
    """
    env.require("demo")
    return demonstrate(args.out)


def demonstrate(out: Path, opts: Sequence[str] = ()) -> int:
    """Run the demonstration. A second run keeps the generated images and trains again.

    Args:
        out: folder for datasets/, training/ (log.txt, checkpoints, ...), overlays/ and learning_curve.png.
        opts: KEY VALUE pairs that override the config.

    Returns:
        0.

    Raises:
        InputError: the folder cannot be written, or a key is unknown.
    """
    import torch

    from pffnet_d2.config import config_path
    from pffnet_d2.data.catalog import register_prepared
    from pffnet_d2.data.prepare import prepare
    from pffnet_d2.engine.arguments import argument_parser
    from pffnet_d2.engine.console import Progress, draw_overlays, quiet, score_table
    from pffnet_d2.engine.run_config import setup
    from pffnet_d2.engine.trainer import Trainer
    from pffnet_d2.visualization.plots import learning_curve

    start = time.perf_counter()
    datasets, training = out / "datasets", out / "training"
    say = partial(print, file=sys.stdout, flush=True)
    say(f"1/4  generated images in {datasets} (kept if there)")
    prepare("phantoms", None, datasets)
    register_prepared(datasets)

    # Detectron2 appends to this file, and the curve is to show this run only.
    (training / "metrics.json").unlink(missing_ok=True)
    arguments = ["--config-file", str(config_path(CONFIG)), "OUTPUT_DIR", str(training), "TEST.EVAL_PERIOD", "200"]
    with quiet():
        cfg = setup(argument_parser().parse_args([*arguments, *opts]))
        device = "CPU" if cfg.MODEL.DEVICE == "cpu" else torch.cuda.get_device_name()
        say(f"2/4  training on the {device}, {cfg.SOLVER.MAX_ITER} iterations; all messages in {training / 'log.txt'}")
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.register_hooks([Progress(say)])
        scores = trainer.train()
        say(f"3/4  scores on images never trained on ({', '.join(cfg.DATASETS.TEST)})")
        say(score_table(scores))
        overlays = out / "overlays"
        count = draw_overlays(cfg, trainer.model_to_use, cfg.DATASETS.TEST[0], overlays)
    learning_curve(training / "metrics.json", out / "learning_curve.png")
    say(f"4/4  {count} pictures (image | truth | prediction) in {overlays}; {out / 'learning_curve.png'}")
    say(f"     weights: {training / 'model_final.pth'}; {time.perf_counter() - start:.0f} s in all")
    return 0
