"""``pffnet export``: write a model to a file that other programs run, or that predicts without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pffnet_d2 import env
from pffnet_d2.cli.arguments import add_config, add_opts, add_weights

FORMATS = ("onnx", "torchscript", "bioimageio")
HELP = "write a model to ONNX (predicts without torch), TorchScript or a package for bioimage.io"
DESCRIPTION = (
    "Writes DIR/model.onnx, which `pffnet predict --model DIR/model.onnx` takes, DIR/model.ts, for torch.jit.load, or "
    "DIR/model.bioimageio.zip. The file is kept if it equals the model on five images. See docs/export.md."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME | FOLDER",
        help="a model that comes with the package (default: nuclei), or a folder that training wrote",
    )
    add_config(parser, "instead of --model: yaml the model was trained with")
    add_weights(parser, "checkpoint (default: MODEL.WEIGHTS of the config)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the file")
    add_opts(parser, "override keys of the config, such as MODEL.PFFNET.DIAMETER 24.0")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: see :func:`~pffnet_d2.model_zoo.export.export_onnx`.
    """
    env.require("export")
    from pffnet_d2.inference.model_config import config_of
    from pffnet_d2.inference.options import ModelOptions
    from pffnet_d2.model_zoo import bioimageio, export
    from pffnet_d2.model_zoo.find import DEFAULT, find_model

    options = ModelOptions(config=args.config, weights=args.weights, model=args.model, device="cpu", opts=args.opts)
    write = {
        "onnx": export.export_onnx,
        "torchscript": export.export_torchscript,
        "bioimageio": bioimageio.export_bioimageio,
    }[args.format]
    card = {} if args.config else find_model(args.model or DEFAULT).card
    about: dict[str, Any] = {key: card[key] for key in ("title", "licence", "sources") if key in card}
    print(write(config_of(options), args.out, about))
    return 0
