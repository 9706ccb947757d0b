"""``pffnet install-detectron2``: what it installs and keeps, and one line for whatever is in its way."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pffnet_d2.cli import install_detectron2
from pffnet_d2.cli.main import main

WORKS = ("", "0.6 (/somewhere; compiled operators: yes)")
MISSING = ("missing", " ()")
REQUIREMENTS = [
    "numpy>=1.24",
    'torch>=2.4; extra == "torch"',
    'opencv-python-headless>=4.6; extra == "torch"',
    'no-such-package<2,>=1; extra == "torch"',
    'onnxruntime>=1.19; extra == "onnx"',
]


class Installation:
    """Stands in for pip and for the Detectron2 that it installs: the answers to come, and the calls of pip."""

    def __init__(self) -> None:
        self.states = [MISSING, WORKS]
        self.versions = {"torch": "2.9.1+cpu"}
        self.pip: list[tuple[str, ...]] = []

    def version(self, name: str) -> str:
        if name not in self.versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.versions[name]


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Installation:
    """Has torch, but neither OpenCV nor Detectron2. The builder makes wheels without an archive."""
    here = Installation()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else find_spec(name))
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIREMENTS)
    monkeypatch.setattr(importlib.metadata, "version", here.version)
    monkeypatch.setattr(install_detectron2, "_detectron2", lambda: here.states.pop(0))
    monkeypatch.setattr(install_detectron2, "_pip", lambda *arguments, remedy: here.pip.append(arguments))
    monkeypatch.setattr(install_detectron2, "_build", lambda folder: Path(folder, "detectron2.whl"))
    return here


def names(call: tuple[str, ...]) -> tuple[str, ...]:
    """A call of pip without folders."""
    return tuple(Path(word).name for word in call)


INSTALLED = [("install", "detectron2.whl"), ("install", "--force-reinstall", "--no-deps", "detectron2.whl")]
WANTED = ("install", "opencv-python-headless>=4.6", "no-such-package<2,>=1")


def test_installs_what_is_missing(installation: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-detectron2"]) == 0
    assert [names(call) for call in installation.pip] == [WANTED, *INSTALLED]
    assert capsys.readouterr().out == f"detectron2 {WORKS[1]} is installed; next: pffnet predict IMAGE\n"


def test_asks_pip_for_nothing_that_is_there(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An OpenCV that another package brought is kept, and so are nightly builds and a Detectron2 that works."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    installation.versions = {"torch": "2.15.0.dev20260101+cu130", "no-such-package": "1.5"}
    installation.states = [WORKS]
    assert main(["install-detectron2"]) == 0
    assert installation.pip == []
    assert capsys.readouterr().out == f"detectron2 {WORKS[1]} works and is kept; --force replaces it\n"


def test_replaces_only_with_consent(installation: Installation) -> None:
    installation.versions |= {"opencv-python-headless": "4.6", "no-such-package": "1"}
    installation.states = [WORKS, WORKS]
    assert main(["install-detectron2", "--force"]) == 0
    assert [names(call) for call in installation.pip] == INSTALLED


def test_an_old_torch_is_replaced(installation: Installation) -> None:
    installation.versions = {"torch": "2.3.1", "opencv-python-headless": "4.6", "no-such-package": "1"}
    assert main(["install-detectron2"]) == 0
    assert installation.pip[0] == ("install", "torch>=2.4")


def test_says_what_keeps_the_new_one_from_working(
    installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    installation.states = [MISSING, ("does not import: yacs is missing", "")]
    assert main(["install-detectron2"]) == 2
    said = "detectron2 was installed, but does not import: yacs is missing; type: pffnet env"
    assert capsys.readouterr().err == f"pffnet: error: {said}\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """As upstream's source, but its one operator is a file that is not compiled."""
    folder = tmp_path / "upstream"
    for name in install_detectron2.SOURCE_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "setup.py").write_text(
        "from pathlib import Path\nfrom setuptools import setup\n"
        "Path('written').touch()\nsetup(name='detectron2', version='0.6', packages=['detectron2'])\n"
    )
    return folder


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in the place of a C++ compiler."""
    monkeypatch.setenv("CXX", f"{sys.executable} -wrapped")


def test_a_detectron2_that_works_is_not_replaced_by_upstreams(
    installation: Installation, source: Path, compiler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    installation.states = [WORKS]
    assert main(["install-detectron2", "--source", str(source)]) == 2
    assert len(installation.pip) == 1  # its requirements only
    assert capsys.readouterr().err == (
        f"pffnet: error: detectron2 {WORKS[1]} works and would be replaced; --force replaces it\n"
    )


@pytest.mark.parametrize("missing", ["", *install_detectron2.SOURCE_FILES])
def test_a_folder_that_is_not_upstreams_source(
    missing: str, installation: Installation, source: Path, compiler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The archive of 0.6 lacks the operators; "": no such folder."""
    folder = source if missing else source / "nowhere"
    if missing:
        (source / missing).unlink()
    assert main(["install-detectron2", "--source", str(folder)]) == 2
    assert installation.pip == []
    said = f"({missing or 'setup.py'} is missing); give a checkout of https://github.com/facebookresearch/detectron2\n"
    error = capsys.readouterr().err
    assert error.startswith(f"pffnet: error: {folder}: is not a source tree of Detectron2")
    assert error.endswith(said)


@pytest.mark.skipif(os.name != "posix", reason="setuptools finds the compiler of Windows")
def test_no_compiler(
    installation: Installation, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert main(["install-detectron2", "--source", str(source)]) == 2
    assert installation.pip == []
    assert "needs a C++ compiler, and there is no no-such-compiler; " in capsys.readouterr().err


def build_requirements_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no index is asked for them."""
    pytest.importorskip("setuptools", minversion="70.1")
    monkeypatch.setattr(install_detectron2, "BUILD_REQUIREMENTS", ("setuptools",))


def test_compiles_a_copy(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself, on a stand-in for upstream's source, which stays as it is."""
    build_requirements_are_there(monkeypatch)
    before = sorted(source.rglob("*"))
    folder = tmp_path / "out"
    folder.mkdir()
    wheel = install_detectron2._compile(source, str(folder))
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    assert wheel.is_file()
    assert sorted(source.rglob("*")) == before


def test_a_compiler_that_fails_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_requirements_are_there(monkeypatch)
    (source / "setup.py").write_text("raise RuntimeError('CUDA 13 is not that of torch')\n")
    with pytest.raises(install_detectron2.InputError) as raised:
        install_detectron2._compile(source, str(tmp_path))
    said = str(raised.value)
    assert said.startswith("pip wheel failed: RuntimeError: CUDA 13 is not that of torch; the C++ compiler and torch ")
    assert "\n" not in said


def test_pip_that_finds_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(install_detectron2.InputError) as raised:
        install_detectron2._pip("install", "--no-index", "no-such-package", remedy="check the network")
    said = str(raised.value)
    assert said.startswith(
        "pip install failed: Could not find a version that satisfies the requirement no-such-package"
    )
    assert said.endswith("; check the network")
    assert "\n" not in said


def test_an_environment_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(install_detectron2.InputError, match=r"has no pip; type: .* -m ensurepip"):
        install_detectron2._pip("install", "torch", remedy="")


def test_a_package_that_is_only_on_the_path(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert main(["install-detectron2"]) == 2
    root = Path(__file__).resolve().parents[2]
    assert capsys.readouterr().err == (
        f"pffnet: error: pffnet_d2 is not installed, only on the path; type: pip install -e {root}\n"
    )


@pytest.mark.parametrize("content", [b"another archive", None])
def test_the_archive_is_verified(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The builder's own line is the command's."""
    archive = tmp_path / "archive.tar.gz"
    if content is not None:
        archive.write_bytes(content)
    monkeypatch.setenv("PFFNET_DETECTRON2_SDIST", str(archive))
    with pytest.raises(install_detectron2.InputError) as raised:
        install_detectron2._build(str(tmp_path))
    fault = "is not the expected archive: its sha256 is " if content else "cannot be read: No such file"
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("*.whl"))


SAID = {
    "ERROR: Could not find torch.\nERROR: No matching": "Could not find torch",
    "WARNING: Retrying\nerror: externally-managed-environment\n\n× This": "error: externally-managed-environment",
    "  error: subprocess-exited-with-error\n  x.cpp:3:1: fatal error: Python.h: No such file\n": (
        "x.cpp:3:1: fatal error: Python.h: No such file"
    ),
    "g++ -Werror=format x.cpp\nerror: command 'g++' failed": "error: command 'g++' failed",
    "Killed\n\n": "Killed",
    "": "it did not say why",
}


@pytest.mark.parametrize(("said", "first"), SAID.items())
def test_the_first_error(said: str, first: str) -> None:
    assert install_detectron2._first_error(said) == first


def test_a_folder_named_detectron2_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command is typed beside a checkout of Detectron2, that is not what is looked at."""
    calls: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="a library's line\n\n0.6 (there)\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert install_detectron2._detectron2() == ("", "0.6 (there)")
    assert calls[0][:3] == [sys.executable, "-P", "-c"]
