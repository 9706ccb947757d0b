"""Output of a training run for people: short lines instead of pages of log, a table of scores, pictures."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from tabulate import tabulate
from torch import nn

from pffnet_d2.engine.trainer import Trainer
from pffnet_d2.imaging.read import read_image
from pffnet_d2.masks.coco import annotations_to_label_map
from pffnet_d2.masks.compose import LabelMapRule, instances_to_label_map
from pffnet_d2.modeling.tta import for_inference
from pffnet_d2.visualization.overlay import side_by_side, write_png

SECONDS_BETWEEN_LINES = 15
# Loggers whose warnings are shown: what is downloaded, and how a run is resumed.
HEARD = ("pffnet_d2.model_zoo.checkpoint", "pffnet_d2.engine.resume")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop stdout and Python's warnings: pages about the environment, the config and the model, and COCO tables.

    Loggers that Detectron2 sets up meanwhile write to their files only. Errors, and the warnings of HEARD, are still
    shown.
    """
    errors = logging.StreamHandler(sys.stdout)
    errors.addFilter(lambda record: record.levelno >= logging.ERROR or record.name in HEARD)
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
                # Their handlers for the console write to `nowhere`, which is about to be closed.
                for handler in list(logger.handlers):
                    if isinstance(handler, logging.StreamHandler) and handler.stream is nowhere:
                        logger.removeHandler(handler)


class Progress(HookBase):
    """Prints a short line every few seconds: iterations done, loss, speed, time left."""

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
    """The most informative scores, each between 0 and 1, as a table of one row."""
    row = {name: scores["label_map"][name] for name in ("AJI", "Dice", "F1", "PQ")}
    row["mask AP"] = scores["segm"]["AP"] / 100
    return str(tabulate([list(row.values())], headers=list(row), floatfmt=".3f", tablefmt="simple"))


@torch.no_grad()
def draw_overlays(cfg: CfgNode, model: nn.Module, dataset: str, folder: Path) -> int:
    """Write a picture (image | truth | prediction) of every image of ``dataset``, and return their number."""
    truths = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
    rule = LabelMapRule.from_config(cfg)
    network = for_inference(model, cfg).eval()
    for batch in Trainer.build_test_loader(cfg, dataset):
        for inputs, outputs in zip(batch, network(batch), strict=True):
            record = truths[inputs["image_id"]]
            prediction = instances_to_label_map(outputs["instances"], rule)
            truth = annotations_to_label_map(record["annotations"], record["height"], record["width"])
            image = np.asarray(read_image(record["file_name"]), np.uint8)
            write_png(folder / f"{Path(record['file_name']).stem}.png", side_by_side(image, truth, prediction))
    return len(truths)
