"""The tab that fine-tunes a model on corrected labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from napari.layers import Image, Labels
from napari.utils.notifications import show_error, show_info, show_warning
from napari.viewer import Viewer
from qtpy.QtWidgets import QFormLayout, QHBoxLayout, QLineEdit, QListWidget, QPushButton, QSpinBox, QWidget

from pffnet_d2.errors import InputError
from pffnet_d2.napari_plugin.choices import LayerBox, ModelChoice
from pffnet_d2.napari_plugin.finetuning import Example, finetune_on
from pffnet_d2.napari_plugin.job import Job, JobBar
from pffnet_d2.napari_plugin.layers import labelled_planes, shown_plane
from pffnet_d2.napari_plugin.loss_curve import LossCurve
from pffnet_d2.napari_plugin.models import place_of_new

_ITERATIONS = 400  # as in configs/finetune.yaml


@dataclass(frozen=True, eq=False)
class Pair:
    """An image and its labels, and the two axes that were shown when they were chosen."""

    image: Any
    labels: Any
    axes: tuple[int, int]

    def examples(self) -> list[Example]:
        """One for each plane with labels. Raises InputError like ``labelled_planes``."""
        planes = labelled_planes(self.image, self.labels, self.axes)
        return [Example(self.labels.name, window.of(self.image), labels) for window, labels in planes]


class FinetunePanel(QWidget):
    """Fine-tunes the chosen model on pairs of an image and its labels."""

    def __init__(self, viewer: Viewer, models: ModelChoice, jobs: JobBar) -> None:
        super().__init__()
        self._viewer, self._models, self._jobs = viewer, models, jobs
        self.pairs: list[Pair] = []
        self.image, self.labels = LayerBox(viewer, Image), LayerBox(viewer, Labels)
        self.list = QListWidget()
        self.list.setMaximumHeight(80)
        self.name = QLineEdit("mine")
        self.iterations = QSpinBox()
        self.iterations.setRange(1, 1_000_000)
        self.iterations.setSingleStep(100)
        self.iterations.setValue(_ITERATIONS)
        self.run = QPushButton("Fine-tune")
        self.curve = LossCurve()
        self._lay_out()
        jobs.busy.connect(self.run.setDisabled)
        viewer.layers.events.removed.connect(self._forget)

    def _lay_out(self) -> None:
        add, remove = QPushButton("Add pair"), QPushButton("Remove pair")
        add.clicked.connect(self.add)
        remove.clicked.connect(self.remove)
        self.run.clicked.connect(self.finetune)
        row = QHBoxLayout()
        row.addWidget(add)
        row.addWidget(remove)
        form = QFormLayout(self)
        form.addRow("Image", self.image)
        form.addRow("Its labels", self.labels)
        form.addRow(row)
        form.addRow(self.list)
        form.addRow("New model", self.name)
        form.addRow("Iterations", self.iterations)
        form.addRow(self.run)
        form.addRow(self.curve)

    def add(self) -> None:
        """Adds the chosen image and labels, if they can be learnt from."""
        image, labels = self.image.layer, self.labels.layer
        try:
            if image is None or labels is None:
                raise InputError(
                    "fine-tuning needs an image and a Labels layer; segment an image and correct the result"
                )
            if any(pair.image is image and pair.labels is labels for pair in self.pairs):
                raise InputError(f"{labels.name}: the pair is in the list already")
            pair = Pair(image, labels, shown_plane(image, self._viewer.dims).axes)
            pair.examples()
        except InputError as error:
            show_error(str(error))
            return
        self._set_pairs([*self.pairs, pair])

    def remove(self) -> None:
        """Removes the selected pair."""
        row = self.list.currentRow()
        self._set_pairs([pair for i, pair in enumerate(self.pairs) if i != row])

    def finetune(self) -> None:
        """Starts to train; the new model is chosen when that is done."""
        try:
            start = self._models.model
            out = place_of_new(self._models.folder, self.name.text())
            if not self.pairs:
                raise InputError("nothing to learn from; choose an image and its labels, and add the pair")
            # Copies of the labels as they are now; the user may go on painting.
            examples = [example for pair in self.pairs for example in pair.examples()]
        except InputError as error:
            show_error(str(error))
            return
        iterations = self.iterations.value()
        self.curve.clear()
        self._jobs.start(
            Job(
                f"Fine-tuning {out.name} on {len(examples)} image{'' if len(examples) == 1 else 's'}",
                lambda report: finetune_on(examples, start, out, iterations=iterations, report=report),
                partial(self._trained, out),
                self.curve.add,
            )
        )

    def _trained(self, out: Path, warnings: list[str]) -> None:
        for line in warnings:
            show_warning(line)
        self._models.list_models(choose=str(out.absolute()))
        show_info(f"{out.name}: trained, and chosen as the model; its files are in {out}")

    def _forget(self, event: Any) -> None:
        """A layer was removed from the viewer."""
        self._set_pairs([pair for pair in self.pairs if event.value not in (pair.image, pair.labels)])

    def _set_pairs(self, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self.list.clear()
        self.list.addItems([f"{pair.image.name} + {pair.labels.name}" for pair in pairs])
