"""Runs the tutorials of this folder as a reader would, and makes their pictures.

    python docs/tutorials/run.py --out output/tutorials              # all of them
    python docs/tutorials/run.py --out output/tutorials slides       # slides.md
    python docs/tutorials/run.py --out output/tutorials --update     # and replaces the pictures of the pages

A page is its own script. Its fenced blocks run from top to bottom in a new folder, OUT/NAME: those of bash by bash,
those of python in one namespace. A block of text shows lines of the output of the block before it; they are compared
without their numbers, and "..." stands for any lines. A comment ``<!-- made of FILE -->`` in front of a picture names
the file in that folder that the picture shows. Indented blocks are only shown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from PIL import Image

HERE = Path(__file__).parent
WIDTHS = (1600, 1200, 1000, 800, 600, 480)  # pixels of a picture
COLOURS = 256
MAX_BYTES = 150_000  # of a picture

_BLOCK = re.compile(r"^```(bash|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"<!-- made of (\S+) -->\s*!\[[^]]*\]\(([^)]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, its text and the number of its first line in the page."""

    language: str
    text: str
    line: int


class TutorialError(Exception):
    """A block failed, shows what it does not print, or made no picture. The message names the page and the line."""


def blocks(page: str) -> list[Block]:
    return [Block(match[1], match[2], page.count("\n", 0, match.start(2)) + 1) for match in _BLOCK.finditer(page)]


def pictures(page: str) -> dict[str, str]:
    """The pictures of a page, and the files that they are made of."""
    return {picture: file for file, picture in _PICTURE.findall(page)}


def run(page: Path, folder: Path) -> None:
    """Run the blocks of a page in a folder, which is emptied first.

    Raises:
        TutorialError: see there.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    with contextlib.chdir(folder):
        for block in blocks(page.read_text(encoding="utf-8")):
            place = f"{page}:{block.line}"
            if block.language == "text":
                if missing := [line for line in _shown(block.text) if not _occurs(line, printed)]:
                    raise TutorialError(f"{place}: the block before it does not print {missing[0]!r}, but:\n{printed}")
            elif block.language == "bash":
                printed = _bash(block.text, place)
            else:
                printed = _python(block.text, namespace, place)


def _bash(commands: str, place: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise TutorialError(f"{place}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def _python(code: str, namespace: dict[str, Any], place: str) -> str:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(code, place, "exec"), namespace)
    except Exception as error:
        raise TutorialError(f"{place}: {type(error).__name__}: {error}") from error
    return out.getvalue()


def _shown(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.strip() not in ("", "..."))


def _occurs(line: str, printed: str) -> bool:
    return _without_numbers(line) in map(_without_numbers, printed.splitlines())


def _without_numbers(line: str) -> str:
    return " ".join(re.sub(r"[\d.,]*\d", "#", line).split())


def make_picture(source: Path, picture: Path) -> None:
    """Write a picture as a PNG of few colours, reduced until it has at most MAX_BYTES. A small one is doubled.

    Raises:
        TutorialError: there is no such source, or the picture is too large even at the least width.
    """
    if not source.is_file():
        raise TutorialError(f"{picture}: the tutorial makes no {source.name}")
    original = Image.open(source).convert("RGB")
    if original.width < WIDTHS[-1]:
        original = original.resize((2 * original.width, 2 * original.height), Image.Resampling.NEAREST)
    for width in WIDTHS:
        image = original.copy()
        image.thumbnail((width, width * 4))
        encoded = io.BytesIO()
        image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(encoded, "PNG", optimize=True)
        if encoded.tell() <= MAX_BYTES:
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(encoded.getvalue())
            return
    raise TutorialError(f"{picture}: {encoded.tell()} bytes are more than {MAX_BYTES}; show a part of {source.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tutorials", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what the tutorials write")
    parser.add_argument("--update", action="store_true", help="replace the pictures of the pages")
    args = parser.parse_args()
    known = [page for page in sorted(HERE.glob("*.md")) if blocks(page.read_text(encoding="utf-8"))]
    if unknown := set(args.tutorials) - {page.stem for page in known}:
        parser.error(f"{min(unknown)}: no such tutorial; choose from {', '.join(page.stem for page in known)}")
    matplotlib.use("Agg")
    out, failed = args.out.absolute(), 0
    for page in known:
        if args.tutorials and page.stem not in args.tutorials:
            continue
        start, used = time.perf_counter(), _processor_time()
        try:
            run(page, out / page.stem)
            for picture, file in pictures(page.read_text(encoding="utf-8")).items():
                make_picture(out / page.stem / file, (HERE if args.update else out) / picture)
        except TutorialError as error:
            failed += 1
            print(error, file=sys.stderr)
        wall = time.perf_counter() - start
        print(f"{page.stem}: {wall:.0f} s, {_processor_time() - used:.0f} s of processor time", flush=True)
    return min(failed, 1)


def _processor_time() -> float:
    """Seconds of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
