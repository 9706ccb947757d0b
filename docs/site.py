"""What mkdocs calls while it builds the site.

The site has the folders of the repository: README.md is its home page, docs/predict.md is docs/predict.html. A link
that leads from one page to another in the repository therefore leads there on the site, too. The site contains the
pages below docs/, and every file, of any folder, that one of its pages links to.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
STYLE = "docs/site.css"

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
_OTHER_HOST = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
_LOADED_LINKS = {"stylesheet", "preconnect", "preload", "prefetch", "dns-prefetch", "icon", "modulepreload", "manifest"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the theme, and those of :func:`site_files` under their paths in the repository."""
    from mkdocs.structure.files import File, Files

    found = [file for file in files if file.src_dir != config.docs_dir]
    pages = [File.generated(config, name, abs_src_path=str(ROOT / name)) for name in sorted(site_files(ROOT) | {STYLE})]
    return Files([*found, *pages])


def site_files(root: Path) -> set[str]:
    """README.md, CONTRIBUTING.md, the pages below docs/, and all files that these link to, as paths below ``root``."""
    found: set[str] = set()
    waiting = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    while waiting:
        path = waiting.pop().resolve()
        name = path.relative_to(root).as_posix()
        if name in found or not path.is_file():  # mkdocs reports a link that leads nowhere
            continue
        found.add(name)
        if path.suffix == ".md":
            targets = _LINK.findall(path.read_text(encoding="utf-8"))
            waiting += [path.parent / target for target in targets if ":" not in target]
    return found


def on_page_content(html: str, **_: object) -> str:
    """Docstrings name others as reStructuredText does, :class:`~a.b`, of which only the name is shown."""
    return re.sub(r":(?:class|func|meth|mod|data):(<code>)~?", r"\1", html)


def on_post_build(config: MkDocsConfig) -> None:
    """Raises PluginError if a page or a style sheet would load anything from another host when it is viewed."""
    from mkdocs.exceptions import PluginError

    problems = []
    for path in sorted(Path(config.site_dir).rglob("*.*")):
        if path.suffix == ".html":
            problems += [f"{path}: {url}" for url in loaded_from_others(path.read_text(encoding="utf-8"))]
        elif path.suffix == ".css":
            urls = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", path.read_text(encoding="utf-8"))
            problems += [f"{path}: {url}" for url in urls if _OTHER_HOST.match(url)]
    if problems:
        raise PluginError("the site would load files from other hosts:\n" + "\n".join(problems))


def loaded_from_others(page: str) -> list[str]:
    """The addresses of scripts, styles, fonts and pictures that a browser would fetch from another host for a page of
    HTML. ``mermaid`` stands for diagrams, whose script the theme would fetch."""
    parser = _Loaded()
    parser.feed(page)
    return parser.urls


class _Loaded(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        url = values.get("src", "")
        if tag == "link" and _LOADED_LINKS & set(values.get("rel", "").lower().split()):
            url = values.get("href", "")
        if _OTHER_HOST.match(url):
            self.urls.append(url)
        if "mermaid" in values.get("class", "").split():
            self.urls.append("mermaid")
