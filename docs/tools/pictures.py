"""Draws the pictures of these pages: what is in the files that `pffnet predict` writes, on the image they belong to.

    pffnet predict IMAGE --out results --format geojson,roi,label-tiff
    python docs/tools/pictures.py IMAGE results/NAME

They show the files as read by json, roifile and tifffile. They are not pictures of the windows of QuPath, Fiji or
CellProfiler. Those in this folder show 160 x 200 pixels of a validation field of BBBC039 (CC0).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import roifile
import tifffile
from matplotlib.patches import Polygon

HERE = Path(__file__).parent


def canvas(image: np.ndarray) -> plt.Axes:
    height, width = image.shape
    figure = plt.figure(figsize=(width / 50, height / 50), dpi=150)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(
        image, cmap="gray", vmax=np.percentile(image, 99.8), extent=(0, width, height, 0), interpolation="nearest"
    )
    axes.axis("off")
    return axes


def main() -> None:
    image, results = tifffile.imread(sys.argv[1]), sys.argv[2]

    axes = canvas(image)
    for feature in json.loads(Path(f"{results}.geojson").read_text())["features"]:
        geometry = feature["geometry"]
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        colour = np.array(feature["properties"]["classification"]["color"]) / 255
        for ring in (ring for polygon in polygons for ring in polygon):
            axes.add_patch(Polygon(ring, fill=False, color=colour, linewidth=1.2))
    axes.figure.savefig(HERE / "qupath.png")

    axes = canvas(image)
    for roi in roifile.roiread(f"{results}_rois.zip"):
        for ring in roi.coordinates(multi=True):
            axes.add_patch(Polygon(ring, fill=False, color="yellow", linewidth=1.2))
        axes.text(
            *np.mean(roi.coordinates(), axis=0), int(roi.name), color="cyan", ha="center", va="center", fontsize=8
        )
    axes.figure.savefig(HERE / "fiji.png")

    labels = tifffile.imread(f"{results}_labels.tif")
    axes = canvas(image)
    shown = np.ma.masked_equal(labels, 0)
    height, width = labels.shape
    axes.imshow(shown % 20, cmap="tab20", alpha=0.6, extent=(0, width, height, 0), interpolation="nearest")
    axes.figure.savefig(HERE / "cellprofiler.png")


if __name__ == "__main__":
    main()
