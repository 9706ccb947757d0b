"""``pffnet install-detectron2``: torch and all else that training imports, then Detectron2, built on this machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING

from pffnet_d2.errors import InputError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

HELP = "install torch and Detectron2, which no package index has under its name"
DESCRIPTION = (
    "Installs into the environment of this Python what the extra [torch] of pffnet_d2 lists and is missing, and then "
    "Detectron2 0.6 for current torch, numpy and Pillow: pure Python, from its published source archive, whose "
    "checksum is verified. To choose a build of torch (for a GPU, or for the CPU alone), install that first. "
    "See docs/install.md."
)

# What upstream's build needs beside torch; without ninja, one file is compiled after the other.
BUILD_REQUIREMENTS = ("setuptools>=70.1", "wheel", "ninja")
# Files of upstream's source, with its C++ operators. A published archive of Detectron2 0.6 lacks the last.
SOURCE_FILES = ("setup.py", "detectron2/__init__.py", "detectron2/layers/csrc/vision.cpp")

REMEDY = "check the network, the disk and `pip config list`, then type the command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="compile upstream's source in this folder instead (a checkout of facebookresearch/detectron2): minutes, "
        "and a C++ compiler is needed",
    )
    parser.add_argument("--force", action="store_true", help="replace a Detectron2 that works")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: the folder is not upstream's source, pip, a compiler or the network is missing, the archive is not
            the expected one, or a Detectron2 that works would have to be replaced.
    """
    if args.source is not None:
        _check_source(args.source)
    if missing := _missing_requirements():
        _pip("install", *missing, remedy=REMEDY)
    fault, found = _detectron2()
    if not fault and not args.force:
        if args.source is not None:
            raise InputError(f"detectron2 {found} works and would be replaced; --force replaces it")
        print(f"detectron2 {found} works and is kept; --force replaces it")
        return 0
    with TemporaryDirectory() as folder:
        _install(_build(folder) if args.source is None else _compile(args.source, folder))
    fault, found = _detectron2()
    if fault:
        raise InputError(f"detectron2 was installed, but {fault}; type: pffnet env")
    print(f"detectron2 {found} is installed; next: pffnet predict IMAGE")
    return 0


def _missing_requirements() -> list[str]:
    """What [torch] lists and is not installed. An OpenCV of another package is kept: two would overwrite each other.

    Raises:
        InputError: this pffnet_d2 is a folder that was put on the path, or was installed without its requirements.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        raise InputError("packaging is not installed; type: pip install packaging, then try again") from None
    try:
        lines = importlib.metadata.requires("pffnet_d2") or []
    except importlib.metadata.PackageNotFoundError:
        folder = Path(__file__).resolve().parents[2]
        raise InputError(f"pffnet_d2 is not installed, only on the path; type: pip install -e {folder}") from None
    listed = [requirement for requirement in map(Requirement, lines) if _is_of_torch(requirement)]
    if importlib.util.find_spec("cv2") is not None:
        listed = [requirement for requirement in listed if not requirement.name.startswith("opencv")]
    return [f"{each.name}{each.specifier}" for each in listed if not _is_met(each)]


def _is_of_torch(requirement: Requirement) -> bool:
    """Whether an installation needs it with the extra [torch], and not without."""
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": "torch"}) and not marker.evaluate({"extra": ""})


def _is_met(requirement: Requirement) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)  # nightly builds of torch


def _detectron2() -> tuple[str, str]:
    """The problem with the installed Detectron2, or "", and its version and folder.

    Another process imports it, because this one cannot import it anew after it was replaced. The current folder is kept
    off its path (-P), because the source of Detectron2 may be there.
    """
    code = "from pffnet_d2 import env; d = env.detectron2(); print(d.problem); print(f'{d.version} ({d.note})')"
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    if said.returncode != 0:
        return said.stderr.strip().splitlines()[-1], ""
    problem, found = said.stdout.splitlines()[-2:]
    return problem, found


def _install(wheel: Path) -> None:
    """Install a wheel of Detectron2 and its requirements, in place of the Detectron2 that is installed."""
    _pip("install", str(wheel), remedy=REMEDY)
    # pip keeps an installed Detectron2 of equal version, even one that is broken or compiled in another way.
    _pip("install", "--force-reinstall", "--no-deps", str(wheel), remedy=REMEDY)


def _build(folder: str) -> Path:
    """The wheel that the builder in third_party/detectron2 writes into ``folder``.

    Raises:
        InputError: the archive cannot be had, or has another checksum.
    """
    print("building Detectron2 from its published archive", flush=True)
    try:
        return Path(folder, _builder().build_wheel(folder))
    except SystemExit as error:  # with the line that pip would show
        raise InputError(str(error.code)) from None


def _builder() -> ModuleType:
    """The module ``build_detectron2``, which a wheel of this package holds and a checkout has beside the package."""
    here = Path(__file__).resolve().parents[1]
    installed = here / "third_party"
    root = installed if installed.is_dir() else here.parent / "third_party"
    spec = importlib.util.spec_from_file_location("build_detectron2", root / "detectron2" / "build_detectron2.py")
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    return builder


def _check_source(source: Path) -> None:
    """Raises InputError unless ``source`` is upstream's source and there is a compiler for it."""
    for name in SOURCE_FILES:
        if not (source / name).is_file():
            raise InputError(
                f"{source}: is not a source tree of Detectron2 with its C++ operators ({name} is missing); give a "
                "checkout of https://github.com/facebookresearch/detectron2"
            )
    compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
    if os.name == "posix" and shutil.which(compiler) is None:
        raise InputError(
            f"--source needs a C++ compiler, and there is no {compiler}; install one, such as g++, or name yours in "
            "the environment variable CXX; without --source no compiler is needed"
        )


def _compile(source: Path, folder: str) -> Path:
    """A wheel of upstream's source, compiled in a copy, because its setup.py writes into its own folder.

    Raises:
        InputError: what the build needs cannot be had, or the compiler fails.
    """
    _pip("install", *BUILD_REQUIREMENTS, remedy=REMEDY)
    print(f"compiling Detectron2 from {source}: this takes minutes", flush=True)
    copy = Path(folder, "source")
    shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info"))
    # Not in isolation: the operators must fit the torch that is installed.
    build = ("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, str(copy))
    _pip(
        *build,
        remedy=f"the C++ compiler and torch must fit each other; pip wheel --no-build-isolation {source} says more",
    )
    (wheel,) = Path(folder).glob("detectron2-*.whl")
    return wheel


def _pip(*arguments: str, remedy: str) -> None:
    """Run pip. What it prints on stdout passes through.

    Raises:
        InputError: there is no pip, or it failed; one line with the first error that it named, and ``remedy``.
    """
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"{sys.executable} has no pip; type: {sys.executable} -m ensurepip, then try again")
    ran = subprocess.run([sys.executable, "-m", "pip", *arguments], stderr=subprocess.PIPE, text=True, errors="replace")
    if ran.returncode != 0:
        raise InputError(f"pip {arguments[0]} failed: {_first_error(ran.stderr)}; {remedy}")
    sys.stderr.write(ran.stderr)


def _first_error(said: str) -> str:
    """The first line that names an error, be it pip's or a compiler's, else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"\b(\w*Error|ERROR|error): (?!subprocess-exited-with-error)", line)]
    return (named or lines[-1:] or ["it did not say why"])[0].removeprefix("ERROR: ").rstrip(".")
