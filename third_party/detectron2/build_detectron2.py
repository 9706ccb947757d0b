"""PEP 517 backend: turns the published source archive of Detectron2 0.6 into a wheel that works on the current stack.

Standard library only, no compiler, about a second. ``README.md`` beside this file lists every change and its reason.
The archive is the one published as ``pb1-detectron2 0.6``; its Python files are byte for byte those of Detectron2's
tag v0.6. It is taken from the file that ``PFFNET_DETECTRON2_SDIST`` names or else from where pip is configured to look
(find-links, index-url, extra-index-url), and must have exactly the checksum below.
"""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import os
import re
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PROJECT = "pb1-detectron2"
ARCHIVE = "pb1-detectron2-0.6.tar.gz"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
ARCHIVE_VARIABLE = "PFFNET_DETECTRON2_SDIST"

VERSION = "0.6+pffnet1"
DIST_INFO = f"detectron2-{VERSION}.dist-info"

# As upstream's setup.py, less what only caffe2 export and code formatting needed (future, pydot, black), with the
# bounds that hold today. Like upstream: torch, torchvision and OpenCV are the user's to choose.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5.post20221221,<0.1.6",  # lists of _BASE_
    "iopath>=0.1.7,<0.1.11",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "PyYAML",
)

# Folder of the archive -> folder of the wheel, as upstream's setup.py installs its small projects.
PROJECTS = {
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}

NOTICE = "# Changed for the current numpy, Pillow, setuptools and torch by pffnet_d2 (third_party/detectron2).\n"


class Edit(NamedTuple):
    """Replace ``old`` by ``new`` in ``path``; it must occur exactly ``times`` times."""

    path: str
    old: str
    new: str
    times: int = 1


EDITS = (
    Edit(
        "detectron2/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(list(self._fallback_candidates), k=1)",
    ),
    Edit("detectron2/data/transforms/transform.py", "interp=Image.LINEAR", "interp=Image.BILINEAR"),
    Edit(
        "detectron2/engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        2,
    ),
    Edit(
        "detectron2/evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "",
    ),
    Edit(
        "detectron2/evaluation/coco_evaluation.py",
        "from .evaluator import DatasetEvaluator\n",
        "from .evaluator import DatasetEvaluator\n\nCOCOeval_opt = COCOeval  # the compiled one is not built here\n",
    ),
    Edit(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # caffe2 is no longer part of torch\n    pass\n",
    ),
    Edit("detectron2/layers/mask_ops.py", "np.array(mask, copy=False)", "np.asarray(mask)"),
    Edit("detectron2/model_zoo/model_zoo.py", "import pkg_resources\n", ""),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        'pkg_resources.resource_filename(\n        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )',
        'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
    ),
    Edit("detectron2/modeling/meta_arch/retinanet.py", "get_norm(norm, 1)", "get_norm(norm, 32)"),
    Edit(
        "detectron2/utils/visualizer.py",
        "        return modified_color\n",
        "        return tuple(np.clip(modified_color, 0.0, 1.0))\n",
    ),
)

# numpy 1.24 took these aliases of the builtins away (numpy 2 gave one of them back with another meaning).
NUMPY_ALIAS = re.compile(r"\bnp\.(bool|int|float|str)\b")
NUMPY_ALIASES = {
    "detectron2/data/build.py": 2,
    "detectron2/data/datasets/pascal_voc.py": 1,
    "detectron2/evaluation/pascal_voc_evaluation.py": 2,
    "detectron2/evaluation/sem_seg_evaluation.py": 7,
    "detectron2/structures/masks.py": 3,
    "detectron2/utils/video_visualizer.py": 1,
    "detectron2/utils/visualizer.py": 3,
}

STAND_IN = '''"""Stands in for Detectron2's compiled operators, whose sources are not in the published archive.

Box NMS, ROIAlign and deformable convolution on the CPU come from torchvision and work. Missing are the operators for
rotated boxes, deformable convolution on CUDA and the compiled COCO evaluation (pycocotools' is used in its place).
"""


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "none (pure-Python build)"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f"detectron2._C.{name} is a compiled operator, and this Detectron2 is a pure-Python build; "
            "install upstream Detectron2 from source where it is needed"
        )

    return missing
'''


class BuildError(Exception):
    """What is wrong and what to do, in one line."""


# ---------------------------------------------------------------------------------------------- hooks of PEP 517


def get_requires_for_build_wheel(config_settings: dict[str, object] | None = None) -> list[str]:
    return []


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, object] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Writes the wheel into ``wheel_directory`` and returns its file name."""
    try:
        files = wheel_files(fetch_archive())
    except BuildError as error:
        # SystemExit instead of a traceback: the frontend then shows this one line.
        raise SystemExit(f"detectron2: {error}") from None
    name = f"detectron2-{VERSION}-py3-none-any.whl"
    write_wheel(Path(wheel_directory) / name, files)
    return name


# ------------------------------------------------------------------------------------------- getting the archive


def fetch_archive() -> bytes:
    """The verified source archive: from the named file, else from the first place of pip's that has it."""
    named = os.environ.get(ARCHIVE_VARIABLE)
    if named:
        try:
            content = Path(named).read_bytes()
        except OSError as error:
            raise BuildError(f"{ARCHIVE_VARIABLE}={named} cannot be read: {error.strerror}") from None
        return verified(content, named)

    remedy = f"download {ARCHIVE} and name it with {ARCHIVE_VARIABLE}=FILE"
    places = pip_places(remedy)
    faults: list[str] = []
    for place in places.pages():
        shown = without_credentials(place)
        try:
            link = find_archive(place, places.context)
            if link is not None:
                return verified(read_url(link, places.context)[0], without_credentials(link))
            faults.append(f"{shown} does not list it")
        except BuildError as error:
            faults.append(str(error))
        except (OSError, ValueError) as error:
            faults.append(f"{shown}: {getattr(error, 'reason', None) or error}")
    raise BuildError(f"{ARCHIVE} could not be had ({'; '.join(faults) or 'pip has no index'}); {remedy}")


def verified(content: bytes, source: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise BuildError(f"{source} is not the expected archive: its sha256 is {found}, not {SHA256}")
    return content


class Places(NamedTuple):
    """Where pip looks for packages, and the certificates with which it does."""

    indexes: list[str]
    find_links: list[str]
    context: ssl.SSLContext

    def pages(self) -> list[str]:
        projects = [f"{as_url(index).rstrip('/')}/{PROJECT}/" for index in self.indexes]
        return [as_url(place) for place in self.find_links] + projects


def pip_places(remedy: str) -> Places:
    """What ``pip install`` is configured with: environment, configuration files, else pip's own default index.

    pip hides itself from a build in isolation (PYTHONPATH, PYTHONNOUSERSITE), so the same interpreter is asked anew.
    """
    question = (
        "import json; from pip._internal.commands import create_command as c;"
        "o = c('install').parse_args(['x'])[0];"
        "print(json.dumps([[] if o.no_index else [o.index_url, *o.extra_index_urls], o.find_links, o.cert, o.proxy]))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    answer = subprocess.run([sys.executable, "-c", question], env=environment, capture_output=True, text=True)
    if answer.returncode != 0:
        raise BuildError(f"this Python has no pip that says which package index to use; {remedy}")
    indexes, find_links, certificates, proxy = json.loads(answer.stdout.splitlines()[-1])
    if proxy:
        os.environ["http_proxy"] = os.environ["https_proxy"] = proxy
    return Places([i for i in indexes if i], find_links, ssl.create_default_context(cafile=certificates or None))


def as_url(place: str) -> str:
    return place if re.match(r"[a-z]+://", place, re.IGNORECASE) else Path(place).expanduser().resolve().as_uri()


def without_credentials(url: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def with_credentials_of(page_url: str, link: str) -> str:
    """The link, with the user and password of the page where both are on one host."""
    login, at, host = urllib.parse.urlsplit(page_url).netloc.rpartition("@")
    parts = urllib.parse.urlsplit(link)
    return parts._replace(netloc=f"{login}@{host}").geturl() if at and parts.netloc == host else link


def find_archive(page_url: str, context: ssl.SSLContext) -> str | None:
    """Address of the archive on a simple page (PEP 503), on a find-links page or in a folder; None if not there."""
    if page_url.startswith("file:"):
        path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(page_url).path))
        if path.name == ARCHIVE:
            return page_url
        if (path / ARCHIVE).is_file():
            return (path / ARCHIVE).as_uri()
        if path.is_dir():
            path = path / "index.html"
        if not path.is_file() or path.suffix not in (".html", ".htm"):
            return None
        page_url = path.as_uri()
    try:
        content, final_url = read_url(page_url, context)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    link = archive_link(content.decode("utf-8", "replace"), final_url)
    return link and with_credentials_of(page_url, link)


def archive_link(page: str, page_url: str) -> str | None:
    """The first link of an HTML page that leads to the archive, made absolute, without its fragment."""
    parser = LinkParser()
    parser.feed(page)
    base = urllib.parse.urljoin(page_url, parser.base or "")
    for href in parser.links:
        url = urllib.parse.urldefrag(urllib.parse.urljoin(base, href)).url
        if PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name == ARCHIVE:
            return url
    return None


class LinkParser(html.parser.HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.base: str | None = None
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href and tag == "a":
            self.links.append(href)
        elif href and tag == "base" and self.base is None:
            self.base = href


def read_url(url: str, context: ssl.SSLContext) -> tuple[bytes, str]:
    """Content and final address of a page; user and password may stand in the address, as pip allows."""
    request = urllib.request.Request(without_credentials(url), headers={"Accept": "text/html, */*;q=0.1"})
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        # Not to where a redirection leads.
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=120, context=context) as reply:
        return reply.read(), reply.geturl()


# ---------------------------------------------------------------------------------------------- building the wheel


def wheel_files(archive: bytes) -> dict[str, bytes]:
    """Path in the wheel -> content, with every change applied, metadata included, RECORD not."""
    files = apply_changes(archive_files(archive))
    licence = files.pop("LICENSE")
    files["detectron2/_C.py"] = STAND_IN.encode()
    files[f"{DIST_INFO}/LICENSE"] = licence
    files[f"{DIST_INFO}/METADATA"] = metadata().encode()
    files[f"{DIST_INFO}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: build_detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{DIST_INFO}/top_level.txt"] = b"detectron2\n"
    return files


def archive_files(archive: bytes) -> dict[str, bytes]:
    """The licence, the package, its model-zoo configs and the three projects, under the paths of the wheel."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for member in tar:
            _, _, path = member.name.partition("/")  # the archive has one top-level folder
            for source, target in PROJECTS.items():
                if path.startswith(source + "/"):
                    path = target + path[len(source) :]
            wanted = path == "LICENSE" or (path.startswith("detectron2/") and path.endswith((".py", ".yaml")))
            content = tar.extractfile(member) if wanted and member.isfile() else None
            if content is not None:
                files[path] = content.read()
    return files


def apply_changes(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with EDITS and the numpy aliases replaced and a notice on each changed one.

    Raises BuildError where a replacement does not apply exactly as often as expected.
    """
    texts: dict[str, str] = {}
    for path in [edit.path for edit in EDITS] + list(NUMPY_ALIASES):
        if path not in files:
            raise BuildError(f"{path}, which has to be changed, is not in the archive")
        texts[path] = files[path].decode()
    for edit in EDITS:
        found = texts[edit.path].count(edit.old)
        if found != edit.times:
            raise BuildError(f"{edit.path}: {edit.old.strip()!r} occurs {found} times, not {edit.times}")
        texts[edit.path] = texts[edit.path].replace(edit.old, edit.new)
    for path, count in NUMPY_ALIASES.items():
        texts[path], found = NUMPY_ALIAS.subn(r"\1", texts[path])
        if found != count:
            raise BuildError(f"{path}: numpy's aliases of the builtins occur {found} times, not {count}")
    return {**files, **{path: (NOTICE + text).encode() for path, text in texts.items()}}


def metadata() -> str:
    header = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Detectron2 0.6 by FAIR, pure Python, changed to run on the current stack",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.10",
    ]
    return "\n".join(header + [f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS]) + "\n"


def write_wheel(path: Path, files: dict[str, bytes]) -> None:
    """A wheel with the same bytes on every machine: sorted, one date, not compressed (zlib's output varies)."""
    lines = [f"{name},sha256={record_digest(content)},{len(content)}\n" for name, content in sorted(files.items())]
    record_name = f"{DIST_INFO}/RECORD"
    unfinished = path.with_name(path.name + ".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as wheel:
        for name, content in [*sorted(files.items()), (record_name, f"{''.join(lines)}{record_name},,\n".encode())]:
            info = zipfile.ZipInfo(name, date_time=(2021, 10, 25, 0, 0, 0))  # the day of Detectron2 0.6
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            wheel.writestr(info, content)
    os.replace(unfinished, path)


def record_digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
