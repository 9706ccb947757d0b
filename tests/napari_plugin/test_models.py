"""Which models are offered, and where new ones go."""

from __future__ import annotations

from pathlib import Path

import pytest

from pffnet_d2.errors import InputError
from pffnet_d2.model_zoo import find
from pffnet_d2.napari_plugin.models import available, place_of_new


def test_shipped_models_and_those_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "ROOT", tmp_path / "shipped")
    card = tmp_path / "shipped" / "nuclei" / find.CARD
    card.parent.mkdir(parents=True)
    card.write_text("{}")
    mine = tmp_path / "mine"
    for name in ("b", "a", "unfinished"):
        (mine / name).mkdir(parents=True)
        (mine / name / find.CONFIG).touch()
    for name in ("b", "a"):
        (mine / name / find.WEIGHTS).touch()
    (mine / "file").touch()
    assert list(available(mine).items()) == [
        ("nuclei (shipped)", "nuclei"),
        ("a", str(mine / "a")),
        ("b", str(mine / "b")),
    ]
    for nothing in (tmp_path / "missing", mine / "file"):
        assert available(nothing) == {"nuclei (shipped)": "nuclei"}


def test_the_place_of_a_new_model(tmp_path: Path) -> None:
    assert place_of_new(tmp_path, "plate 3_v1.2") == tmp_path / "plate 3_v1.2"
    (tmp_path / "old").mkdir()
    with pytest.raises(InputError, match="old: exists; choose another name"):
        place_of_new(tmp_path, "old")


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "../a", "-a", ".a", "a ", "a.", "a\n", "ä", "a\\b", "a\0"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name of the new model"):
        place_of_new(tmp_path, name)
