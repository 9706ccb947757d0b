"""Files are written whole or not at all, by one process at a time, and killed processes leave nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pffnet_d2.atomic_write import locked, touched, whole_file, work_folder, write_text
from pffnet_d2.errors import InputError


@contextmanager
def another(what: Callable[[Path], AbstractContextManager[Any]], path: Path) -> Iterator[Callable[[], None]]:
    """A process that stays inside ``what(path)`` until it is killed; the block may kill it itself."""
    told, tells = os.pipe()
    process = os.fork()
    if not process:
        with what(path):
            os.write(tells, b".")
            time.sleep(60)
        os._exit(0)

    def kill() -> None:
        nonlocal process
        if process:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            process = 0

    kill.process = process  # type: ignore[attr-defined]
    try:
        assert os.read(told, 1) == b"."
        yield kill
    finally:
        kill()
        os.close(told)
        os.close(tells)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def fail_halfway() -> None:
        with whole_file(path) as file:
            file.write("half")
            file.flush()
            assert path.read_text() == "before"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert names(tmp_path) == ["a.txt"]
    write_text(path, "after")
    assert path.read_text() == "after"
    assert names(tmp_path) == ["a.txt"]
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "none" / "a.txt", path / "a.txt"):
        with pytest.raises(InputError, match=r"cannot be written \([A-Z].*\); choose another folder"):
            write_text(place, "")
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("folder", "a folder"), ("pipe", "a device or a pipe")):
        with pytest.raises(InputError, match=rf"{name}: cannot be written \(it is {what}\); name a file"):
            write_text(tmp_path / name, "")
    assert names(tmp_path) == ["a.txt", "folder", "pipe"]


def test_files_left_by_a_killed_process_are_removed(tmp_path: Path) -> None:
    for what, path in ((whole_file, tmp_path / "a.txt"), (work_folder, tmp_path / "b")):
        with another(what, path) as kill:
            kill()
            assert names(tmp_path) == [f".{path.name}.lock", f".{path.name}.partial"]
            assert touched(path)
        if what is whole_file:
            write_text(path, "whole")
        else:
            (tmp_path / ".b.partial" / "left").touch()
            with work_folder(path) as folder:
                assert names(folder) == []
        assert not touched(path)
        path.unlink(missing_ok=True)
        assert names(tmp_path) == []


def test_the_message_names_the_holder_of_the_lock(tmp_path: Path) -> None:
    """Other outputs in the same folder are not locked, and a lock ends with its process."""
    path = tmp_path / "a"
    with another(work_folder, path) as kill:
        with pytest.raises(InputError) as error, locked(path):
            pass
        says = rf"{path}: process {kill.process} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d, is writing it; wait "
        assert error.match(says)
        with locked(tmp_path / "b"):
            pass
        assert names(tmp_path) == [".a.lock", ".a.partial"]
        kill()
        with locked(path):
            assert f"process {os.getpid()} on " in (tmp_path / ".a.lock").read_text()


def test_writers_of_one_file_wait_for_each_other(tmp_path: Path) -> None:
    """Threads wait too. Removing the lock file leaves no lock file that locks nothing."""
    inside, most = 0, 0

    def write(number: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            with whole_file(tmp_path / "a") as file:
                inside += 1
                most = max(most, inside)
                file.write(str(number) * 10)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(set((tmp_path / "a").read_text())) == 1
    assert names(tmp_path) == ["a"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import portalocker

    def none(*_: object) -> None:
        raise portalocker.LockException(OSError(95, "Operation not supported"))

    monkeypatch.setattr(portalocker, "lock", none)
    write_text(tmp_path / "a", "whole")
    assert names(tmp_path) == ["a"]
