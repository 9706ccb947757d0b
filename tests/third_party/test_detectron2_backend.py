"""The build of Detectron2, on a small imitation of its source archive: no network, no Detectron2."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BACKEND = Path(__file__).parents[2] / "third_party" / "detectron2" / "build_detectron2.py"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_detectron2", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    return backend


def imitation(backend: ModuleType) -> dict[str, str]:
    """Files in which everything that is to be replaced occurs as often as in the original."""
    files = {
        "LICENSE": "Apache License",
        "setup.py": "raise SystemExit",
        "tools/train_net.py": "",
        "detectron2/__init__.py": '__version__ = "0.6"\n',
        "detectron2/model_zoo/configs/Base.yaml": "MODEL: {}\n",
        "detectron2/model_zoo/configs/common/train.py": "",
        "projects/PointRend/point_rend/__init__.py": "point = 1\n",
        "projects/PointRend/train_net.py": "",
        "projects/DeepLab/deeplab/__init__.py": "",
        "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
    }
    for edit in backend.EDITS:
        files[edit.path] = files.get(edit.path, "# Copyright\n") + (edit.old + "\n") * edit.times
    for path, count in backend.NUMPY_ALIASES.items():
        files[path] = files.get(path, "# Copyright\n") + "x = np.zeros(3, dtype=np.bool), np.bool_, np.int32\n" * count
    return files


def pack(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return gzip.compress(buffer.getvalue(), mtime=0)


@pytest.fixture
def backend(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend, expecting the imitation, which lies in tmp_path/archive."""
    content = pack(imitation(module))
    archive = tmp_path / "archive" / module.ARCHIVE
    archive.parent.mkdir()
    archive.write_bytes(content)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv(module.ARCHIVE_VARIABLE, str(archive))
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return module


def built(backend: ModuleType, folder: Path) -> dict[str, str]:
    folder.mkdir()
    with zipfile.ZipFile(folder / backend.build_wheel(str(folder))) as wheel:
        return {name: wheel.read(name).decode() for name in wheel.namelist()}


def test_wheel_holds_the_package_its_configs_and_projects(backend: ModuleType, tmp_path: Path) -> None:
    files = built(backend, tmp_path / "out")
    packaged = {name for name in files if not name.startswith(backend.DIST_INFO)}
    assert packaged == {
        "detectron2/__init__.py",
        "detectron2/_C.py",
        "detectron2/model_zoo/configs/Base.yaml",
        "detectron2/model_zoo/configs/common/train.py",
        "detectron2/projects/point_rend/__init__.py",
        "detectron2/projects/deeplab/__init__.py",
        "detectron2/projects/panoptic_deeplab/__init__.py",
        *(edit.path for edit in backend.EDITS),
        *backend.NUMPY_ALIASES,
    }
    assert files["detectron2/projects/point_rend/__init__.py"] == "point = 1\n"
    assert files[f"{backend.DIST_INFO}/LICENSE"] == "Apache License"
    metadata = files[f"{backend.DIST_INFO}/METADATA"]
    assert "Name: detectron2\nVersion: 0.6+pffnet1\n" in metadata
    assert "Requires-Dist: fvcore>=0.1.5.post20221221,<0.1.6\n" in metadata
    assert "torch" not in metadata


def test_changed_files_are_changed_and_say_so(backend: ModuleType, tmp_path: Path) -> None:
    files = built(backend, tmp_path / "out")
    changed = {edit.path for edit in backend.EDITS} | set(backend.NUMPY_ALIASES)
    for path in changed:
        assert files[path].startswith(backend.NOTICE)
    for edit in backend.EDITS:
        assert edit.new in files[edit.path]
    masks = files["detectron2/structures/masks.py"]
    assert masks.count("x = np.zeros(3, dtype=bool), np.bool_, np.int32\n") == 3
    assert files["detectron2/__init__.py"] == '__version__ = "0.6"\n'


def test_record_matches_the_wheel(backend: ModuleType, tmp_path: Path) -> None:
    files = built(backend, tmp_path / "out")
    record = f"{backend.DIST_INFO}/RECORD"
    rows = {name: (digest, size) for name, digest, size in csv.reader(files[record].splitlines())}
    assert rows.keys() == files.keys()
    assert rows.pop(record) == ("", "")
    for name, (digest, size) in rows.items():
        content = files[name].encode()
        expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={expected}", len(content))


def test_same_bytes_every_time(backend: ModuleType, tmp_path: Path) -> None:
    wheels = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        built(backend, folder)
        (wheel,) = folder.iterdir()
        wheels.append((wheel.name, wheel.read_bytes()))
    assert wheels[0] == wheels[1]


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("detectron2/engine/hooks.py", "torch.optim.lr_scheduler._LRScheduler", "occurs 1 times, not 2"),
        ("detectron2/layers/mask_ops.py", "", "occurs 0 times, not 1"),
        ("detectron2/structures/masks.py", "np.bool", "occur 1 times, not 3"),
    ],
)
def test_a_change_that_does_not_apply_stops_the_build(module: ModuleType, path: str, text: str, fault: str) -> None:
    files = {name: content.encode() for name, content in imitation(module).items()}
    with pytest.raises(module.BuildError, match=f"{path}: .*{fault}"):
        module.apply_changes({**files, path: text.encode()})


def test_a_file_that_is_not_there_stops_the_build(module: ModuleType) -> None:
    files = {name: content.encode() for name, content in imitation(module).items()}
    del files["detectron2/data/common.py"]
    with pytest.raises(module.BuildError, match=r"detectron2/data/common\.py.*not in the archive"):
        module.apply_changes(files)


def failure(backend: ModuleType, folder: Path) -> str:
    """What the frontend shows: one line, no traceback, and no wheel."""
    with pytest.raises(SystemExit) as caught:
        backend.build_wheel(str(folder))
    message = str(caught.value.code)
    assert message.startswith("detectron2: ")
    assert "\n" not in message
    assert not list(folder.glob("*.whl*"))
    return message


def test_wrong_checksum_is_refused(backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.tar.gz"
    other.write_bytes(b"something else")
    monkeypatch.setenv(backend.ARCHIVE_VARIABLE, str(other))
    message = failure(backend, tmp_path)
    assert str(other) in message
    assert hashlib.sha256(b"something else").hexdigest() in message
    assert backend.SHA256 in message


def test_named_file_that_is_not_there(backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.ARCHIVE_VARIABLE, str(tmp_path / "nothing.tar.gz"))
    message = failure(backend, tmp_path)
    assert f"{backend.ARCHIVE_VARIABLE}={tmp_path / 'nothing.tar.gz'}" in message
    assert "No such file" in message


HREFS = [
    ("https://files.example/a/b/{0}#sha256=00", "https://files.example/a/b/{0}"),
    ("../../files/{0}", "https://index.example/files/{0}"),
    ("/x/{0}?y=1#z", "https://index.example/x/{0}?y=1"),
    ("pb1%2Ddetectron2-0.6.tar.gz", "https://index.example/simple/pb1-detectron2/pb1%2Ddetectron2-0.6.tar.gz"),
]


@pytest.mark.parametrize(("href", "expected"), HREFS)
def test_link_of_a_simple_page(module: ModuleType, href: str, expected: str) -> None:
    page = f"""<!DOCTYPE html><html><body>
        <a href="pb1-detectron2-0.5.tar.gz">pb1-detectron2-0.5.tar.gz</a><br>
        <A HREF='{href.format(module.ARCHIVE)}' data-requires-python="&gt;=3.6">any text</A></body></html>"""
    found = module.archive_link(page, "https://index.example/simple/pb1-detectron2/")
    assert found == expected.format(module.ARCHIVE)


def test_base_of_a_simple_page(module: ModuleType) -> None:
    page = f'<head><base href="https://mirror.example/packages/"></head><a href="{module.ARCHIVE}">x</a>'
    found = module.archive_link(page, "https://index.example/simple/pb1-detectron2/")
    assert found == f"https://mirror.example/packages/{module.ARCHIVE}"


def test_simple_page_without_the_archive(module: ModuleType) -> None:
    assert module.archive_link("<a>no link</a><a href='x-0.6.tar.gz'>x</a>", "https://index.example/") is None


def local_index(tmp_path: Path, backend: ModuleType) -> Path:
    page = tmp_path / "simple" / backend.PROJECT / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../archive/{backend.ARCHIVE}#sha256={backend.SHA256}">{backend.ARCHIVE}</a>')
    return tmp_path / "simple"


def test_taken_from_the_index_of_pip(backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.ARCHIVE_VARIABLE)
    monkeypatch.setenv("PIP_INDEX_URL", local_index(tmp_path, backend).as_uri())
    # As pip runs a backend: itself out of sight.
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "pip.py").write_text("raise ImportError('hidden')")
    assert "detectron2/_C.py" in built(backend, tmp_path / "out")


def test_taken_from_a_second_index_of_a_configuration_file(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "pip.conf"
    empty, index = (tmp_path / "empty").as_uri(), local_index(tmp_path, backend).as_uri()
    configuration.write_text(f"[global]\nindex-url = {empty}\nextra-index-url = {index}\n")
    monkeypatch.delenv(backend.ARCHIVE_VARIABLE)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    assert "detectron2/_C.py" in built(backend, tmp_path / "out")


def test_taken_from_a_folder_without_an_index(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(backend.ARCHIVE_VARIABLE)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "archive"))
    assert "detectron2/_C.py" in built(backend, tmp_path / "out")


def test_nowhere_to_be_had(backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.ARCHIVE_VARIABLE)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "empty").as_uri())
    message = failure(backend, tmp_path)
    assert f"{(tmp_path / 'empty').as_uri()}/pb1-detectron2/ does not list it" in message
    assert f"{backend.ARCHIVE_VARIABLE}=FILE" in message


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An index on this machine that wants user "me" with password "a/b"; its address without them."""
    wanted = "Basic " + base64.b64encode(b"me:a/b").decode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            if self.headers["Authorization"] == wanted:
                super().do_GET()
            else:
                self.send_error(401)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}/simple"
        running.shutdown()


def test_index_with_a_password(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    local_index(tmp_path, backend)
    monkeypatch.delenv(backend.ARCHIVE_VARIABLE)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:a%2Fb@{server}")
    assert "detectron2/_C.py" in built(backend, tmp_path / "out")
    # The wrong one is refused, and shown nowhere.
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:wrong@{server}")
    message = failure(backend, tmp_path)
    assert f"http://{server}/pb1-detectron2/" in message
    assert "wrong" not in message


def test_page_that_is_not_there(module: ModuleType, tmp_path: Path) -> None:
    assert module.find_archive((tmp_path / "nothing").as_uri(), ssl.create_default_context()) is None


def test_stand_in_for_the_compiled_operators(module: ModuleType) -> None:
    operators = ModuleType("detectron2._C")
    exec(module.STAND_IN, operators.__dict__)
    assert operators.get_compiler_version() == "none (pure-Python build)"
    assert operators.has_cuda() is False
    with pytest.raises(NotImplementedError, match=r"_C\.box_iou_rotated is a compiled operator"):
        operators.box_iou_rotated(1, 2)
    assert not hasattr(operators, "__path__")
