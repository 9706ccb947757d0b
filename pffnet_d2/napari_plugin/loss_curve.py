"""The loss of a training while it runs."""

from __future__ import annotations

from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from scipy.ndimage import median_filter

from pffnet_d2.napari_plugin.progress import Step

# Iterations of the running median, as in the lines that `pffnet finetune` prints.
_WINDOW = 20
_TEXT, _POINTS, _LINE = "#888888", "#4c72b0", "#dd8452"  # readable on napari's dark and light themes


class LossCurve(FigureCanvasQTAgg):
    """Losses by iteration, and their running median."""

    def __init__(self) -> None:
        super().__init__(Figure(figsize=(3, 2), layout="constrained"))
        self.losses: list[float] = []
        self.figure.set_facecolor("none")
        self.setStyleSheet("background-color: transparent;")
        self.setMinimumHeight(160)
        self._axes = self.figure.add_subplot()
        self.clear()

    def clear(self) -> None:
        self.losses = []
        self._draw()

    def add(self, step: Step) -> None:
        if step.losses:
            self.losses.extend(step.losses)
            self._draw()

    def _draw(self) -> None:
        axes = self._axes
        axes.clear()
        axes.set_facecolor("none")
        axes.set_xlabel("iteration", color=_TEXT)
        axes.set_ylabel("loss", color=_TEXT)
        axes.tick_params(colors=_TEXT)
        for spine in axes.spines.values():
            spine.set_color(_TEXT)
        if self.losses:
            iterations = range(1, len(self.losses) + 1)
            axes.plot(iterations, self.losses, ".", color=_POINTS, markersize=3)
            axes.plot(iterations, median_filter(self.losses, size=_WINDOW, mode="nearest"), color=_LINE)
            axes.set_ylim(bottom=0)
        self.draw_idle()
