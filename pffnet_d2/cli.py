"""The command line: ``pffnet COMMAND ...``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pffnet_d2 import __version__, env
from pffnet_d2.errors import InputError

# These take the flags of train_net.py, which engine.py parses.
FORWARDED = {
    "train": "train a model: the flags of train_net.py",
    "evaluate": "score a trained model: the flags of train_net.py, with --eval-only",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit code 0: done; 1: `env` found something missing; 2: a mistake in what was asked for."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in FORWARDED:
            return _engine(arguments[0], arguments[1:])
        args = argument_parser().parse_args(arguments)
        if args.command == "env":
            return env.main()
        if args.command == "prepare":
            return _prepare(args)
        if args.command == "check":
            return _check(args)
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
        help="turn a publisher's files, or your own, into what training reads",
        description="Writes ROOT/NAME/SPLIT/{images,semantic,instances.json}. What is there and whole is kept. "
        "Layouts, split schemes and options of each data set: datasets/README.md; your own images: docs/data.md.",
    )
    prepare.add_argument("dataset", metavar="DATASET", help="the data set, or own; an unknown one lists them")
    prepare.add_argument("--source", type=Path, metavar="DIR", help="the publisher's files (phantoms need none)")
    prepare.add_argument(
        "--out",
        type=Path,
        metavar="ROOT",
        default=_root(),
        help="root of the prepared data sets (default: $DETECTRON2_DATASETS, else datasets; now %(default)s)",
    )
    prepare.add_argument("--name", help="what the prepared data set is called (own needs one; default: DATASET)")
    prepare.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all that the files hold)")
    prepare.add_argument("--scheme", help="which of the published divisions into splits (default: the first)")
    prepare.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the data set's reader; may be repeated"
    )
    prepare.add_argument("--folds", type=int, metavar="K", help="divide all labelled images into K parts instead")
    prepare.add_argument("--fold", type=int, metavar="I", help="only the splits of part I, from 0 (default: all K)")
    prepare.add_argument("--seed", type=int, default=0, help="of the folds (default: %(default)s)")
    prepare.add_argument("--count", type=int, metavar="N", help="phantoms: images a split; else: only the first N")
    prepare.add_argument("--force", action="store_true", help="make again what is there already")

    check = commands.add_parser(
        "check",
        help="verify prepared data sets and draw contact sheets",
        description="Reads every image, json and semantic map under ROOT, names what is wrong (exit code 2), and "
        "writes DIR/NAME_SPLIT.png: images with their truth in colours.",
    )
    check.add_argument("root", type=Path, nargs="?", metavar="ROOT", default=_root(), help="default: %(default)s")
    check.add_argument(
        "--sheets", type=Path, metavar="DIR", default=Path("output/check"), help="contact sheets (default: %(default)s)"
    )
    check.add_argument(
        "--detections",
        type=int,
        metavar="N",
        default=100,
        help="TEST.DETECTIONS_PER_IMAGE of your configuration (default: %(default)s, Detectron2's)",
    )

    for name, text in FORWARDED.items():
        commands.add_parser(name, help=text, add_help=False)

    demo = commands.add_parser("demo", help="train, evaluate and draw on generated images: a few minutes on a CPU")
    demo.add_argument("--out", type=Path, metavar="DIR", default=Path("output/demo"), help="default: %(default)s")
    return parser


def _root() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def _prepare(args: argparse.Namespace) -> int:
    from pffnet_d2.data.prepare import prepare

    options = {}
    for text in args.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option {text}: give KEY=VALUE")
        options[key] = value
    prepare(
        args.dataset,
        args.source,
        args.out,
        splits=args.splits,
        scheme=args.scheme,
        options=options,
        folds=args.folds,
        fold=args.fold,
        seed=args.seed,
        dataset=args.name,
        count=args.count,
        force=args.force,
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    from pffnet_d2.data.check import check

    return 2 if check(args.root, detections=args.detections, sheets=args.sheets) else 0


def _engine(command: str, arguments: list[str]) -> int:
    _need_everything(command)
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
