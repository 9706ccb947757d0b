"""Choosing a layer of the viewer, and a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari.viewer import Viewer
from qtpy.QtWidgets import QComboBox, QFileDialog, QFormLayout, QHBoxLayout, QLineEdit, QPushButton, QWidget

from pffnet_d2.errors import InputError
from pffnet_d2.napari_plugin.models import DEFAULT_FOLDER, available


class LayerBox(QComboBox):
    """The layers of one kind; follows the layer list, and the selection in it."""

    def __init__(self, viewer: Viewer, kind: type[Any]) -> None:
        super().__init__()
        self._viewer, self._kind = viewer, kind
        for layer in viewer.layers:
            layer.events.name.connect(self._list)
        viewer.layers.events.inserted.connect(self._insert)
        viewer.layers.events.removed.connect(self._list)
        viewer.layers.selection.events.active.connect(self._follow)
        self._list()

    @property
    def layer(self) -> Any:
        """The chosen layer; None where there is none of the kind."""
        return self.currentData()

    def choose(self, layer: Any) -> None:
        self.setCurrentIndex(self.findData(layer))

    def _insert(self, event: Any) -> None:
        event.value.events.name.connect(self._list)
        self._list()

    def _list(self, event: Any = None) -> None:
        chosen = self.layer
        self.clear()
        for layer in self._viewer.layers:
            if isinstance(layer, self._kind):
                self.addItem(layer.name, layer)
        if self.findData(chosen) >= 0:
            self.choose(chosen)

    def _follow(self, event: Any) -> None:
        if isinstance(event.value, self._kind):
            self.choose(event.value)


class ModelChoice(QWidget):
    """A model, among those of the package and those in a folder, which may be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.box = QComboBox()
        self.box.setToolTip("What segments, and where fine-tuning starts")
        self.folder_edit = QLineEdit(DEFAULT_FOLDER)
        self.folder_edit.setToolTip("Your models: fine-tuned ones are saved here")
        self.folder_edit.editingFinished.connect(self.list_models)
        browse = QPushButton("...")
        browse.setMaximumWidth(32)
        browse.clicked.connect(self._browse)
        row = QHBoxLayout()
        row.addWidget(self.folder_edit)
        row.addWidget(browse)
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Model", self.box)
        form.addRow("Your models", row)
        self.list_models()

    @property
    def model(self) -> str:
        """The name or folder of the chosen model. Raises InputError where there is none."""
        if self.box.currentData() is None:
            raise InputError(f"{self.folder}: holds no model; choose the folder of your models")
        return str(self.box.currentData())

    @property
    def folder(self) -> Path:
        return Path(self.folder_edit.text()).expanduser()

    def list_models(self, choose: str = "") -> None:
        """Lists the models that there are now, and chooses one by its name or folder, or keeps the chosen one."""
        wanted = choose or self.box.currentData()
        self.box.clear()
        for title, model in available(self.folder).items():
            self.box.addItem(title, model)
        self.box.setCurrentIndex(max(self.box.findData(wanted), 0))

    def _browse(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Folder of your models", str(self.folder)):
            self.folder_edit.setText(folder)
            self.list_models()
