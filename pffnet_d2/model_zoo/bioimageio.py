"""Packages a model for bioimage.io: its network in ONNX, an image with its detections, and their description.

The description follows version 0.5 of the format
(https://bioimage-io.github.io/spec-bioimage-io/, model description), and ``bioimageio.core`` tests the package before
it is kept. The format has no label map made of masks in boxes, so the outputs are the detections. Every output has at
least one row there, so the last row is empty: a box without area, with scores of 0.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pffnet_d2.env import VERSION
from pffnet_d2.errors import InputError
from pffnet_d2.model_zoo.export import OPSET, Exported, Outputs, Run, example, export_with, write_onnx
from pffnet_d2.model_zoo.find import ONNX
from pffnet_d2.modeling.graph import DetectionGraph, outputs_of

PACKAGE = "model.bioimageio.zip"
# Images of the test have at least this side.
_SMALLEST = 64
_CITATION = "Liu et al., Panoptic Feature Fusion Net, IEEE Transactions on Image Processing 30, 2021"
_DOI = "10.1109/TIP.2021.3050668"
_README = """# {name}

Finds nuclei, cells or leaves and gives, for each object, a box, scores and a mask in the frame of the box.

The input is RGB from 0 to 255, already normalised. The metadata of the ONNX file (key `pffnet_d2`) says how, and by
which rule the detections become a label map; `pffnet_d2` applies both: `pffnet predict IMAGE --model model.onnx`, after
`pffnet export --format onnx`. The last row of every output is empty, because the format asks for at least one.

## Validation

Compare label maps with annotated ones: `pffnet score --truth FOLDER --prediction FOLDER`.
"""


class WithEmptyRow(nn.Module):
    """The outputs of a graph, but for the caps, with an empty last row."""

    def __init__(self, graph: DetectionGraph) -> None:
        super().__init__()
        self.graph = graph
        self.names = [name for name in outputs_of(graph.model) if name != "capped"]
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """As :class:`DetectionGraph`, n + 1 rows."""
        *outputs, _ = self.graph(image)
        return tuple(F.pad(each, (*[0] * (2 * each.dim() - 2), 0, 1)) for each in outputs)


def export_bioimageio(cfg: Any, out: Path, about: Mapping[str, Any] | None = None) -> Exported:
    """Write ``out`` / model.bioimageio.zip.

    Args:
        cfg, out: as for :func:`~pffnet_d2.model_zoo.export.export_onnx`.
        about: the card of the model; its title and licence are used.

    Raises:
        InputError: see :func:`~pffnet_d2.model_zoo.export.export_onnx`; bioimageio.core is not installed, or its test
            of the package fails.
    """
    _library("bioimageio.core")

    def write(graph: DetectionGraph, path: Path, table: str) -> Run:
        module = WithEmptyRow(graph)
        weights = path.with_name(ONNX)
        run = write_onnx(module, module.names, weights, table)
        image = example().numpy()
        _package(path, weights, image, run(image), json.loads(table))
        return lambda each: {name: value[:-1] for name, value in run(each).items()}

    return export_with(cfg, out / PACKAGE, about, write)


def _package(path: Path, weights: Path, image: NDArray[np.float32], outputs: Outputs, table: Mapping[str, Any]) -> None:
    """Write the package of ``weights`` and test it. Raises InputError if the test fails."""
    spec, core = _library("bioimageio.spec"), _library("bioimageio.core")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        spec.save_bioimageio_package(_description(weights, image, outputs, table), output_path=path)
        summary = core.test_model(path)
    finally:
        logging.disable(before)
    if summary.status != "passed":
        faults = [fault.msg for detail in summary.details for fault in detail.errors]
        raise InputError(f"the package was not kept: bioimageio.core finds: {'; '.join(faults)}")


def _description(weights: Path, image: NDArray[np.float32], outputs: Outputs, table: Mapping[str, Any]) -> Any:
    """The model's description, and the files that it names, beside ``weights``."""
    v0_5, file = _library("bioimageio.spec.model.v0_5"), _library("bioimageio.spec.common").FileDescr
    folder = weights.parent
    for name, value in {"image": image, **outputs}.items():
        np.save(folder / f"{name}.npy", value)
    name = table.get("title") or "PFFNet of pffnet_d2"
    (folder / "README.md").write_text(_README.format(name=name), encoding="utf-8")
    floats = v0_5.IntervalOrRatioDataDescr(type="float32")
    sides = [v0_5.SpaceInputAxis(id=axis, size=v0_5.ParameterizedSize(min=_SMALLEST, step=1)) for axis in "yx"]
    return v0_5.ModelDescr(
        name=name.translate(str.maketrans(",;:/", "    ")),
        description="Instance segmentation: boxes, scores, and masks in the frames of the boxes",
        version=VERSION,
        authors=[v0_5.Author(name="pffnet_d2")],
        cite=[v0_5.CiteEntry(text=_CITATION, doi=_DOI)],
        license=_licence(v0_5, str(table.get("licence", ""))),
        documentation=file(source=folder / "README.md"),
        inputs=[
            v0_5.InputTensorDescr(
                id="image",
                axes=[v0_5.ChannelAxis(channel_names=["red", "green", "blue"]), *sides],
                test_tensor=file(source=folder / "image.npy"),
                data=v0_5.IntervalOrRatioDataDescr(type="float32", range=(0, 255)),
            )
        ],
        outputs=[
            v0_5.OutputTensorDescr(
                id=each, axes=_axes(v0_5, value.shape), test_tensor=file(source=folder / f"{each}.npy"), data=floats
            )
            for each, value in outputs.items()
        ],
        weights=v0_5.WeightsDescr(onnx=v0_5.OnnxWeightsDescr(source=weights, opset_version=OPSET)),
    )


def _licence(v0_5: Any, text: str) -> Any:
    """The identifier of a licence, such as CC0-1.0 of "CC0 1.0"; None where the list of SPDX has none."""
    try:
        return v0_5.LicenseId(text.replace(" ", "-"))
    except ValueError:
        return None


def _axes(v0_5: Any, shape: tuple[int, ...]) -> list[Any]:
    """The axes of an output: objects, and the coordinates of boxes or the sides of masks."""
    objects = v0_5.IndexOutputAxis(size=v0_5.DataDependentSize(min=1))
    if len(shape) == 2:
        return [objects, v0_5.ChannelAxis(channel_names=["x0", "y0", "x1", "y1"])]
    return [objects, *(v0_5.SpaceOutputAxis(id=axis, size=side) for axis, side in zip("yx", shape[1:], strict=False))]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError("format bioimageio needs more packages; type: pip install 'pffnet_d2[bioimageio]'") from error
