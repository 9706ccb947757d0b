"""From the wheel to a label map in a new environment, with the time of each step: ``make wheel``.

    python tests/walk_wheel.py [PYTHON ...]

Run by a Python that has this checkout's requirements. It builds the source archive and, from that, the wheel, into
dist/. Each PYTHON (default: this one) then makes an environment in a temporary folder, installs the wheel and
Detectron2 there, and segments an image. The label map must be that of this checkout: at most one pixel in a thousand
may differ, because another release of torch rounds differently. The exit code is 1 where one of them fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[1]
SIDE, SPACING = 256, 50  # of the image and of its nuclei, in pixels
MOST_DIFFERENT = 0.001
Result = TypeVar("Result")
BIN = "Scripts" if os.name == "nt" else "bin"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", default=[sys.executable])
    args = parser.parse_args()
    with TemporaryDirectory(prefix="pffnet-walk-") as folder:
        work = Path(folder)
        wheel = timed("build the source archive and the wheel", build)
        write_image(work / "image.tif")
        expected = timed("predict in the checkout", lambda: predict(Path(sys.executable), work, "checkout"))
        print(f"{expected.max()} objects")
        if not expected.any():
            print("the image has no objects to compare")
            return 1
        passed = [walk(python, wheel, work, expected) for python in args.pythons]
    return 0 if all(passed) else 1


def build() -> Path:
    """The wheel, built from the source archive, in dist/."""
    run(sys.executable, "-m", "build", "--outdir", str(ROOT / "dist"), str(ROOT))
    return max((ROOT / "dist").glob("pffnet_d2-*.whl"), key=lambda path: path.stat().st_mtime)


def write_image(path: Path) -> None:
    """Bright discs on a dark ground with noise, like nuclei in fluorescence: (256, 256) uint8."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image = np.zeros((SIDE, SIDE))
    for row in range(SPACING // 2, SIDE - SPACING // 2, SPACING):
        for column in range(SPACING // 2, SIDE - SPACING // 2, SPACING):
            disc = np.hypot(rows - row, columns - column) < random.uniform(9, 13)
            image[disc] = random.uniform(90, 180)
    image = gaussian_filter(image, 1.2) + random.normal(12, 3, image.shape)
    tifffile.imwrite(path, image.clip(0, 255).astype(np.uint8))


def predict(python: Path, work: Path, name: str) -> np.ndarray:
    """The label map of the image, by the package that ``python`` has: (256, 256) int32."""
    command = [
        "-m",
        "pffnet_d2.cli",
        "predict",
        "image.tif",
        "--out",
        name,
        "--format",
        "label-tiff",
        "--device",
        "cpu",
    ]
    run(python, *command, folder=work)
    return np.asarray(tifffile.imread(work / name / "image_labels.tif"))


def walk(python: str, wheel: Path, work: Path, expected: np.ndarray) -> bool:
    """Install and predict with another Python; whether the label map is the expected one."""
    environment = work / "environment"
    own = environment / BIN / "python"
    print(f"\n{python}")
    try:
        timed("make an environment", lambda: run(python, "-m", "venv", str(environment)))
        timed("pip install the wheel", lambda: run(own, "-m", "pip", "install", str(wheel)))
        pffnet = environment / BIN / "pffnet"
        timed("pffnet install-detectron2", lambda: run(pffnet, "install-detectron2", folder=work))
        timed("the same again", lambda: run(pffnet, "install-detectron2", folder=work))
        lines = run(pffnet, "env", folder=work).splitlines()
        print("\n".join(line for line in lines if re.match(r"python|  (torch|detectron2) ", line)))
        found = timed("pffnet predict", lambda: predict(own, work, "installed"))
        different = float(np.mean(found != expected))
        print(f"{found.max()} objects; {different:.2%} of the pixels differ from the checkout's")
        return different <= MOST_DIFFERENT
    except subprocess.CalledProcessError as error:
        print(f"failed: {error}")
        return False
    finally:
        shutil.rmtree(environment, ignore_errors=True)
        shutil.rmtree(work / "installed", ignore_errors=True)


def run(program: Path | str, *arguments: str, folder: Path | None = None) -> str:
    """Run a program with neither this checkout nor the caller's environment on its path; returns what it prints.

    The checkout's own Python finds its package where that is installed in editable form.
    """
    ours = str(program) == sys.executable
    settings = {
        key: value for key, value in os.environ.items() if ours or not key.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    command = [str(program), *arguments]
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout + done.stderr)
    done.check_returncode()
    return done.stdout


def timed(step: str, do: Callable[[], Result]) -> Result:
    start = time.perf_counter()
    result = do()
    print(f"{time.perf_counter() - start:7.1f} s  {step}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
