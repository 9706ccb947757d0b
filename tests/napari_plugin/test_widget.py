"""The widget in a napari viewer. `make napari` runs these tests under Xvfb, with Mesa's OpenGL."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed: make napari installs it")
pytest.importorskip("qtpy.QtWidgets", exc_type=ImportError)
pytest.importorskip("pytestqt", reason="pytest-qt is not installed: make napari does")
pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from napari.utils.notifications import notification_manager

from pffnet_d2.napari_plugin import choices
from pffnet_d2.napari_plugin.job import Job
from pffnet_d2.napari_plugin.progress import Step
from pffnet_d2.napari_plugin.sample_data import fluorescence
from pffnet_d2.napari_plugin.segment_panel import _VISIBLE
from pffnet_d2.napari_plugin.widget import PFFNetWidget

IMAGE = fluorescence()[0][0][:192, :256]
NAME = "PFFNet"
Open = Callable[..., tuple[Any, PFFNetWidget]]


@pytest.fixture(scope="session", autouse=True)
def _opengl(request: pytest.FixtureRequest) -> None:
    """Skips the tests where Qt has no display, on which it would end the process, or no OpenGL."""
    from qtpy.QtGui import QOffscreenSurface, QOpenGLContext

    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"} & os.environ.keys():
        pytest.skip("there is no display: make napari runs these tests under Xvfb")
    qapp = request.getfixturevalue("qapp")
    context, surface = QOpenGLContext(), QOffscreenSurface()
    surface.create()
    if not (context.create() and context.makeCurrent(surface)):
        pytest.skip(f"Qt's platform {qapp.platformName()} has no OpenGL here: make napari uses Mesa's under Xvfb")


@pytest.fixture
def opened(make_napari_viewer: Any, packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens a viewer with the widget, whose models are in ``tmp_path``; the chosen one is ``packaged``."""
    monkeypatch.setattr(choices, "DEFAULT_FOLDER", str(tmp_path))
    monkeypatch.setattr(choices, "available", lambda folder: {"packaged": str(packaged), **_models(folder)})
    notification_manager.records.clear()

    def open_viewer(**arguments: Any) -> tuple[Any, PFFNetWidget]:
        viewer = make_napari_viewer(**arguments)
        widget = PFFNetWidget(viewer)
        viewer.window.add_dock_widget(widget, name=NAME)
        return viewer, widget

    return open_viewer


_models = choices.available


def wait(qtbot: Any, widget: PFFNetWidget) -> None:
    qtbot.waitUntil(lambda: not widget.jobs.running, timeout=120_000)


def said(severity: str = "error") -> list[str]:
    return [record.message for record in notification_manager.records if record.severity.value == severity]


def test_manifest_leads_to_the_widget(make_napari_viewer: Any, qtbot: Any) -> None:
    from npe2 import PluginManifest

    import pffnet_d2.napari_plugin

    file = Path(pffnet_d2.napari_plugin.__file__).with_name("napari.yaml")
    manifest = PluginManifest.from_file(file)
    manifest.validate_imports()
    assert manifest.name == "pffnet_d2"


def test_a_layer_is_segmented(opened: Open, qtbot: Any) -> None:
    viewer, widget = opened()
    place = {"scale": (0.5, 0.5), "translate": (7, 9), "rotate": 30, "units": "um"}
    viewer.add_image(IMAGE, name="nuclei", **place)
    widget.segment.segment()
    assert widget.jobs.running
    assert not widget.segment.run.isEnabled()
    assert not widget.finetune.run.isEnabled()
    wait(qtbot, widget)
    assert said() == []
    sizes, caps = said("warning")  # the small model is hardly trained, and has low caps
    assert sizes.startswith("nuclei: the objects found measure less than half of the 20 pixels")
    assert caps.startswith("nuclei: objects may be missing: ")
    image, labels = viewer.layers
    assert labels.name == "nuclei objects"
    assert labels.data.shape == IMAGE.shape
    count = labels.data.max()
    assert count > 0
    assert widget.jobs.status.text() == f"nuclei: {count} objects"
    for corner in ((0, 0), (191, 255)):
        assert labels.data_to_world(corner) == pytest.approx(image.data_to_world(corner))
    assert labels.features["index"].tolist() == list(range(1, count + 1))
    areas = np.bincount(labels.data.ravel())[1:]
    assert labels.features["area_um2"].to_numpy() == pytest.approx(areas / 4, rel=1e-5)
    # What napari shows of an object below the pointer.
    y, x = np.argwhere(labels.data == count)[0]
    assert any(text.startswith("score: ") for text in labels._get_properties((y, x), world=False))
    assert widget.segment.run.isEnabled()
    assert widget.segment.image.layer is image


def test_the_plane_of_a_stack(opened: Open, qtbot: Any) -> None:
    viewer, widget = opened()
    viewer.add_image(np.stack([np.zeros_like(IMAGE), IMAGE, np.zeros_like(IMAGE)]), name="stack", scale=(2, 1, 1))
    viewer.dims.set_point(0, 2)
    widget.segment.segment()
    wait(qtbot, widget)
    labels = viewer.layers[-1]
    assert labels.data.shape == (1, *IMAGE.shape)
    assert labels.data.any()
    assert labels.data_to_world((0, 0, 0)) == pytest.approx((2, 0, 0))


def test_what_the_camera_shows(opened: Open, qtbot: Any) -> None:
    viewer, widget = opened(show=True)
    image = viewer.add_image(IMAGE, name="nuclei", scale=(0.5, 0.5), translate=(3, 4))
    camera = viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera
    camera.center = image.data_to_world((100, 120))
    camera.zoom = 16
    qtbot.waitUntil(lambda: 0 < image.corner_pixels[0, 0] < image.corner_pixels[1, 0] < 191, timeout=10_000)
    (top, left), (bottom, right) = image.corner_pixels
    widget.segment.region.setCurrentText(_VISIBLE)
    widget.segment.segment()
    wait(qtbot, widget)
    labels = viewer.layers[-1]
    assert labels.data.shape == (bottom - top + 1, right - left + 1)
    assert labels.data_to_world((0, 0)) == pytest.approx(image.data_to_world((top, left)))
    camera.center = (10_000, 10_000)
    qtbot.waitUntil(lambda: image.corner_pixels[0, 0] == image.corner_pixels[1, 0], timeout=10_000)
    widget.segment.segment()
    assert said() == ["nuclei: is not in view; move the camera to it, or choose the whole plane"]
    assert not widget.jobs.running


def test_cancelled_between_tiles(opened: Open, qtbot: Any) -> None:
    viewer, widget = opened()
    viewer.add_image(IMAGE, name="nuclei")
    widget.segment.tile.setValue(64)
    widget.segment.segment()
    qtbot.waitUntil(lambda: widget.jobs.bar.value() >= 1, timeout=60_000)
    assert widget.jobs.bar.maximum() > 10
    widget.jobs.cancel.click()
    wait(qtbot, widget)
    assert widget.jobs.status.text() == "Cancelled"
    assert len(viewer.layers) == 1
    assert said() == []
    assert widget.segment.run.isEnabled()


def test_mistakes_are_one_line(opened: Open, qtbot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    viewer, widget = opened()
    widget.segment.segment()
    viewer.add_image(IMAGE, name="nuclei")
    widget.segment.tile.setValue(100)
    widget.segment.segment()
    wait(qtbot, widget)
    widget.finetune.add()
    widget.finetune.finetune()
    empty = viewer.add_labels(np.zeros(IMAGE.shape, int), name="nothing")
    widget.finetune.add()
    first, second, third, fourth, fifth = said()
    assert first.startswith("no image to segment; open one first")
    assert second.startswith("tiles of 100 pixels: the network works in steps of 32 pixels")
    assert third.startswith("fine-tuning needs an image and a Labels layer")
    assert fourth.startswith("nothing to learn from")
    assert fifth == "nothing: has no labels; draw the objects, or remove the pair"
    assert widget.jobs.status.text() == "Segmenting nuclei: failed"
    assert "Traceback" not in capsys.readouterr().err
    assert viewer.layers[-1] is empty


def test_a_bug_is_not_hidden(opened: Open, qtbot: Any) -> None:
    _, widget = opened()

    def work(report: Any) -> None:
        report(Step(1, 2))
        raise ZeroDivisionError("a bug")

    with qtbot.captureExceptions() as raised:
        widget.jobs.start(Job("Work", work, lambda result: None))
        wait(qtbot, widget)
    assert widget.jobs.status.text() == "Work: failed"
    assert [str(error) for _, error, _ in raised] == ["a bug"]


def test_closing_the_widget_ends_its_job(opened: Open, qtbot: Any) -> None:
    viewer, widget = opened()
    seen: list[str] = []

    def work(report: Any) -> None:
        seen.append("began")
        try:
            while True:
                report(Step(0, 0))
                time.sleep(0.01)
        finally:
            seen.append("ended")

    with qtbot.captureExceptions() as raised:
        widget.jobs.start(Job("Work", work, seen.append))
        qtbot.waitUntil(lambda: seen == ["began"], timeout=60_000)
        dock = widget.parent()
        widget.deleteLater()
        viewer.window.remove_dock_widget(dock)
        qtbot.waitUntil(lambda: seen == ["began", "ended"], timeout=10_000)
        qtbot.wait(100)
    assert raised == []


def test_fine_tuned_on_corrected_labels(opened: Open, qtbot: Any, tmp_path: Path) -> None:
    viewer, widget = opened()
    panel = widget.finetune
    viewer.add_image(IMAGE, name="nuclei")
    widget.segment.segment()
    wait(qtbot, widget)
    labels = viewer.layers[-1]
    labels.data[:] = fluorescence_truth()
    panel.add()
    assert [panel.list.item(i).text() for i in range(panel.list.count())] == ["nuclei + nuclei objects"]
    panel.add()
    assert said() == ["nuclei objects: the pair is in the list already"]
    panel.name.setText("corrected")
    panel.iterations.setValue(2)
    panel.finetune()
    wait(qtbot, widget)
    assert said("info") == [f"corrected: trained, and chosen as the model; its files are in {tmp_path / 'corrected'}"]
    assert len(panel.curve.losses) == 2
    assert widget.models.model == str(tmp_path / "corrected")
    assert widget.models.box.currentText() == "corrected"
    widget.segment.segment()
    wait(qtbot, widget)
    assert len(viewer.layers) == 3
    panel.finetune()
    assert said()[-1].startswith(f"{tmp_path / 'corrected'}: exists; choose another name")
    panel.name.setText("cancelled")
    panel.iterations.setValue(500)
    panel.finetune()
    qtbot.waitUntil(lambda: len(panel.curve.losses) > 0, timeout=60_000)
    widget.jobs.cancel.click()
    wait(qtbot, widget)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["corrected"]
    viewer.layers.remove(labels)
    assert panel.pairs == []
    assert panel.list.count() == 0


def fluorescence_truth() -> Any:
    from pffnet_d2.data.synthetic import synthetic_image

    image, labels = synthetic_image(4, 0, size=(384, 384), style="fluorescence")
    assert (image[:192, :256, 1] == IMAGE).all()
    return labels[:192, :256]


def test_layer_boxes_follow_the_viewer(opened: Open) -> None:
    viewer, widget = opened()
    box = widget.segment.image
    assert box.layer is None
    first = viewer.add_image(IMAGE, name="first")
    second = viewer.add_image(IMAGE, name="second")
    assert [box.itemText(i) for i in range(box.count())] == ["first", "second"]
    assert box.layer is second
    viewer.layers.selection.active = first
    assert box.layer is first
    viewer.add_labels(np.zeros((4, 4), int))
    assert box.layer is first
    assert box.count() == 2
    first.name = "renamed"
    assert box.currentText() == "renamed"
    viewer.layers.remove(first)
    assert box.layer is second
