"""The command line: ``pffnet COMMAND ...``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pffnet_d2 import __version__, cli_evaluation, env
from pffnet_d2.errors import InputError

# These take the flags of train_net.py, which engine.py parses.
FORWARDED = {
    "train": "train a model: the flags of train_net.py",
    "evaluate": "score a trained model (the flags of train_net.py), or label images: --truth DIR --prediction DIR",
    "thresholds": "choose beta and the mask threshold on validation images: the flags of train_net.py, --metric NAME",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit code 0: done; 1: `env` found something missing; 2: a mistake in what was asked for."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in FORWARDED:
            return _engine(arguments[0], arguments[1:])
        args = argument_parser().parse_args(arguments)
        if args.command == "report":
            return cli_evaluation.make_report(args)
        if args.command == "env":
            return env.main()
        if args.command == "prepare":
            return _prepare(args.name, args.source, args.out)
        return _demo(args.out)
    except InputError as error:
        print(f"pffnet: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # as a shell reports it


def argument_parser() -> argparse.ArgumentParser:
    """The parser of every command but those in FORWARDED, which it only lists."""
    parser = argparse.ArgumentParser(
        prog="pffnet", description="Instance segmentation of nuclei, cells and leaves with PFFNet on Detectron2."
    )
    parser.add_argument("--version", action="version", version=f"pffnet_d2 {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("env", help="what is installed, what is missing, what to type")

    prepare = commands.add_parser(
        "prepare",
        help="turn a publisher's files into what training reads",
        description="Writes OUT/NAME/SPLIT/{images,semantic,instances.json}. What is there and whole is kept.",
    )
    prepare.add_argument("name", metavar="NAME", help="the data set; an unknown name lists those there are")
    prepare.add_argument("--source", type=Path, metavar="DIR", help="the publisher's files (phantoms need none)")
    prepare.add_argument(
        "--out",
        type=Path,
        metavar="ROOT",
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")),
        help="root of the prepared data sets (default: $DETECTRON2_DATASETS, else datasets; now %(default)s)",
    )

    for name, text in FORWARDED.items():
        commands.add_parser(name, help=text, add_help=False)

    cli_evaluation.add_report(commands)

    demo = commands.add_parser("demo", help="train, evaluate and draw on generated images: a few minutes on a CPU")
    demo.add_argument("--out", type=Path, metavar="DIR", default=Path("output/demo"), help="default: %(default)s")
    return parser


def _prepare(name: str, source: Path | None, out: Path) -> int:
    from pffnet_d2.data.prepare import prepare

    prepare(name, source, out)
    return 0


def _engine(command: str, arguments: list[str]) -> int:
    if command == "evaluate" and cli_evaluation.is_of_folders(arguments):
        return cli_evaluation.evaluate_folders(arguments)
    _need_everything(command)
    if command == "thresholds":
        return cli_evaluation.choose_thresholds(arguments)
    from pffnet_d2 import engine

    return engine.run(["--eval-only", *arguments] if command == "evaluate" else arguments)


def _demo(out: Path) -> int:
    _need_everything("demo")
    from pffnet_d2 import demo

    return demo.main(out)


def _need_everything(command: str) -> None:
    problem = env.problem()
    if problem:
        raise InputError(f"{command}: {problem}")


if __name__ == "__main__":
    sys.exit(main())
