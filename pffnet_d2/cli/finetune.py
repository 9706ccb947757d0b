"""``pffnet finetune``: train a model on a user's own images."""

from __future__ import annotations

import argparse
from pathlib import Path

from pffnet_d2 import env
from pffnet_d2.cli.arguments import Parser, add_options

HELP = "fine-tune a model on your images"
DESCRIPTION = (
    "Fine-tunes a model on your annotated images (label images, one mask per object, or COCO: docs/data.md). "
    "Writes DIR/config.yaml and DIR/model_final.pth, which `pffnet predict --model DIR` reads, DIR/data and "
    "DIR/log.txt. See docs/finetune.md."
)


def add_arguments(parser: Parser) -> None:
    parser.intermixed = True
    parser.add_argument(
        "--from",
        dest="start",
        default="pretrained",
        metavar="MODEL",
        help="where training starts: pretrained (the model that comes with the package; default), a model's name, a "
        "folder with config.yaml and model_final.pth, a checkpoint (with --config-file, or config.yaml beside it), or "
        "scratch",
    )
    parser.add_argument(
        "source", type=Path, metavar="FOLDER", help="folder of your images: images/ and labels/, or another layout"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: output/<name of FOLDER>)")
    parser.add_argument(
        "--config-file", metavar="FILE", help="yaml of the checkpoint, or of a model to train from scratch"
    )
    add_options(parser, "how FOLDER is read; the options of `prepare own`")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in DIR")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys of the config, such as SOLVER.MAX_ITER 800")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`pffnet_d2.engine.finetune.finetune`.
    """
    env.require("finetune")
    from pffnet_d2.data.prepare import read_options
    from pffnet_d2.engine.finetune import finetune

    out = args.out or Path("output") / args.source.resolve().name
    return finetune(
        args.start,
        args.source,
        out,
        config=args.config_file,
        options=read_options(args.option),
        resume=args.resume,
        opts=args.opts,
    )
