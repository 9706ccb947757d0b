"""``pffnet demo``: generate images, train a small PFFNet in minutes, score it on others, draw."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from tabulate import tabulate
from torch import nn

from pffnet_d2.config import config_path, label_map_rule
from pffnet_d2.data.coco import annotations_to_label_map
from pffnet_d2.data.images import read_image
from pffnet_d2.data.prepare import prepare
from pffnet_d2.engine import Trainer, argument_parser, roi_masks, setup
from pffnet_d2.inference.label_map import instances_to_label_map
from pffnet_d2.pictures import learning_curve, side_by_side, write_png

CONFIG = "demo/PFFNet_R18_FPN.yaml"
SECONDS_BETWEEN_LINES = 15


def main(out: Path, opts: Sequence[str] = ()) -> int:
    """Run the demonstration; running it again keeps the generated images and trains anew.

    Args:
        out: folder that gets datasets/, training/ (log.txt, checkpoints, ...), overlays/ and learning_curve.png.
        opts: KEY VALUE pairs that override the config.

    Returns:
        0.

    Raises:
        InputError: the folder cannot be written, or a key is unknown.
    """
    start = time.perf_counter()
    datasets, training = out / "datasets", out / "training"
    say = partial(print, file=sys.stdout, flush=True)
    say(f"1/4  generated images in {datasets} (kept if there)")
    prepare("phantoms", None, datasets)
    os.environ["DETECTRON2_DATASETS"] = str(datasets)

    # Detectron2 appends to it, and the curve is to show this run only.
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
        count = draw_overlays(cfg, trainer.model, cfg.DATASETS.TEST[0], overlays)
    learning_curve(training / "metrics.json", out / "learning_curve.png")
    say(f"4/4  {count} pictures (image | truth | prediction) in {overlays}; {out / 'learning_curve.png'}")
    say(f"     weights: {training / 'model_final.pth'}; {time.perf_counter() - start:.0f} s in all")
    return 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, stdout and Python's warnings are dropped: pages of environment, config, model and COCO tables.

    Loggers that Detectron2 sets up meanwhile write to their file only, but errors still show.
    """
    errors = logging.StreamHandler(sys.stdout)
    errors.setLevel(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "pffnet_d2")]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.addHandler(errors)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(errors)
                # Their handlers for the console took `nowhere` for it, which closes now.
                for handler in list(logger.handlers):
                    if isinstance(handler, logging.StreamHandler) and handler.stream is nowhere:
                        logger.removeHandler(handler)


class Progress(HookBase):
    """A short line every few seconds: iterations done, loss, speed, time left."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say

    def before_train(self) -> None:
        self.start = self.said = time.perf_counter()

    def after_step(self) -> None:
        now = time.perf_counter()
        done = self.trainer.iter + 1
        if now - self.said < SECONDS_BETWEEN_LINES and done < self.trainer.max_iter:
            return
        self.said = now
        speed = (done - self.trainer.start_iter) / (now - self.start)
        loss = self.trainer.storage.history("total_loss").median(20)
        left = (self.trainer.max_iter - done) / speed
        self.say(
            f"     {done:4d}/{self.trainer.max_iter}  loss {loss:6.3f}  {speed:.1f} iterations/s  {left:3.0f} s left"
        )


def score_table(scores: dict[str, Any]) -> str:
    """The scores that say most, each between 0 and 1, as a table of one row."""
    row = {name: scores["label_map"][name] for name in ("AJI", "Dice", "F1", "PQ")}
    row["mask AP"] = scores["segm"]["AP"] / 100
    return str(tabulate([list(row.values())], headers=list(row), floatfmt=".3f", tablefmt="simple"))


@torch.no_grad()
def draw_overlays(cfg: CfgNode, model: nn.Module, dataset: str, folder: Path) -> int:
    """Write a picture (image | truth | prediction) of every image of ``dataset``; returns how many."""
    truths = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
    rule = label_map_rule(cfg)
    model.eval()
    with roi_masks(model):
        for batch in Trainer.build_test_loader(cfg, dataset):
            for inputs, outputs in zip(batch, model(batch), strict=True):
                record = truths[inputs["image_id"]]
                prediction = instances_to_label_map(outputs["instances"], **rule)
                truth = annotations_to_label_map(record["annotations"], record["height"], record["width"])
                image = np.asarray(read_image(record["file_name"]), np.uint8)
                write_png(folder / f"{Path(record['file_name']).stem}.png", side_by_side(image, truth, prediction))
    return len(truths)
