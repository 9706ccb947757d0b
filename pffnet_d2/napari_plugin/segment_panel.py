"""The tab that segments a layer."""

from __future__ import annotations

from functools import partial
from typing import Any

from napari.layers import Image
from napari.utils.notifications import show_error, show_warning
from napari.viewer import Viewer
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QFormLayout, QPushButton, QSpinBox, QWidget

from pffnet_d2.errors import InputError
from pffnet_d2.napari_plugin.choices import LayerBox, ModelChoice
from pffnet_d2.napari_plugin.job import Job, JobBar
from pffnet_d2.napari_plugin.layers import Window, pixel_size, placement, shown_plane, visible_part
from pffnet_d2.napari_plugin.segment import Segmentation, Segmenter, Settings

_WHOLE, _VISIBLE = "the plane shown", "what the camera shows"
_TILE_STEP = 256


class SegmentPanel(QWidget):
    """Segments the chosen layer, and adds the result as a Labels layer with a table of features."""

    def __init__(self, viewer: Viewer, models: ModelChoice, jobs: JobBar) -> None:
        super().__init__()
        self._viewer, self._models, self._jobs = viewer, models, jobs
        self._segmenter = Segmenter()
        self.image = LayerBox(viewer, Image)
        self.region = QComboBox()
        self.region.addItems([_WHOLE, _VISIBLE])
        self.diameter = _number(
            1000,
            1,
            "not resized",
            "Mean diameter of your objects in pixels; resizes them for the model, not the result",
        )
        self.threshold = _number(0.99, 0.05, "of the model", "Class score that an object needs")
        self.tile = QSpinBox()
        self.tile.setRange(0, 1 << 16)
        self.tile.setSingleStep(_TILE_STEP)
        self.tile.setSpecialValueText("none")
        self.tile.setToolTip("Side of the tiles of a large image in pixels, such as 1024; can be cancelled after each")
        self.invert = QCheckBox("dark objects on a bright background")
        self.run = QPushButton("Segment")
        self.run.clicked.connect(self.segment)
        jobs.busy.connect(self.run.setDisabled)
        form = QFormLayout(self)
        form.addRow("Image", self.image)
        form.addRow("Region", self.region)
        form.addRow("Diameter", self.diameter)
        form.addRow("Threshold", self.threshold)
        form.addRow("Tiles", self.tile)
        form.addRow("Invert", self.invert)
        form.addRow(self.run)

    def settings(self) -> Settings:
        """What the fields say. Raises InputError where there is no model."""
        return Settings(
            model=self._models.model,
            diameter=self.diameter.value() or None,
            threshold=round(self.threshold.value(), 4) or None,
            invert=self.invert.isChecked(),
            tile=self.tile.value() or None,
        )

    def segment(self) -> None:
        """Starts to segment; the layer appears when that is done."""
        layer = self.image.layer
        try:
            if layer is None:
                raise InputError("no image to segment; open one first (File > Open Sample > PFFNet has two)")
            window = shown_plane(layer, self._viewer.dims)
            if self.region.currentText() == _VISIBLE:
                window = visible_part(layer, window)
            settings = self.settings()
        except InputError as error:
            show_error(str(error))
            return
        place, size = placement(layer, window), pixel_size(layer, window)
        pixels = window.of(layer)
        self._jobs.start(
            Job(
                f"Segmenting {layer.name}",
                lambda report: self._segmenter(pixels, settings, size, report),
                partial(self._add, layer.name, window, place),
            )
        )

    def _add(self, name: str, window: Window, place: dict[str, Any], found: Segmentation) -> None:
        for line in found.warnings:
            show_warning(f"{name}: {line}")
        count = len(found.features["index"])
        self._jobs.status.setText(f"{name}: {count} object{'' if count == 1 else 's'}")
        labels = window.with_all_axes(found.label_map)
        self._viewer.add_labels(labels, name=f"{name} objects", features=found.features, **place)


def _number(top: float, step: float, none: str, tip: str) -> QDoubleSpinBox:
    """A number above 0; 0 is shown as ``none``."""
    box = QDoubleSpinBox()
    box.setRange(0, top)
    box.setSingleStep(step)
    box.setSpecialValueText(none)
    box.setToolTip(tip)
    return box
