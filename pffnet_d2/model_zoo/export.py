"""Writes a trained network to a file that runs without this package: ONNX or TorchScript (``bioimageio.py`` packs it).

The file is checked against the network on five images before it is kept. docs/export.md describes it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from numpy.typing import NDArray
from torch import Tensor, nn

from pffnet_d2.atomic_write import work_folder
from pffnet_d2.env import VERSION
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import BY_DEPTH, normalisation_of
from pffnet_d2.model_zoo.checkpoint import Checkpointer
from pffnet_d2.model_zoo.facts import CAPS, TABLE, ModelFacts
from pffnet_d2.model_zoo.find import ONNX, sha256
from pffnet_d2.modeling.build import build_network
from pffnet_d2.modeling.caps import scaled_caps
from pffnet_d2.modeling.graph import DetectionGraph, outputs_of
from pffnet_d2.modeling.meta_arch import PFFNet

TORCHSCRIPT = "model.ts"
# RoiAlign has half pixels from 16 on; of 18 on, the tracing exporter knows not every operation.
OPSET = 17
# Sides of the images of the check, and the number of discs in each.
EXAMPLES = (((96, 128), 0), ((64, 64), 1), ((101, 67), 3), ((203, 317), 12), ((256, 352), 60))
# The largest differences from the network: in pixels of boxes, and in scores and mask probabilities.
PIXELS, PROBABILITY = 1e-2, 1e-3

Outputs = Mapping[str, NDArray[Any]]
Run = Callable[[NDArray[np.float32]], Outputs]


@dataclass(frozen=True)
class Exported:
    """A file, and how it was checked."""

    path: Path
    objects: list[int]  # detections in each image of the check
    difference: float  # the largest in scores and mask probabilities

    def __str__(self) -> str:
        sizes = f"{'x'.join(map(str, EXAMPLES[1][0]))} to {'x'.join(map(str, EXAMPLES[-1][0]))} pixels"
        return (
            f"{self.path}: {self.path.stat().st_size / 1e6:.1f} MB; equals the model on {len(self.objects)} images of "
            f"{sizes} with {', '.join(map(str, self.objects))} detections, largest difference {self.difference:.1g}"
        )


def export_onnx(cfg: Any, out: Path, about: Mapping[str, Any] | None = None) -> Exported:
    """Write ``out`` / model.onnx, which ``pffnet predict --model`` takes.

    Weights that are exact in half precision, as those of packaged models are, are stored so. The network computes in
    float32 either way.

    Args:
        cfg: the config of the model, with MODEL.WEIGHTS.
        out: folder; a file of that name in it is replaced.
        about: what else the file should state: licence, title; plain values.

    Raises:
        InputError: the model cannot be exported or read; onnx or onnxruntime is not installed; the folder cannot be
            written; the file does not equal the model.
    """
    _library("onnx")

    def write(graph: DetectionGraph, path: Path, table: str) -> Run:
        return write_onnx(graph, outputs_of(graph.model), path, table)

    return export_with(cfg, out / ONNX, about, write)


def export_torchscript(cfg: Any, out: Path, about: Mapping[str, Any] | None = None) -> Exported:
    """Write ``out`` / model.ts, for ``torch.jit.load`` after ``import torchvision``. See :func:`export_onnx`."""

    def write(graph: DetectionGraph, path: Path, table: str) -> Run:
        traced = torch.jit.trace(graph, (example(),), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={TABLE: table})
        loaded = torch.jit.load(str(path))
        names = outputs_of(graph.model)
        return lambda image: _named(names, loaded(torch.from_numpy(image)))

    return export_with(cfg, out / TORCHSCRIPT, about, write)


def write_onnx(module: nn.Module, names: Sequence[str], path: Path, table: str) -> Run:
    """Write a function of one image, as :class:`DetectionGraph` is one, to an ONNX file.

    Args:
        module: the function.
        names: of its outputs. All but "capped" have a row per object.
        path: of the file.
        table: JSON, stored in its metadata.

    Returns:
        The function in the file.
    """
    onnx, runtime = (_library(name) for name in ("onnx", "onnxruntime"))
    axes = {"image": {1: "height", 2: "width"}} | {name: {0: "objects"} for name in names if name != "capped"}
    arguments: dict[str, Any] = {"input_names": ["image"], "output_names": list(names), "dynamic_axes": axes}
    torch.onnx.export(module, (example(),), str(path), dynamo=False, opset_version=OPSET, **arguments)
    written = onnx.load(str(path))
    _halve(onnx, written.graph)
    onnx.helper.set_model_props(written, {TABLE: table})
    onnx.checker.check_model(written)
    onnx.save(written, str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: dict(zip(names, session.run(None, {"image": image}), strict=True))


def export_with(
    cfg: Any, path: Path, about: Mapping[str, Any] | None, write: Callable[[DetectionGraph, Path, str], Run]
) -> Exported:
    """Build the network, write a file with ``write``, and keep it if it equals the network.

    Args:
        cfg, about: as for :func:`export_onnx`.
        path: of the file.
        write: writes the graph, and the table in JSON, to a path, and returns the function that it wrote.

    Raises:
        InputError: see :func:`export_onnx`.
    """
    _check_config(cfg)
    model = build_network(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    bgr = cfg.INPUT.FORMAT == "BGR"
    graph = DetectionGraph(model, bgr=bgr, caps_area=cfg.MODEL.PFFNET.CAPS_AREA)
    facts = ModelFacts.from_config(cfg, int(graph.model.backbone.size_divisibility or 1))
    images = _images(facts.diameter)
    with torch.no_grad():
        expected = list(map(_original(model, cfg, facts, bgr), images))
    unused = ["fusion_head"] if graph.semantic_power else ["fusion_head", "sem_seg_head"]
    for branch in unused:  # would be written to the file, but are not run
        if hasattr(model, branch):
            setattr(model, branch, None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({error.strerror}); choose another --out") from error
    table = {**(about or {}), **_described(facts), "weights": sha256(Path(cfg.MODEL.WEIGHTS))}
    with work_folder(path) as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters are deprecated; see docs/export.md
        file = folder / path.name
        run = write(graph, file, json.dumps(table))
        checked = [_compared(run(image), each, image) for image, each in zip(images, expected, strict=True)]
        os.replace(file, path)
    return Exported(path, [count for count, _ in checked], max(difference for _, difference in checked))


def _check_config(cfg: Any) -> None:
    """Check that a config asks for nothing but one run of the network on the image as it is. Raises InputError."""
    if list(cfg.MODEL.PFFNET.TTA):
        raise InputError("MODEL.PFFNET.TTA: a file contains one view of an image; set it to [] (--opts)")
    for key, side in {"MIN_SIZE_TEST": cfg.INPUT.MIN_SIZE_TEST, "SQUARE.TEST": cfg.INPUT.SQUARE.TEST}.items():
        if side:
            raise InputError(
                f"INPUT.{key} {side}: the model resizes every image, which a file does not; set it to 0 (--opts) if "
                "your images have the scale of training"
            )


def _described(facts: ModelFacts) -> dict[str, Any]:
    """What the network does not contain: the table of ``ModelFacts``, and the recipe of normalisation in full."""
    rule = BY_DEPTH[facts.normalisation]
    return {
        "release": VERSION,
        "input": "(3, height, width) float32 RGB, 0 to 255 after normalisation",
        "facts": facts.info(),
        "normalisation_of": {
            depth: normalisation_of(np.zeros(1, dtype), rule).info()
            for depth, dtype in (("8 bit", np.uint8), ("16 and 32 bit", np.uint16), ("floats", np.float32))
        },
    }


def _original(model: nn.Module, cfg: Any, facts: ModelFacts, bgr: bool) -> Run:
    """The network itself, as a function of an image as the file takes it."""
    # That of Detectron2's PanopticFPN always returns other maps as well.
    inference = model.inference if isinstance(model, PFFNet) else partial(GeneralizedRCNN.inference, model)

    def run(image: NDArray[np.float32]) -> Outputs:
        seen = torch.from_numpy(np.ascontiguousarray(image[::-1]) if bgr else image)
        with scaled_caps(model, cfg, facts.cap_factor(*image.shape[1:])) as reached:
            (found,) = inference([{"image": seen, "normalised": True}], do_postprocess=False)
        capped = {key.partition(" ")[0] for key in reached.of_image(0, 1, found)}
        fields = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "masks": found.pred_masks[:, 0]}
        fields["class_scores"] = found.class_scores if found.has("class_scores") else found.scores
        if found.has("mask_quality"):
            fields["mask_quality"] = found.mask_quality
        return {**_named(fields, fields.values()), "capped": np.array([key in capped for key in CAPS[:2]])}

    return run


def _compared(found: Outputs, expected: Outputs, image: NDArray[np.float32]) -> tuple[int, float]:
    """Compare what a file and the network find in an image.

    Returns:
        The number of detections, and the largest difference of scores and mask probabilities.

    Raises:
        InputError: they differ.
    """
    size = "x".join(map(str, image.shape[1:]))
    wrong = f"the exported file was not kept: on an image of {size} pixels it does not equal the model"
    if any(value.shape != expected[name].shape for name, value in found.items()):
        raise InputError(f"{wrong} ({len(found['boxes'])} detections instead of {len(expected['boxes'])})")
    count = len(expected["boxes"])
    if not count:
        return 0, 0.0
    # Detections whose scores are equal up to rounding may change places.
    apart = np.abs(expected["boxes"][:, None] - found["boxes"]).max(axis=2)
    place = apart.argmin(axis=1)
    differences = [
        np.abs(expected[name] - found[name][place]).max() for name in found if name not in ("boxes", "capped")
    ]
    if len(set(place.tolist())) < count or apart.min(axis=1).max() > PIXELS or max(differences) > PROBABILITY:
        raise InputError(
            f"{wrong} (boxes differ by {apart.min(axis=1).max():.2g} pixels, scores or masks by {max(differences):.2g})"
        )
    if "capped" in found and (found["capped"] != expected["capped"]).any():
        raise InputError(f"{wrong} (it reports other caps)")
    return count, float(max(differences))


def _images(diameter: float) -> list[NDArray[np.float32]]:
    """The images of the check, (3, H, W) from 0 to 255: bright discs of the diameter of training on a dark ground.

    The ground is a little noisy. On an even one many scores would be equal, and rounding would decide between them.
    """
    radius = (diameter or 24.0) / 2
    random = np.random.default_rng(0)
    images = []
    for (height, width), discs in EXAMPLES:
        image = np.rint(random.uniform(4, 12, (height, width))).astype(np.float32)
        rows, columns = np.mgrid[:height, :width]
        for y, x, bright in random.uniform((0, 0, 60), (height, width, 250), (discs, 3)):
            image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = np.rint(bright)
        images.append(np.ascontiguousarray(np.broadcast_to(image, (3, height, width))))
    return images


def example() -> Tensor:
    """The image whose operations are recorded."""
    return torch.from_numpy(_images(0)[3])


def _named(names: Any, tensors: Any) -> dict[str, NDArray[Any]]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _halve(onnx: Any, graph: Any) -> None:
    """Store large tables of float32 that half precision represents exactly so, each with a cast to float32 before use.

    Runtimes apply the cast once, when they load the file.
    """
    casts = []
    for table in graph.initializer:
        if table.data_type != onnx.TensorProto.FLOAT or np.prod(table.dims) < 1024:
            continue
        values = onnx.numpy_helper.to_array(table)
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = table.name
        table.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"format onnx: {name} is not installed; type: pip install 'pffnet_d2[onnx-export]'") from error
