"""Runs every benchmark of this folder, one after the other, and writes docs/performance.md's table of ratios.

    python benchmarks/run.py [--all] [--only fusion network] [--device cuda]

Leave the machine alone meanwhile. Without --all each takes the quick cases. Times and bytes go to output/bench.jsonl;
the table holds ratios only, since seconds of a machine nobody else has mean little.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured: written by benchmarks/run.py -->", "<!-- end -->"
# Two of them train for hours, and robustness.py prints scores.
NOT_BENCHMARKS = (
    *("ablation.py", "fine_tuning.py", "robustness.py"),
    *("gpu.py", "inputs.py", "report.py", "run.py"),
)


def run(script: Path, options: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Its json lines; what it prints passes through. Raises SystemExit where it fails."""
    understood = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    given = [word for option, values in options.items() if option in understood for word in (option, *values)]
    found = []
    with subprocess.Popen([sys.executable, script, *given], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                found.append(json.loads(line))
            else:
                print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"{script.name} ended with exit code {process.returncode}")
    return found


def machine(device: str) -> str:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    what = torch.cuda.get_device_name(0) if device.startswith("cuda") else f"{cpu}, {os.cpu_count()} cores"
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "detectron2", "numpy")
    ]
    return f"{what}; Python {platform.python_version()}, {', '.join(versions)}"


def table(results: list[dict[str, Any]]) -> str:
    rows = ["| benchmark | case | ratios |", "|---|---|---|"]
    for result in results:
        ratios = "; ".join(f"{name} **{value:.3g}**" for name, value in result["ratios"].items())
        rows.append(f"| {result['benchmark']} | {result['case']} | {ratios} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every case: an hour")
    parser.add_argument("--only", nargs="+", help="names of benchmarks; the page is not written")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    scripts = [path for path in sorted(HERE.glob("*.py")) if path.name not in NOT_BENCHMARKS]
    if args.only:
        scripts = [path for path in scripts if path.stem in args.only]
    options = {"--device": [args.device]} | ({"--all": []} if args.all else {})
    results = []
    for script in scripts:
        print(f"== {script.name}", flush=True)
        results += run(script, options)
    log = HERE.parent / "output" / "bench.jsonl"
    log.parent.mkdir(exist_ok=True)
    log.write_text("".join(json.dumps(result) + "\n" for result in results))
    if args.only:
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    where = textwrap.fill(f"{machine(args.device)}.", 100)
    page = f"{before}{BEGIN}\n\n{where}\n\n{table(results)}\n\n{END}{rest.partition(END)[2]}"
    PAGE.write_text(page)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
