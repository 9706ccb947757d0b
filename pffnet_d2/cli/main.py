"""The command line: ``pffnet COMMAND ...``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pffnet_d2 import __version__, env
from pffnet_d2.cli import evaluate as cli_evaluation
from pffnet_d2.cli import failure
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.numbers import whole_number

# These take the flags of train_net.py, which engine/trainer.py parses.
FORWARDED = {
    "train": "fine-tune on your images: --from pretrained FOLDER; or train a model: the flags of train_net.py",
    "evaluate": "score a trained model (the flags of train_net.py), or label images: --truth DIR --prediction DIR",
    "kfold": "train and evaluate K folds and put their scores together: the flags of train_net.py, --dataset, --folds",
    "thresholds": "choose beta and the mask threshold on validation images: the flags of train_net.py, --metric NAME",
}


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
                code = _run(arguments)
            except SystemExit:  # argparse: help, or wrong usage
                failure.flush(sys.stdout)
                raise
            failure.flush(sys.stdout)  # what cannot be written fails here, not while the interpreter ends
            return code
        except KeyboardInterrupt:
            return failure.INTERRUPTED
        except Exception as error:
            return failure.tell(error)


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in FORWARDED:
        return _engine(arguments[0], arguments[1:])
    args = argument_parser().parse_args(arguments)
    if args.command == "report":
        return cli_evaluation.make_report(args)
    if args.command == "env":
        return env.main()
    if args.command == "prepare":
        return _prepare(args)
    if args.command == "check":
        return _check(args)
    if args.command == "predict":
        return _predict(args)
    if args.command == "pack":
        return _pack(args)
    if args.command == "plot":
        return _plot(args)
    return _demo(args.out)


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line, without the page of usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def argument_parser() -> argparse.ArgumentParser:
    """The parser of every command but those in FORWARDED, which it only lists."""
    parser = _Parser(
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

    _add_predict(commands)
    _add_pack(commands)
    _add_plot(commands)

    for name, text in FORWARDED.items():
        commands.add_parser(name, help=text, add_help=False)

    cli_evaluation.add_report(commands)

    demo = commands.add_parser("demo", help="train, evaluate and draw on generated images: a few minutes on a CPU")
    demo.add_argument("--out", type=Path, metavar="DIR", default=Path("output/demo"), help="default: %(default)s")
    return parser


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="segment images and write label maps, outlines, measurements",
        description="Results of DIR/IMAGE.png: IMAGE_labels.tif (label-tiff), IMAGE_overlay.png (overlay), "
        "IMAGE.geojson (QuPath), IMAGE_rois.zip (ImageJ), IMAGE.csv (measurements), IMAGE.json (coco). A file that "
        "cannot be read is named and skipped. Exit code 0: all images predicted; 1: some; 2: none, or a mistake. "
        "See docs/predict.md.",
    )
    predict.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders, or quoted patterns such as 'plates/**/*.tif'"
    )
    predict.add_argument(
        "--model",
        metavar="NAME | FOLDER",
        help="a model that comes with the package (default: nuclei, for fluorescence), or a folder that training wrote",
    )
    predict.add_argument(
        "--config", "--config-file", metavar="FILE", help="instead of --model: yaml the model was trained with"
    )
    predict.add_argument("--weights", metavar="FILE", help="checkpoint (default: MODEL.WEIGHTS of the config)")
    predict.add_argument(
        "--diameter",
        type=float,
        metavar="PIXELS",
        help="mean diameter of your nuclei: images are resized to the diameter the model knows, results are not",
    )
    predict.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go (default: results in the current folder)"
    )
    predict.add_argument(
        "--format",
        metavar="LIST",
        help="of label-tiff,overlay,geojson,roi,csv,coco (default: label-tiff,overlay; with --tile label-tiff), and "
        "cvppp: label-tiff, and answer.h5 of all images for the CVPPP challenge",
    )
    predict.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    predict.add_argument(
        "--threshold", type=float, metavar="BETA", help="class score an object needs (default: config)"
    )
    predict.add_argument(
        "--thresholds",
        metavar="FILE",
        help="what `pffnet thresholds` wrote, or a yaml of such keys, SCORE_THRESH: 0.4",
    )
    predict.add_argument("--plane", metavar="N | Z=N,T=N", help="of a stack, from 0")
    predict.add_argument(
        "--channels", metavar="N | R,G,B", help="of several channels, from 0: one, or three as colours"
    )
    predict.add_argument(
        "--normalisation",
        default="auto",
        metavar="RULE",
        help="auto (as the model's images in training; the summary says how), as-is, or "
        "percentile:LOW,HIGH,RANGE (default: %(default)s)",
    )
    predict.add_argument(
        "--invert",
        action="store_true",
        help="dark objects on a bright ground: the network sees inverted grey values; measurements do not",
    )
    predict.add_argument(
        "--pixel-size",
        type=float,
        metavar="UM",
        help="micrometres a pixel (default: what files say); 0 measures in pixels",
    )
    predict.add_argument("--batch", type=int, default=1, metavar="N", help="images (tiles) of one size at a time")
    predict.add_argument("--processes", type=int, default=1, metavar="N", help="a GPU each, or on the CPU")
    predict.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="predict large images in tiles of this side, such as 1024, and write label-tiff, geojson, csv and a "
        "reduced overlay as they are found; an interrupted run resumes (docs/large-images.md)",
    )
    predict.add_argument(
        "--overlap", metavar="PIXELS", help="of tiles, more than the largest object (default: auto, measured)"
    )
    predict.add_argument("--stop-on-error", action="store_true", help="end at the first file that fails (exit code 2)")
    predict.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="override keys of the config")


def _add_pack(commands: Any) -> None:
    pack = commands.add_parser(
        "pack",
        help="make a small model folder to hand on, for predict --model, of a trained one",
        description="Writes config.yaml, model_final.pth (half precision, without what only training uses) and "
        "card.json (SHA-256 of both, thresholds, what --about says).",
    )
    pack.add_argument("--config", "--config-file", required=True, metavar="FILE", help="yaml of the training")
    pack.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the training")
    pack.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    pack.add_argument(
        "--about", type=Path, metavar="FILE", help="yaml that goes into the card: licence, sources, scores"
    )
    pack.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="MODEL.PFFNET.DIAMETER 24.0, say")


def _add_plot(commands: Any) -> None:
    plot = commands.add_parser(
        "plot", help="pictures of a run: learning curves, calibration of scores, images one by one"
    )
    kinds = plot.add_subparsers(dest="kind", required=True, metavar="KIND")
    curves = kinds.add_parser("curves", help="losses and scores over the iterations of a training run")
    curves.add_argument("metrics", type=Path, metavar="METRICS.JSON", help="in the run's OUTPUT_DIR")
    quality = kinds.add_parser("quality", help="mask quality and score against the true IoU of each object")
    quality.add_argument("--config", "--config-file", required=True, metavar="FILE")
    quality.add_argument("--weights", metavar="FILE")
    quality.add_argument("--dataset", required=True, metavar="NAME", help="a prepared data set, such as bbbc039_val")
    quality.add_argument("--device", metavar="NAME")
    quality.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    scatter = kinds.add_parser("scatter", help="a point an image: found against true objects, and scores")
    scatter.add_argument("table", type=Path, metavar="LABEL_MAP.CSV", help="that evaluation wrote")
    for kind in (curves, quality, scatter):
        kind.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture")


def _root() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def _prepare(args: argparse.Namespace) -> int:
    from pffnet_d2.data.prepare import prepare, read_options

    prepare(
        args.dataset,
        args.source,
        args.out,
        splits=args.splits,
        scheme=args.scheme,
        options=read_options(args.option),
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


def _predict(args: argparse.Namespace) -> int:
    _need_everything("predict")
    from pffnet_d2.config_values import check_value
    from pffnet_d2.inference.batch import Job, predict_files
    from pffnet_d2.inference.options import InvalidOption, PredictOptions
    from pffnet_d2.inference.sources import find_sources

    default = "label-tiff,overlay" if args.tile is None else "label-tiff"
    overlap = args.overlap or "auto"
    if args.overlap and args.tile is None:
        raise InputError("--overlap is that of tiles; give --tile too, such as --tile 1024")
    try:
        pixels = overlap if overlap == "auto" else whole_number(overlap)
    except ValueError:
        raise InputError(f"--overlap {overlap}: give pixels, or auto") from None
    if args.threshold is not None and args.thresholds:
        raise InputError("--threshold and --thresholds: give one of them")
    if args.threshold is not None:
        check_value("MODEL.PFFNET.LABEL_MAP.SCORE_THRESH", args.threshold, "--threshold")
    if args.config and not os.path.isfile(args.config):
        raise InputError(f"{args.config}: no such config file; give --config FILE")
    out = args.out or Path("results")
    try:
        options = PredictOptions(
            config=args.config,
            weights=args.weights,
            model=args.model,
            diameter=args.diameter,
            device=args.device,
            thresholds=args.thresholds or (None if args.threshold is None else {"SCORE_THRESH": args.threshold}),
            normalisation=args.normalisation,
            invert=args.invert,
            opts=args.opts,
            formats=(args.format or default).split(","),
            plane=_plane(args.plane),
            channels=_integers("--channels", args.channels),
            pixel_size=args.pixel_size,
            batch=args.batch,
            tile=args.tile,
            overlap=pixels,
        )
    except InvalidOption as error:
        raise InputError(f"--{error.option.replace('_', '-')} {error.fault}") from error
    sources = find_sources(args.images, out, options.exporters.files)
    job = Job(sources, out, options, stop=args.stop_on_error, processes=args.processes)
    summary = predict_files(job)
    print("\n".join([*summary.lines(), *([] if args.out else [f"results in {out}/"])]))
    return summary.exit_code


def _pack(args: argparse.Namespace) -> int:
    _need_everything("pack")
    from pffnet_d2.model_zoo.package import pack, read_about

    about = read_about(args.about) if args.about else {}
    card = pack(args.config, args.weights, args.out, about=about, opts=args.opts)
    print(
        f"{args.out}: {card['parameters']:,} parameters, {card['bytes'] / 1e6:.1f} MB; use it with --model {args.out}"
    )
    return 0


def _plane(text: str | None) -> dict[str, int] | int | None:
    """``3`` or ``Z=3,T=0``."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        if "=" not in text:
            return whole_number(text)
        plane = {axis.upper(): whole_number(index) for axis, _, index in pairs if axis.isalpha()}
        if len(plane) < len(pairs):
            raise ValueError("an axis is missing or given twice")
    except ValueError:
        raise InputError(f"--plane {text}: give a number from 0, or axes as in Z=3,T=0, each once") from None
    return plane


def _integers(flag: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [whole_number(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text}: give numbers from 0, with commas between them") from None


def _plot(args: argparse.Namespace) -> int:
    from pffnet_d2.visualization import overlay as pictures

    if args.kind == "curves":
        pictures.learning_curve(args.metrics, args.out)
    elif args.kind == "scatter":
        pictures.image_scatter(args.table, args.out)
    else:
        _need_everything("plot quality")
        from pffnet_d2.evaluation.calibration import measure
        from pffnet_d2.inference.predictor import Predictor

        table = measure(Predictor(args.config, args.weights, device=args.device), args.dataset, limit=args.limit)
        for line in pictures.calibration(table, args.out):
            print(line)
    print(args.out)
    return 0


def _engine(command: str, arguments: list[str]) -> int:
    if command == "evaluate" and cli_evaluation.is_of_folders(arguments):
        return cli_evaluation.evaluate_folders(arguments)
    helped = bool({"-h", "--help"} & set(arguments))
    if command == "evaluate" and helped:
        print("Label images of any tool: pffnet evaluate --truth DIR --prediction DIR [--out DIR]. A trained model:\n")
    _need_everything(command)
    if command == "train" and any(a == "--from" or a.startswith("--from=") for a in arguments):
        from pffnet_d2.engine import finetune

        return finetune.main(arguments)
    if command == "train" and helped:
        print("On your own images: pffnet train --from pretrained FOLDER (--from pretrained --help). Otherwise:\n")
    if command == "thresholds":
        return cli_evaluation.choose_thresholds(arguments)
    if command == "kfold":
        from pffnet_d2.engine import kfold

        return kfold.main(arguments)
    from pffnet_d2 import engine

    return engine.run(arguments, command=command)


def _demo(out: Path) -> int:
    _need_everything("demo")
    from pffnet_d2.cli import demo

    return demo.main(out)


def _need_everything(command: str) -> None:
    problem = env.problem()
    if problem:
        raise InputError(f"{command}: {problem}")
