"""The command line: ``pffnet COMMAND ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from pffnet_d2.cli import failure
from pffnet_d2.cli.arguments import Parser
from pffnet_d2.env import VERSION

# A command is a module of this package: HELP (one line), optionally DESCRIPTION and EPILOG, ``add_arguments(parser)``
# and ``run(args)``, which returns the exit code. What is slow to import is imported in ``run``.
COMMANDS = (
    "env",
    "prepare",
    "check",
    "predict",
    "finetune",
    "train",
    "evaluate",
    "score",
    "kfold",
    "thresholds",
    "report",
    "plot",
    "package",
    "demo",
)
# Older spellings, which work as before: other names of a command, and flags that turn one command into another.
ALIASES = {"package": ["pack"]}
FLAGS_OF = {"train": ("finetune", ["--from"]), "evaluate": ("score", ["--truth", "--prediction"])}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Whatever ends it but a bug is told in one line on stderr.

    Returns:
        The exit code. 0: done; 1: `env` found something missing, or training diverged; 2: a mistake in what was asked
        for, or a machine that is full or protected; 130: interrupted; 141: the reader of its output went away.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with failure.command_line():
        try:
            try:
                args = parse(arguments)
                code: int = args.run(args)
            except SystemExit:  # argparse: help, or wrong usage
                failure.flush(sys.stdout)
                raise
            failure.flush(sys.stdout)  # what cannot be written fails here, not while the interpreter ends
            return code
        except KeyboardInterrupt:
            return failure.INTERRUPTED
        except Exception as error:
            return failure.tell(error)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, with ``run``, the function that they are for.

    Raises:
        SystemExit: help was asked for (0), or the arguments are wrong (2).
    """
    arguments = _current_spelling(arguments)
    args, unknown = _argument_parser(arguments[0] if arguments else "").parse_known_args(arguments)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _argument_parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the one that is chosen."""
    parser = Parser(
        prog="pffnet", description="Instance segmentation of nuclei, cells and leaves with PFFNet on Detectron2."
    )
    parser.add_argument("--version", action="version", version=f"pffnet_d2 {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"pffnet_d2.cli.{name}")
        aliases = ALIASES.get(name, [])
        command = commands.add_parser(
            name,
            aliases=aliases,
            help=module.HELP,
            description=getattr(module, "DESCRIPTION", None),
            epilog=getattr(module, "EPILOG", None),
        )
        command.set_defaults(run=module.run, parser=command)
        if chosen in (name, *aliases):
            module.add_arguments(command)
    return parser


def _current_spelling(arguments: Sequence[str]) -> list[str]:
    """The same with the command that a flag of FLAGS_OF stands for."""
    if not arguments or arguments[0] not in FLAGS_OF:
        return list(arguments)
    command, flags = FLAGS_OF[arguments[0]]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag, dest="given", nargs="?", const=True)
    found, _ = parser.parse_known_args(arguments[1:])
    return [command if found.given is not None else arguments[0], *arguments[1:]]
