"""Fine-tunes a model on images and corrected labels: saves them as a custom data set and trains like the command."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pffnet_d2 import env
from pffnet_d2.errors import InputError
from pffnet_d2.napari_plugin.progress import Report, Step

if TYPE_CHECKING:
    from detectron2.engine import HookBase

_SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Example:
    """An image with labels for all of it."""

    name: str  # of the labels, for messages and file names
    pixels: Any  # (H, W) or (H, W, 3 or 4), an array or what slices like one
    labels: NDArray[Any]  # (H, W), 0 background


def finetune_on(
    examples: Sequence[Example], start: str, out: Path, *, iterations: int, report: Report = lambda step: None
) -> list[str]:
    """Train a model in ``out``, a new folder, which is removed again if anything goes wrong or the user cancels.

    The folder holds what `pffnet finetune --out` makes, and ``corrected`` with the images and labels, which may be
    given to `pffnet finetune` again.

    Args:
        examples: at least one.
        start: the model from which training starts, by its name or folder.
        out: the folder of the new model; it must not exist.
        iterations: of training.
        report: called after iterations, at most twice a second.

    Returns:
        Warnings, one line each.

    Raises:
        InputError: there are no examples; images or labels cannot be used; ``out`` cannot be made; something that
            training needs is not installed.
    """
    env.require("PFFNet")
    if not examples:
        raise InputError("nothing to learn from; add an image and its labels first")
    report(Step(0, 0))
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}); choose another folder for models") from error
    try:
        warnings = write_examples(examples, out / "corrected")
        report(Step(0, iterations))
        _train(start, out, iterations, report)
        report(Step(iterations, iterations))  # it may have been cancelled while results were drawn
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return warnings


def write_examples(examples: Sequence[Example], folder: Path) -> list[str]:
    """Write images/NAME.tif and labels/NAME.tif, as the reader ``own`` takes them.

    Returns:
        Warnings, one line each: labels that lie in several separate parts.

    Raises:
        InputError: labels are negative, or one label stands for several objects; pixels are no numbers; a file cannot
            be written.
    """
    from pffnet_d2.data.readers.labels import label_map, parts_of_one_id
    from pffnet_d2.inference.export import write_label_tiff

    warnings = []
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, example in enumerate(examples, start=1):
        ids = label_map(example.labels, example.name)
        if parts_of_one_id(ids) > 1:
            raise InputError(
                f"{example.name}: its only label lies in separate parts; give each object a label of its own (key M)"
            )
        if split := _labels_in_parts(example.labels):
            some = ", ".join(map(str, split[:10])) + (" ..." if len(split) > 10 else "")
            warnings.append(f"{example.name}: labels in separate parts, each learnt as one object: {some}")
        file = f"{number:03d}_{re.sub(r'[^A-Za-z0-9-]+', '_', example.name)[:80]}.tif"
        write_label_tiff(folder / "labels" / file, ids)
        _write_image(folder / "images" / file, np.asarray(example.pixels), example.name)
    return warnings


def _write_image(path: Path, pixels: NDArray[Any], name: str) -> None:
    """A TIFF of a depth that can be read again, without an alpha channel."""
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    if kind not in "buif":
        raise InputError(f"{name}: an image of {pixels.dtype} values; give whole or floating numbers")
    if kind == "b":
        pixels = pixels.astype(np.uint8) * 255
    elif kind == "f" or size == 8:
        pixels = pixels.astype(np.float32)
    colours = pixels.ndim == 3
    tifffile.imwrite(
        path,
        pixels[..., :3] if colours else pixels,
        photometric="rgb" if colours else "minisblack",
        compression="zlib",
        metadata=None,
    )


def _labels_in_parts(labels: NDArray[Any]) -> list[int]:
    """The labels whose pixels are not all (8-)connected."""
    from skimage.measure import label

    parts = label(labels, connectivity=2, background=0)
    first = np.unique(parts, return_index=True)[1]
    owners, counts = np.unique(labels.ravel()[first], return_counts=True)
    return [int(owner) for owner in owners[(counts > 1) & (owners != 0)]]


def _train(start: str, out: Path, iterations: int, report: Report) -> None:
    from pffnet_d2.engine.finetune import finetune

    opts = [
        *("SOLVER.MAX_ITER", str(iterations)),
        *("SOLVER.STEPS", f"({max(1, iterations * 4 // 5)},)"),  # as in configs/finetune.yaml
        *("SOLVER.CHECKPOINT_PERIOD", str(iterations)),
    ]
    with _own_log():
        # That one label does not stand for all objects is checked already.
        finetune(start, out / "corrected", out, options={"truth": "ids"}, opts=opts, hooks=[_reporter(report)])


def _reporter(report: Report) -> HookBase:
    """A hook that reports the losses of training."""
    from detectron2.engine import HookBase

    class Reporter(HookBase):
        def __init__(self) -> None:
            self.losses: list[float] = []
            self.reported = 0.0

        def after_step(self) -> None:
            self.losses.append(float(self.trainer.storage.history("total_loss").latest()))
            done, now = self.trainer.iter + 1, time.monotonic()
            if now - self.reported >= _SECONDS_BETWEEN_REPORTS or done == self.trainer.max_iter:
                losses, self.losses, self.reported = tuple(self.losses), [], now
                report(Step(done, self.trainer.max_iter, losses))

    return Reporter()


@contextmanager
def _own_log() -> Iterator[None]:
    """Detach the handlers that Detectron2 adds to its loggers in the block. Otherwise the log of this run would go on
    in the next ones of this process."""
    from detectron2.utils.logger import setup_logger

    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "pffnet_d2")]
    before = {logger: list(logger.handlers) for logger in loggers}
    try:
        yield
    finally:
        for logger, handlers in before.items():
            for handler in set(logger.handlers) - set(handlers):
                logger.removeHandler(handler)
        setup_logger.cache_clear()  # it remembers for which folders it has set up loggers
