"""The pages are correct: commands parse, configs and keys exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from pffnet_d2.cli import main as cli
from pffnet_d2.config import config_path, read_config
from pffnet_d2.data import readers
from pffnet_d2.data.prepare import known_splits
from pffnet_d2.data.readers import READERS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")),
    ROOT / "datasets/README.md",
    ROOT / "third_party/detectron2/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks that call this package, with continued lines joined and comments removed."""
    found, fenced = [], False
    for line in re.sub(r" *\\\n\s*", " ", page.read_text(encoding="utf-8")).splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            text = re.sub(r"\s#.*", "", line).strip().replace(".venv/bin/", "")
            text = re.sub(r"^([A-Z]\w*=\S+ )+", "", text)
            if re.match(r"(pffnet|make)( |$)|python (train_net\.py|benchmarks/|-m pffnet_d2)", text):
                found.append(text)
    return found


COMMANDS = [(page.relative_to(ROOT), command) for page in PAGES for command in commands(page)]


def test_commands_were_found() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_the_command_parses(page: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    # [flags] and ... stand for the reader's choice
    words = [w for w in shlex.split(re.sub(r"\[[^]']*\](?![^ ]*')", "", command)) if w != "..."]
    program, arguments = words[0], words[1:]
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        variables = re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for word in arguments:
            assert word in targets or word.partition("=")[0] in variables
        return
    if program == "python" and arguments[0].startswith("benchmarks/"):
        text = (ROOT / arguments[0]).read_text()
        assert all(f'"{word}"' in text for word in arguments[1:] if word.startswith("--"))
        return
    kind = "train" if arguments[0] == "train_net.py" else arguments[0]
    rest = arguments[1:]
    try:
        args = cli.parse([kind, *rest])
        if (getattr(args, "config_file", None) or "").startswith("configs/"):
            config, *parts = (str(ROOT / file) for file in (args.config_file, *getattr(args, "method", ())))
            read_config(config, args.opts, parts)
        config = getattr(args, "config", None) or ""
        assert not config.startswith("configs/") or config_path(config.removeprefix("configs/"))
    except SystemExit:
        pytest.fail(f"{page}: {command}\n{capsys.readouterr().err}")


def anchors(page: Path) -> set[str]:
    """The names that a link may have after #: the headings of a page as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        file = page.parent / target if target else page
        assert target.startswith("http") or file.exists(), target
        assert target.startswith("http") or not anchor or anchor in anchors(file), f"{target}#{anchor}"
    for name in re.findall(r"`(configs/[\w/]+\.yaml|docs/[\w/-]+\.md|benchmarks/\w+\.py)`", text):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_comments_name_pages_that_exist() -> None:
    files = [path for folder in ("pffnet_d2", "configs", "benchmarks") for path in (ROOT / folder).rglob("*.*")]
    for path in files:
        if path.suffix in (".py", ".yaml"):
            for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{path}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_lines_are_at_most_100_characters(page: Path) -> None:
    """Except in tables and code blocks, where a line cannot be broken."""
    long, fenced = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif len(line) > 100 and not fenced and not line.startswith(("|", "    ")):
            long.append(number)
    assert not long, f"{page.relative_to(ROOT)}: lines {long}"


# Texts, and what must follow them directly: equation numbers of [P], and the journal of ObjectGuided.
CITATIONS = [
    (r"Yi et al\.", r"IEEE TMI 40"),
    (r"alpha_[12] of", r"\[P\] Eq\. 5"),
    (r"semantic\s+consistency loss \(", r"Eq\. 4"),
    (r"s_conf = s_cls \* s_qua", r"\[P\] Eq\. 6"),
]


@pytest.mark.parametrize(("said", "cited"), CITATIONS)
def test_citations_are_consistent(said: str, cited: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in [*PAGES, *sorted((ROOT / "pffnet_d2").rglob("*.py"))]]
    found = [text[match.end() : match.end() + 180] for text in texts for match in re.finditer(said, text)]
    assert found
    assert [after for after in found if not re.search(cited, after)] == []


def named_data_sets(text: str) -> set[str]:
    """The names, as in the catalogs, of the data sets that a page uses for evaluation, training or reports."""
    folders = re.findall(r"\bdatasets/([a-z]\w*)/([a-z]\w*)(?![\w.])", text)
    found = re.findall(r"\binference/([a-z]\w*_\w+)(?![\w.])", text) + ["_".join(parts) for parts in folders]
    for value in re.findall(r"DATASETS\.\w+ \"\(([^)]*)\)", text):
        found += re.findall(r"'(\w+)'", value)
    found += re.findall(r"--(?:train|val) (\w+_\w+)", text)
    return {name for name in found if name != "third_party"}


def test_data_sets_exist() -> None:
    """``pffnet prepare`` makes each of them: a published one, a fold of one, or one that a page calls custom."""
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    splits = {name: set(folders) for name, folders in known_splits().items()}
    custom = {"own", *(name for text in texts.values() for name in re.findall(r"--name (\w+)", text))} - set(splits)
    named = {name: page for page, text in texts.items() for name in named_data_sets(text)}
    assert len(named) > 10
    for name, page in named.items():
        own = any(name.startswith(f"{each}_") for each in custom)
        published = any(f"{data_set}_{split}" == name for data_set, folders in splits.items() for split in folders)
        fold = re.fullmatch(r"([a-z0-9]+)_(?:\w+_)?fold\d+of\d+_(train|val)", name)
        assert own or published or (fold and fold[1] in splits), f"{page}: {name}"


def test_files_of_groups_exist() -> None:
    for page, command in COMMANDS:
        for name in re.findall(r"--groups (\S+)", command):
            assert (ROOT / name).exists(), f"{page}: {command}"


def rows_of(table: str) -> dict[str, list[tuple[str, str]]]:
    """Option and default by reader, from the table of datasets/README.md. A row without reader belongs to the last."""
    found: dict[str, list[tuple[str, str]]] = {}
    reader = ""
    for line in table.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("| ").split("|")] if line.startswith("|") else []
        if line.startswith("| |"):
            cells = ["", *cells]
        if len(cells) >= 4 and cells[1] not in ("option", "---"):
            reader = cells[0] or reader
            found.setdefault(reader, []).append((cells[1], cells[2]))
    return found


def test_every_option_of_a_reader_is_in_the_tables() -> None:
    text = (ROOT / "datasets/README.md").read_text(encoding="utf-8")
    table = rows_of(text[text.index("| reader | option |") :].split("\n\n")[0])
    for name in READERS:
        if name == "own":
            continue
        expected = [
            (option, str(default).lower() if isinstance(default, bool) else str(default))
            for option, (default, _) in readers.options(name).items()
        ]
        assert sorted(table.pop(name, [])) == sorted(expected), name
    assert not table
    own = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    own = own[own.index("## Splits") : own.index("## Checking")]
    for option in readers.options("own"):
        assert re.search(rf"`{option}`|--option \"?{option}=|--{option}\b", own), option
