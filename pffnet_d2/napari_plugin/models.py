"""The models that the widget offers: those that come with the package, and those in a folder of the user's."""

from __future__ import annotations

import re
from pathlib import Path

from pffnet_d2.errors import InputError
from pffnet_d2.model_zoo.find import CONFIG, WEIGHTS, names

DEFAULT_FOLDER = "~/pffnet_models"  # where fine-tuned models go unless the user chooses another folder


def available(folder: Path) -> dict[str, str]:
    """What ``find_model`` takes, by the title of the model: the shipped models, then those directly in ``folder``, by
    name. A folder that does not exist or cannot be read has none."""
    found = {f"{name} (shipped)": name for name in names()}
    try:
        places = sorted(place for place in folder.iterdir() if is_model(place))
    except OSError:
        places = []
    return found | {place.name: str(place.absolute()) for place in places}


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model that was trained to the end."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def place_of_new(folder: Path, name: str) -> Path:
    """Where a new model called ``name`` goes.

    Raises:
        InputError: that is not the name of a folder, or it exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]*", name) or name.endswith((" ", ".")):
        raise InputError(
            f"name of the new model {name!r}: use letters, digits, _ and -, beginning with one of the first"
        )
    place = folder / name
    if place.exists():
        raise InputError(f"{place}: exists; choose another name for the new model, or remove the folder")
    return place
