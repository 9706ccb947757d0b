"""The dock widget: a model, and what is done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QTabWidget, QVBoxLayout, QWidget

from pffnet_d2.napari_plugin.choices import ModelChoice
from pffnet_d2.napari_plugin.finetune_panel import FinetunePanel
from pffnet_d2.napari_plugin.job import JobBar
from pffnet_d2.napari_plugin.segment_panel import SegmentPanel

if TYPE_CHECKING:
    from napari.viewer import Viewer


class PFFNetWidget(QWidget):
    """Plugins > Segment and fine-tune (PFFNet)."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.models, self.jobs = ModelChoice(), JobBar()
        self.segment = SegmentPanel(napari_viewer, self.models, self.jobs)
        self.finetune = FinetunePanel(napari_viewer, self.models, self.jobs)
        self.tabs = QTabWidget()
        self.tabs.addTab(self.segment, "Segment")
        self.tabs.addTab(self.finetune, "Fine-tune")
        layout = QVBoxLayout(self)
        layout.addWidget(self.models)
        layout.addWidget(self.tabs)
        layout.addWidget(self.jobs)
        layout.addStretch()
