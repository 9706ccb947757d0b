"""Opens napari with the plugin, segments a sample, fine-tunes shortly, and saves what a user sees.

python tests/napari_plugin/screenshot.py output/napari.png output/napari_finetune.png
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from qtpy.QtWidgets import QApplication

PLUGIN, WIDGET = "pffnet_d2", "Segment and fine-tune"
ITERATIONS = 20


def wait_until(ready: Callable[[], bool]) -> None:
    while not ready():
        QApplication.processEvents()


def save(viewer: Any, path: Path) -> None:
    viewer.reset_view()
    for _ in range(50):  # until all is drawn
        QApplication.processEvents()
    path.parent.mkdir(parents=True, exist_ok=True)
    viewer.window.screenshot(str(path), canvas_only=False, flash=False)
    print(path)


def main(segmented: Path, finetuned: Path) -> None:
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1280, 800)
    _, widget = viewer.window.add_plugin_dock_widget(PLUGIN, WIDGET)
    viewer.open_sample(PLUGIN, "fluorescence")
    widget.segment.segment()
    wait_until(lambda: not widget.jobs.running)
    save(viewer, segmented)

    viewer.layers.clear()
    viewer.open_sample(PLUGIN, "histology")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        widget.models.folder_edit.setText("models")
        widget.tabs.setCurrentWidget(widget.finetune)
        widget.finetune.add()
        widget.finetune.name.setText("tissue")
        widget.finetune.iterations.setValue(ITERATIONS)
        widget.finetune.finetune()
        wait_until(lambda: not widget.jobs.running)
        save(viewer, finetuned)
    viewer.close()


if __name__ == "__main__":
    main(*(Path(file).absolute() for file in sys.argv[1:]))
