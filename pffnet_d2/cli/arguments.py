"""The parser that every command has, and the arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pffnet_d2.parallel.dask_tasks import ClusterOptions


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without printing the usage before it.

    Attributes:
        intermixed: whether options may stand between positional arguments.
    """

    intermixed = False

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if not self.intermixed:
            return super().parse_known_args(args, namespace)
        self.intermixed = False  # the method below calls this one
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.intermixed = True


def data_root() -> Path:
    """The root of the prepared data sets, unless a command is given another."""
    from pffnet_d2.data.prepared import root

    return root()


def add_config(parser: argparse.ArgumentParser, help: str | None = None, *, required: bool = False) -> None:
    """``--config FILE``; training calls it ``--config-file``."""
    parser.add_argument("--config", "--config-file", required=required, metavar="FILE", help=help)


def add_weights(parser: argparse.ArgumentParser, help: str | None = None, *, required: bool = False) -> None:
    parser.add_argument("--weights", required=required, metavar="FILE", help=help)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")


def add_opts(parser: argparse.ArgumentParser, help: str) -> None:
    """``--opts KEY VALUE ...``, which override the config."""
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help=help)


def add_cluster(parser: argparse._ActionsContainer) -> None:
    """``--workers N`` and ``--scheduler ADDRESS``, which :func:`cluster_options` reads."""
    parser.add_argument(
        "--workers", type=int, metavar="N", help="run tasks in N Dask workers of this machine (docs/cluster.md)"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="run tasks on a Dask cluster, such as tcp://10.0.0.1:8786"
    )


def cluster_options(args: argparse.Namespace) -> ClusterOptions | None:
    """Where tasks run; None in this process. Raises InputError if both options are given."""
    from pffnet_d2.parallel.dask_tasks import ClusterOptions

    return ClusterOptions.given(args.workers, args.scheduler)


def add_options(parser: argparse.ArgumentParser, help: str) -> None:
    """``--option KEY=VALUE``, for the reader of a data set."""
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help=help)


def add_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--groups", type=Path, metavar="FILE", help="csv with the columns image and group: the group of each image"
    )


def set_groups(rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Set the group of each row of scores as the file of ``--groups`` says, if it is given.

    Raises:
        InputError: the file cannot be read, or has no group for an image.
    """
    if file is None:
        return
    from pffnet_d2.errors import InputError
    from pffnet_d2.evaluation.scores import read_groups

    groups = read_groups(file)
    for row in rows:
        if row["image"] not in groups:
            raise InputError(f"{file}: has no group for image {row['image']}; name every image")
        row["group"] = groups[row["image"]]
