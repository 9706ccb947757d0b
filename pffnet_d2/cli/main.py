"""The command line: ``pffnet COMMAND ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from pffnet_d2.cli import failure
from pffnet_d2.cli.arguments import Parser
from pffnet_d2.env import VERSION

# Each command is a module of this package (with _ for -) that has HELP (one line), ``add_arguments(parser)`` and
# ``run(args)``, which returns the exit code; DESCRIPTION and EPILOG are optional. Modules that are slow to import are
# imported in ``run``.
COMMANDS = (
    "env",
    "install-detectron2",
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
    "export",
    "demo",
)
# Older spellings, which still work: other names of a command, and flags of one command that stand for another command.
ALIASES = {"package": ["pack"]}
FLAGS_OF = {"train": ("finetune", ["--from"]), "evaluate": ("score", ["--truth", "--prediction"])}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Whatever ends it, except a bug, is reported in one line on stderr.

    Returns:
        The exit code. 0: done; 1: `env` found something missing, or training diverged; 2: a mistake in the arguments or
        in a file, or the machine refused (a full disk, no permission); 130: interrupted; 141: the reader of the output
        closed its pipe.
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
            failure.flush(sys.stdout)  # an error of writing is raised here, not while the interpreter exits
            return code
        except KeyboardInterrupt:
            return failure.INTERRUPTED
        except Exception as error:
            return failure.tell(error)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments; ``run`` of them is the function of the command. They can be pickled, so that training can
    hand them to other processes.

    Raises:
        SystemExit: after help (0), or where the arguments are wrong (2).
    """
    arguments = _current_spelling(arguments)
    args, unknown = _argument_parser(arguments[0] if arguments else "").parse_known_args(arguments)
    parser = vars(args).pop("parser")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _argument_parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of all commands; only the chosen one has its arguments."""
    parser = Parser(
        prog="pffnet", description="Instance segmentation of nuclei, cells and leaves with PFFNet on Detectron2."
    )
    parser.add_argument("--version", action="version", version=f"pffnet_d2 {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"pffnet_d2.cli.{name.replace('-', '_')}")
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
    """The arguments, with the command that a flag of FLAGS_OF stands for in place of the older one."""
    if not arguments or arguments[0] not in FLAGS_OF:
        return list(arguments)
    command, flags = FLAGS_OF[arguments[0]]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag, dest="given", nargs="?", const=True)
    found, _ = parser.parse_known_args(arguments[1:])
    return [command if found.given is not None else arguments[0], *arguments[1:]]
