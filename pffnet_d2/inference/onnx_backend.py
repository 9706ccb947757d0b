"""Predicts with a network that `pffnet export` wrote to ONNX. Needs onnxruntime, and neither torch nor Detectron2.

The file takes a normalised image and gives boxes, scores and ROI masks (docs/export.md). The table in its metadata says
how to normalise, and by which rule the detections become a label map.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.errors import InputError
from pffnet_d2.inference.backend import Backend, Detected
from pffnet_d2.inference.options import ModelOptions
from pffnet_d2.inference.thresholds import override_thresholds
from pffnet_d2.masks.compose import LabelMapRule
from pffnet_d2.model_zoo.facts import CAPS, TABLE, ModelFacts
from pffnet_d2.model_zoo.find import check_made_of, check_onnx, sha256

# The messages of onnxruntime where memory could not be allocated.
_NO_MEMORY = re.compile(r"bad_alloc|allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class Detections:
    """The objects of one image, under the names of Detectron2's ``Instances``, in numpy."""

    image_size: tuple[int, int]
    pred_boxes: NDArray[np.float32]  # (n, 4) XYXY in pixels
    pred_masks: NDArray[np.float32]  # (n, m, m), probabilities in the frames of the boxes
    scores: NDArray[np.float32]  # (n,)
    class_scores: NDArray[np.float32] | None = None  # (n,)
    mask_quality: NDArray[np.float32] | None = None  # (n,)

    def __len__(self) -> int:
        return len(self.scores)

    def has(self, name: str) -> bool:
        """Whether the model gives a field."""
        return getattr(self, name, None) is not None

    def get(self, name: str) -> Any:
        return getattr(self, name)

    def __getitem__(self, chosen: Any) -> Detections:
        """Some of the objects, chosen by (n,) bools or indices."""
        names = [name for name in self.__dataclass_fields__ if name != "image_size" and self.has(name)]
        return replace(self, **{name: self.get(name)[chosen] for name in names})


class OnnxBackend(Backend):
    """A network in an ONNX file, which holds its weights."""

    device = "cpu"
    precision = "float32"

    def __init__(self, path: Path, options: ModelOptions) -> None:
        """
        Args:
            path: of the file.
            options: its ``device``, ``thresholds`` and ``opts``.

        Raises:
            InputError: the file cannot be read or is not one of `pffnet export`; onnxruntime is not installed; an
                option does not apply to such a file.
        """
        if options.device not in (None, "cpu"):
            raise InputError(f"device {options.device}: a model in ONNX is predicted on the CPU; leave it out")
        if options.precision == "bfloat16":
            raise InputError("precision bfloat16: a model in ONNX computes in float32; leave it out")
        if options.opts:
            raise InputError(
                f"opts {' '.join(map(str, options.opts))}: the keys of an exported model are fixed; export it again "
                "with --opts, or change thresholds with --thresholds"
            )
        check_onnx(path)
        self.path = path
        self.session = _session(path)
        table = _table(path, self.session)
        check_made_of(path, table.get("weights", ""))
        try:
            self.facts = ModelFacts.from_info(table["facts"])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if options.thresholds is not None:
            keys = self.facts.rule.keys()
            override_thresholds(keys, options.thresholds)
            self.facts = replace(self.facts, rule=LabelMapRule.from_keys(keys))
        self._outputs = [output.name for output in self.session.get_outputs()]

    def detect(self, images: Sequence[NDArray[np.uint8]], size: tuple[int, int] | None, above: float) -> list[Detected]:
        return [self._detect(image, size or image.shape[:2]) for image in images]

    def _detect(self, rgb: NDArray[np.uint8], size: tuple[int, int]) -> Detected:
        height, width = rgb.shape[:2]
        seen = rgb
        if size != (height, width):  # as torch's form, which uses Pillow for 8-bit images too
            seen = np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.BILINEAR))
        image = np.ascontiguousarray(seen.transpose(2, 0, 1), np.float32)
        found = dict(zip(self._outputs, self._run(image), strict=True))
        scale = np.array([width / size[1], height / size[0]] * 2, np.float32)
        boxes = np.clip(found["boxes"] * scale, 0, np.array([width, height] * 2, np.float32))
        parts = found["masks"], found["scores"], found.get("class_scores"), found.get("mask_quality")
        instances = Detections((height, width), boxes, *parts)
        instances = instances[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        return Detected(instances, self._capped(found["capped"], size, instances))

    def _run(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        try:
            return list(self.session.run(None, {"image": image}))
        except Exception as error:  # onnxruntime's own classes
            if _NO_MEMORY.search(str(error)):
                raise MemoryError("onnxruntime could not allocate it") from error
            raise

    def _capped(self, proposals: NDArray[np.bool_], size: tuple[int, int], found: Detections) -> tuple[str, ...]:
        """The caps that were reached; see ``modeling.caps.CapsReached``."""
        cap = self.facts.caps[CAPS[2]]
        full = 0 < math.ceil(cap * self.facts.cap_factor(*size)) <= len(found)
        scores = found.scores if found.class_scores is None else found.class_scores
        reached = (*proposals.tolist(), full and bool((scores > self.facts.rule.score_threshold).all()))
        return tuple(sorted(f"{key} {self.facts.caps[key]}" for key, hit in zip(CAPS, reached, strict=True) if hit))

    def chosen(self, instances: Detections, indices: Sequence[int]) -> Detections:
        return instances[np.asarray(indices, np.int64)]

    def identity(self, scale: float) -> str:
        facts = json.dumps(self.facts.info(), sort_keys=True)
        return hashlib.sha256(f"{sha256(self.path)} {facts} scale {scale}".encode()).hexdigest()


def _session(path: Path) -> Any:
    """The file, loaded. Raises InputError."""
    try:
        import onnxruntime as runtime
    except ImportError as error:
        raise InputError("a model in ONNX needs onnxruntime; type: pip install 'pffnet_d2[onnx]'") from error
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # an error is raised as well
    # The variable that limits torch, and waiting without spinning (docs/performance.md says what that costs).
    threads = re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", ""))  # it may be a list; the first is the outermost
    options.intra_op_num_threads = int(threads[0]) if threads else 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for each way in which a file can be damaged
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{path}: not read by onnxruntime ({reason}); export the model again") from error


def _table(path: Path, session: Any) -> dict[str, Any]:
    """What `pffnet export` wrote about the model. Raises InputError if it did not write this file."""
    stored = session.get_modelmeta().custom_metadata_map.get(TABLE)
    try:
        table = json.loads(stored or "null")
        _ = table["facts"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a file of `pffnet export`; export the model with it") from error
    return dict(table)
