"""benchmarks/gpu.py and gpu.sh, small and on the CPU; a CUDA machine runs them by `make gpu`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("tests", "speed", "nuclei", "r50")


def test_the_shell_script_says_how_it_is_called() -> None:
    result = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "gpu.sh collect FOLDER" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_everything_small_on_the_cpu(tmp_path: Path) -> None:
    """It stops in time, goes on, and does nothing twice."""
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--cpu", "--out", tmp_path / "gpu"]
    environment = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
    environment["PYTHONPATH"] = str(ROOT)

    def run(*more: str) -> str:
        result = subprocess.run(
            [*command, *more], capture_output=True, text=True, timeout=3000, env=environment, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "stopped after 0.1 minutes" in run("--stop-after", "0.1")
    run()
    assert all(json.loads((tmp_path / "gpu" / f"{part}.json").read_text()) for part in PARTS)
    report = (tmp_path / "gpu" / "report.md").read_text()
    assert "not run" not in report
    assert " failed" not in report
    assert "label_map/AJI" in report
    assert (tmp_path / "gpu" / "nuclei" / "card.json").is_file()
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "gpu").rglob("*.json")}
    run()
    assert written == {file: file.stat().st_mtime_ns for file in written}
