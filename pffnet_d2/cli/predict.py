"""``pffnet predict``: images to label maps, outlines and measurements."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pffnet_d2 import env
from pffnet_d2.cli.arguments import add_cluster, add_config, add_device, add_opts, add_weights, cluster_options
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.numbers import whole_number
from pffnet_d2.model_zoo.find import onnx_form

if TYPE_CHECKING:
    from pffnet_d2.inference.export.measure import Measures
    from pffnet_d2.inference.options import PredictOptions
    from pffnet_d2.inference.sources import Source

# Formats that are written unless --format says otherwise, of images that are predicted whole and in tiles.
WHOLE, TILED = "label-tiff,overlay", "label-tiff"
HELP = "segment images and write label maps, outlines, measurements"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pffnet_d2.inference import export

    names = [f"IMAGE{e.ending}" if isinstance(e, export.Exporter) else e.file_name for e in export.EXPORTERS]
    results = ", ".join(f"{name} ({e.name}: {e.about})" for name, e in zip(names, export.EXPORTERS, strict=True))
    not_tiled = ",".join(e.name for e in export.EXPORTERS if isinstance(e, export.Exporter) and not e.streams)
    parser.description = (
        f"Results of DIR/IMAGE.png, by format: {results}. A file that cannot be read is named and skipped. "
        "Exit code 0: all images predicted; 1: some; 2: none, or a mistake. See docs/predict.md."
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders, or quoted patterns such as 'plates/**/*.tif'"
    )
    _add_model(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go (default: results in the current folder)"
    )
    parser.add_argument(
        "--format",
        metavar="LIST",
        help=f"of {','.join(export.names())} (default: {WHOLE}; with --tile {TILED}); not with --tile: {not_tiled}",
    )
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="float32",
        help="auto: bfloat16 on CPUs and GPUs that are faster in it; the summary says which (default: %(default)s)",
    )
    parser.add_argument("--threshold", type=float, metavar="BETA", help="class score an object needs (default: config)")
    parser.add_argument(
        "--thresholds",
        metavar="FILE",
        help="what `pffnet thresholds` wrote, or a yaml of such keys, SCORE_THRESH: 0.4",
    )
    parser.add_argument(
        "--preview",
        action="store_true",
        help="of one image, write only IMAGE_preview.png: the image and its overlay at three thresholds",
    )
    _add_reading(parser.add_argument_group("reading images"))
    _add_measuring(parser.add_argument_group("tables"))
    _add_work(parser.add_argument_group("dividing the work"))
    add_opts(parser, "override keys of the config")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and what it is told of the objects."""
    parser.add_argument(
        "--model",
        metavar="NAME | FOLDER | FILE.onnx",
        help="the model that comes with the package (nuclei, the default, for fluorescence, H&E and brightfield), a "
        "folder that training wrote, or a file of `pffnet export`, which needs no torch",
    )
    add_config(parser, "instead of --model: yaml the model was trained with")
    add_weights(parser, "checkpoint (default: MODEL.WEIGHTS of the config)")
    parser.add_argument(
        "--diameter",
        type=_diameter,
        metavar="PIXELS | auto",
        help="mean diameter of your nuclei: images are resized to the diameter the model knows, results are not; "
        "auto: measured in each image by a first pass",
    )
    parser.add_argument(
        "--match-pixel-size",
        action="store_true",
        help="resize images to the pixels that the model knows, by the size that each file states or --pixel-size; "
        "results are not resized",
    )


def _add_reading(parser: argparse._ArgumentGroup) -> None:
    """How image files become what the network sees."""
    parser.add_argument("--plane", metavar="N | Z=N,T=N | all", help="of a stack, from 0; all: each plane by itself")
    parser.add_argument("--project", choices=["max"], help="the brightest value along Z instead of one plane of it")
    parser.add_argument(
        "--channels",
        metavar="N | NAME | R,G,B",
        help="of several channels, by number from 0 or by name, such as DAPI: one, or three as colours",
    )
    parser.add_argument("--scene", metavar="N | NAME | all", help="of a file with several images, from 0; all: each")
    parser.add_argument(
        "--level", type=float, metavar="UM", help="of a pyramid: that with pixels closest to UM micrometres"
    )
    parser.add_argument(
        "--normalisation",
        default="auto",
        metavar="RULE",
        help="auto (as the model's images in training; the summary says how), as-is, or "
        "percentile:LOW,HIGH,RANGE (default: %(default)s)",
    )
    parser.add_argument(
        "--invert",
        action="store_true",
        help="dark objects on a bright ground: the network sees inverted grey values; measurements do not",
    )
    parser.add_argument(
        "--pixel-size",
        type=float,
        metavar="UM",
        help="micrometres a pixel (default: what files say); 0 measures in pixels",
    )


def _add_measuring(parser: argparse._ArgumentGroup) -> None:
    """What tables contain."""
    from pffnet_d2.inference.export.measure import INTENSITY_TERMS, SHAPE_TERMS

    parser.add_argument(
        "--measure",
        metavar="LIST",
        help="columns of csv, instead of the default ones, and grey values of every channel of the file; of "
        + ",".join([*SHAPE_TERMS, *INTENSITY_TERMS]),
    )
    parser.add_argument(
        "--ring", type=int, metavar="PIXELS", help="also the mean grey value in a ring of this width around objects"
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="one .csv or .parquet of all images, and FILE_summary.csv by folder and well, beside one csv per image",
    )
    parser.add_argument(
        "--well", metavar="REGEX", help="finds the well in the path of an image (default: A01, r01c01 in its name)"
    )
    parser.add_argument(
        "--class-name",
        default="object",
        metavar="NAME",
        help="of the objects, in geojson and coco (default: %(default)s)",
    )


def _add_work(parser: argparse._ArgumentGroup) -> None:
    """How the work is divided."""
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images (tiles) of one size at a time")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="a GPU each, or on the CPU")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="predict large images in tiles of this side, such as 1024, and write results as tiles are finished, "
        "with a reduced overlay; an interrupted run resumes (docs/large-images.md)",
    )
    parser.add_argument(
        "--overlap", metavar="PIXELS", help="of tiles, more than the largest object (default: auto, measured)"
    )
    parser.add_argument(
        "--tissue", choices=["auto"], help="with --tile: leave out tiles that show only background, and say how many"
    )
    add_cluster(parser)
    parser.add_argument("--stop-on-error", action="store_true", help="end at the first file that fails (exit code 2)")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        InputError: a mistake in the arguments, the model or the images.
    """
    _check_installation(onnx=args.config is None and onnx_form(args.model) is not None)
    from pffnet_d2.inference.batch import predict_files
    from pffnet_d2.inference.job import Job
    from pffnet_d2.inference.sources import find_sources

    options = _options(args)
    out = args.out or Path("results")
    sources = find_sources(args.images, out, options.exporters.files, options)
    if args.preview:
        return _preview(args, sources, out, options)
    cluster = cluster_options(args)
    if cluster and args.processes > 1:
        raise InputError("--processes and --workers: give one of them")
    job = Job(
        sources,
        out,
        options,
        stop=args.stop_on_error,
        processes=args.processes,
        cluster=cluster,
        table=args.table,
        well=args.well,
    )
    summary = predict_files(job)
    print("\n".join([*summary.lines(), *([] if args.out else [f"results in {out}/"])]))
    return summary.exit_code


def _check_installation(*, onnx: bool) -> None:
    """Raises InputError if something that the model needs is missing; ``onnx``: whether it is in ONNX."""
    try:
        env.require("predict", onnx=onnx)
    except InputError as error:
        if onnx:
            raise
        raise InputError(f"{error}; a model in ONNX needs none of these (--model FILE.onnx, docs/export.md)") from error


def _preview(args: argparse.Namespace, sources: list[Source], out: Path, options: PredictOptions) -> int:
    from pffnet_d2.inference.preview import write_preview

    if len(sources) != 1:
        raise InputError(f"--preview is of one image, not of {len(sources)}; name one")
    if args.tile is not None or args.table is not None:
        raise InputError("--preview writes one picture of a whole image; leave out --tile and --table")
    path = out / f"{sources[0].name}_preview.png"
    for beta, count in write_preview(path, sources[0], options):
        print(f"--threshold {beta:g}: {count} objects")
    print(f"{path} shows them beside the image")
    return 0


def _options(args: argparse.Namespace) -> PredictOptions:
    from pffnet_d2.inference.options import InvalidOption, PredictOptions

    if args.config and not os.path.isfile(args.config):
        raise InputError(f"{args.config}: no such config file; give --config FILE")
    try:
        return PredictOptions(
            config=args.config,
            weights=args.weights,
            model=args.model,
            diameter=args.diameter,
            match_pixel_size=args.match_pixel_size,
            device=args.device,
            precision=args.precision,
            thresholds=_thresholds(args),
            normalisation=args.normalisation,
            invert=args.invert,
            opts=args.opts,
            formats=_formats(args),
            plane=_plane(args.plane),
            channels=_channels(args.channels),
            scene=None if args.scene is None else _number_or_name(f"--scene {args.scene}", args.scene),
            project=args.project,
            level=args.level,
            measure=_measures(args),
            class_name=args.class_name,
            pixel_size=args.pixel_size,
            batch=args.batch,
            tile=args.tile,
            overlap=_overlap(args),
            tissue=_tissue(args),
        )
    except InvalidOption as error:
        raise InputError(f"--{error.option.replace('_', '-')} {error.fault}") from error


def _diameter(text: str) -> float | str:
    """A number, or auto."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give pixels, or auto") from None


def _thresholds(args: argparse.Namespace) -> str | dict[str, float] | None:
    """A file of them, or that of the class score."""
    from pffnet_d2.config.values import check_value

    if args.threshold is None:
        return args.thresholds or None
    if args.thresholds:
        raise InputError("--threshold and --thresholds: give one of them")
    check_value("MODEL.PFFNET.LABEL_MAP.SCORE_THRESH", args.threshold, "--threshold")
    return {"SCORE_THRESH": args.threshold}


def _overlap(args: argparse.Namespace) -> int | str:
    """Pixels, or auto."""
    if not args.overlap or args.overlap == "auto":
        overlap: int | str = "auto"
    else:
        try:
            overlap = whole_number(args.overlap)
        except ValueError:
            raise InputError(f"--overlap {args.overlap}: give pixels, or auto") from None
    if args.overlap and args.tile is None:
        raise InputError("--overlap is that of tiles; give --tile too, such as --tile 1024")
    return overlap


def _tissue(args: argparse.Namespace) -> str | None:
    if args.tissue and args.tile is None:
        raise InputError("--tissue leaves out tiles; give --tile too, such as --tile 1024")
    tissue: str | None = args.tissue
    return tissue


def _formats(args: argparse.Namespace) -> list[str]:
    """The formats; options of tables add csv."""
    formats: list[str] = (args.format or (WHOLE if args.tile is None else TILED)).split(",")
    return [*formats, "csv"] if _measures(args) and "csv" not in formats else formats


def _measures(args: argparse.Namespace) -> Measures | None:
    """What tables say; None if no option of tables is given."""
    from pffnet_d2.inference.export.measure import Measures

    if args.well is not None and args.table is None:
        raise InputError("--well is for the summary of a table; give --table too, such as --table all.csv")
    if args.measure is None and args.ring is None and args.table is None:
        return None
    if args.ring is not None and args.ring < 1:
        raise InputError(f"--ring {args.ring}: give its width in pixels, such as 5")
    return Measures.parse(args.measure, args.ring or 0)


def _plane(text: str | None) -> dict[str, int] | int | str | None:
    """``3``, ``Z=3,T=0`` or ``all``."""
    if text is None or text == "all":
        return text
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


def _channels(text: str | None) -> list[int | str] | None:
    """Numbers or names with commas between them."""
    if text is None:
        return None
    return [_number_or_name(f"--channels {text}", part) for part in text.split(",")]


def _number_or_name(option: str, text: str) -> int | str:
    """A whole number, or a name, which has a letter. Raises InputError, beginning with ``option``, for other text."""
    try:
        return whole_number(text)
    except ValueError:
        if any(character.isalpha() for character in text):
            return text.strip()
        raise InputError(f"{option}: give numbers from 0 or names, with commas between several channels") from None
