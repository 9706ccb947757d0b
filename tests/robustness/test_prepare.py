"""``pffnet prepare`` and bad input: arguments, and every publisher's layout with one thing wrong."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.readers import layouts
from tests.robustness.case import Case, by_name
from tests.robustness.publishers import (
    COLOURED,
    LABELS,
    PAIR,
    SQUARE,
    add,
    bbbc039,
    consep,
    cpm15,
    cpm17,
    cut,
    cvppp,
    dsb2018,
    dsb2018_test,
    kumar,
    of,
    put,
    row,
    tnbc,
    without,
    xml,
)


def zip_of_rubbish(folder: Path) -> None:
    (folder / "source").mkdir()
    (folder / "source" / "stage1_train.zip").write_bytes(b"PK\3\4 and then nothing")


def zip_pointing_outside(folder: Path) -> None:
    (folder / "source").mkdir()
    with zipfile.ZipFile(folder / "source" / "images.zip", "w") as archive:
        archive.writestr("../evil.tif", b"")


def zip_without_names(folder: Path) -> None:
    (folder / "source").mkdir()
    with zipfile.ZipFile(folder / "source" / "images.zip", "w") as archive:
        archive.writestr(".", b"")


def huge(png: bytes) -> bytes:
    """It says that it has 100,000 x 100,000 pixels."""
    head = png[12:16] + (100_000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]


ARGUMENTS = [
    Case("zip whose file has no name", of("own", "--name mine"), ("images.zip", "'.'"), zip_without_names),
    row("unknown data set", "prepare no-such --out root", "no-such | bbbc039 | phantoms"),
    row("option without value", "prepare own --option group", "--option group | KEY=VALUE"),
    row("no source", "prepare tnbc --out root", "tnbc needs --source"),
    row("source that is not there", of("tnbc"), "source: no such folder"),
    Case("source that is a file", of("tnbc"), ("source: no such folder",), lambda f: (f / "source").write_text("")),
    Case("empty source", of("dsb2018"), ("source: holds no files",), lambda f: (f / "source").mkdir()),
    row("unknown split", of("kumar", "--splits dev"), "unknown split 'dev' of kumar | test_seen", kumar),
    row("unknown scheme", of("kumar", "--scheme naylor"), "'naylor' of kumar | hovernet", kumar),
    row("scheme of a reader without", of("cpm15", "--scheme a"), "scheme 'a' of cpm15 | has none", cpm15),
    row("unknown option", of("tnbc", "--option size=3"), "option 'size' of tnbc | min_size", tnbc),
    row("option of a reader without", of("cpm15", "--option a=b"), "option 'a' of cpm15 | has none", cpm15),
    row("option that is not a number", of("tnbc", "--option min_size=x"), "min_size=x | whole number", tnbc),
    row("option neither true nor false", of("dsb2018", "--option partial=1"), "partial=1 | true or", dsb2018),
    row("fold without folds", of("tnbc", "--fold 0"), "--fold 0 needs --folds", tnbc),
    row("fold beyond the folds", of("tnbc", "--folds 2 --fold 2"), "--fold 2 | give 0 to 1", tnbc),
    row("no folds", of("tnbc", "--folds 0"), "--folds 0 | give at least 2", tnbc),
    row("more folds than patients", of("tnbc", "--folds 3"), "--folds 3 | give 2 to 2", tnbc),
    row("folds and splits", of("tnbc", "--folds 2 --splits val"), "either --splits or --folds", tnbc),
    row("negative seed", of("tnbc", "--folds 2 --seed -1"), "--seed -1 | give 0 or a larger whole number", tnbc),
    row("count of 0", "prepare phantoms --count 0 --out root", "count 0 | at least one"),
    row("folds of phantoms", "prepare phantoms --folds 2 --out root", "phantoms have no schemes, options or folds"),
    row("split of phantoms", "prepare phantoms --splits test --out root", "'test' of phantoms | train, val"),
    row("no name", of("own"), "own needs --name", tnbc),
    row("name that is a path", of("own", "--name ../up"), "--name '../up' | letters, digits", tnbc),
    row("name of a published one", of("own", "--name kumar"), "--name kumar | choose another", tnbc),
    Case(
        "out that is a file",
        "prepare phantoms --count 1 --out root",
        ("root/phantoms", "choose another --out"),
        lambda folder: (folder / "root").write_text("mine"),
    ),
    Case(
        "split that is somebody's folder",
        "prepare phantoms --count 1 --splits val --force --out root",
        ("root/phantoms/val", "was not made by pffnet prepare"),
        lambda folder: layouts.write(folder / "root/phantoms/val", {"thesis.txt": b"years of work"}),
    ),
]

HERE = "prepare tnbc --source . --out root"  # files at its top lie in no folder that has a name
LONG = b"one," + b"12 3 " * 30_000 + b",8,10,Public\n"

KUMAR = [
    row(
        "kumar: xml of unknown encoding",
        of("kumar"),
        "G9-6363 | not complete XML",
        kumar,
        put("6363-01Z-00-DX1.xml", b'<?xml version="1.0" encoding="klingon"?><a/>'),
    ),
    row("kumar: no image", of("kumar"), "source | none of the splits train, val", kumar, without(".tif")),
    row(
        "kumar: no xml",
        of("kumar"),
        "TCGA-50-5931 | .xml of split val | missing",
        kumar,
        without("5931-01Z-00-DX1.xml"),
    ),
    row(
        "kumar: image twice",
        of("kumar"),
        "copy/TCGA-50-5931 | same name",
        kumar,
        add("copy/TCGA-50-5931-01Z-00-DX1.tif", b""),
    ),
    row(
        "kumar: truncated image",
        of("kumar"),
        "5931-01Z-00-DX1.tif | cannot be read",
        kumar,
        cut("5931-01Z-00-DX1.tif", 60),
    ),
    row(
        "kumar: truncated xml",
        of("kumar"),
        "5931-01Z-00-DX1.xml | not complete XML",
        kumar,
        cut("5931-01Z-00-DX1.xml", -200),
    ),
    row(
        "kumar: xml that declares entities",
        of("kumar"),
        "G9-6363 | document type",
        kumar,
        put("6363-01Z-00-DX1.xml", b"<!DOCTYPE a><a/>"),
    ),
    row(
        "kumar: xml without regions",
        of("kumar"),
        "G9-6363 | no region",
        kumar,
        put("6363-01Z-00-DX1.xml", b"<Annotations/>"),
    ),
    row(
        "kumar: vertex that is not a number",
        of("kumar"),
        "G9-6363 | finite",
        kumar,
        put("6363-01Z-00-DX1.xml", xml([*SQUARE, ("nan", 1)])),
    ),
    row(
        "kumar: vertex without Y",
        of("kumar"),
        "G9-6363 | numbers X and Y",
        kumar,
        put("6363-01Z-00-DX1.xml", xml([(1, "high")])),
    ),
    row(
        "kumar: xml of a larger image",
        of("kumar"),
        "G9-6363 | row 700 | 8 x 10",
        kumar,
        put("6363-01Z-00-DX1.xml", xml([*SQUARE, (900, 700)])),
    ),
    row("kumar: offset that is not a number", of("kumar", "--option polygon_offset=nan"), "polygon_offset nan", kumar),
    row("kumar: unknown overlap", of("kumar", "--option overlap=last"), "overlap=last | smaller or first", kumar),
]

TNBC = [
    Case("tnbc: here", HERE, ("none of the splits",), lambda folder: (folder / "note.txt").write_text("")),
    row("tnbc: no truth", of("tnbc"), "Slide_08/08_2.png | GT_08/08_2.png is missing", tnbc, without("GT_08/08_2.png")),
    row("tnbc: truth without image", of("tnbc"), "GT_08/08_2.png | Slide_08", tnbc, without("Slide_08/08_2.png")),
    row(
        "tnbc: image missing",
        of("tnbc"),
        "2 images of patient 07 instead of 3",
        tnbc,
        without("Slide_07/07_3.png"),
        without("GT_07/07_3.png"),
    ),
    row(
        "tnbc: coloured truth",
        of("tnbc"),
        "GT_07/07_1.png | not black and white",
        tnbc,
        put("GT_07/07_1.png", COLOURED),
    ),
    row("tnbc: truncated truth", of("tnbc"), "GT_07/07_1.png | cannot be read", tnbc, cut("GT_07/07_1.png", 60)),
    row(
        "tnbc: another size",
        of("tnbc"),
        "07_1 | 8 x 10 | 5 x 5",
        tnbc,
        put("GT_07/07_1.png", layouts.png(np.eye(5, dtype=np.uint8))),
    ),
    row("tnbc: no patients", of("tnbc"), "none of the splits", lambda: {"note.txt": b""}),
]

BBBC039 = [
    row("bbbc039: no lists", of("bbbc039"), "metadata.zip", lambda: {"images/a.tif": b""}),
    row("bbbc039: image missing", of("bbbc039"), "images/b.tif | training.txt", bbbc039, without("b.tif")),
    row("bbbc039: mask missing", of("bbbc039"), "masks/b.png | training.txt", bbbc039, without("masks/b.png")),
    row(
        "bbbc039: image in no list",
        of("bbbc039"),
        "images/c.tif | in none of the lists",
        bbbc039,
        add("images/c.tif", b""),
    ),
    row(
        "bbbc039: listed twice",
        of("bbbc039"),
        "training.txt | a is listed twice",
        bbbc039,
        put("training.txt", b"a.png\na.png\nb.png\n"),
    ),
    row(
        "bbbc039: list of paths",
        of("bbbc039"),
        "training.txt | '../a' is not a file name",
        bbbc039,
        put("training.txt", b"../a.png\n"),
    ),
    row(
        "bbbc039: grey mask",
        of("bbbc039"),
        "masks/a.png | not a BBBC039 mask",
        bbbc039,
        put("masks/a.png", layouts.png(LABELS.astype(np.uint8))),
    ),
    row(
        "bbbc039: coloured mask",
        of("bbbc039"),
        "masks/a.png | not a BBBC039 mask",
        bbbc039,
        put("masks/a.png", COLOURED),
    ),
    row("bbbc039: truncated image", of("bbbc039"), "images/a.tif", bbbc039, cut("a.tif", 100)),
    Case(
        "bbbc039: zip pointing outside",
        of("bbbc039"),
        ("images.zip", "'../evil.tif' points outside"),
        lambda f: (
            zip_pointing_outside(f),
            layouts.write(f / "source", {k: v for k, v in bbbc039().items() if not k.startswith("images")}),
        ),
    ),
]

DSB2018 = [
    row(
        "dsb2018: runs beyond 64 bits",
        of("dsb2018"),
        "line 2, image one | no whole numbers",
        lambda: dsb2018_test(f"one,{10**30} 3,8,10,Public\n"),
    ),
    row(
        "dsb2018: runs that sum beyond 64 bits",
        of("dsb2018"),
        "line 2, image one | leave the image",
        lambda: dsb2018_test(f"one,{2**63 - 1} {2**63 - 1},8,10,Public\n"),
    ),
    row(
        "dsb2018: image of 10^18 pixels",
        of("dsb2018"),
        "line 2, image one | 1000000000 x 1000000000",
        lambda: dsb2018_test("one,12 3,1000000000,1000000000,Public\n"),
    ),
    row(
        "dsb2018: csv with an endless cell",
        of("dsb2018"),
        "stage1_solution.csv | damaged after line 1",
        dsb2018_test,
        add("stage1_solution.csv", b"ImageId,EncodedPixels,Height,Width,Usage\n" + LONG),
    ),
    row(
        "dsb2018: row that ends early",
        of("dsb2018"),
        "line 2, image one | Height and Width",
        lambda: dsb2018_test("one\n"),
    ),
    row(
        "dsb2018: no masks", of("dsb2018"), "two.png | has no masks", dsb2018, without("two1.png"), without("two2.png")
    ),
    row(
        "dsb2018: masks without image", of("dsb2018"), "two has masks but no image", dsb2018, without("images/two.png")
    ),
    row("dsb2018: image twice", of("dsb2018"), "one.png | there twice", dsb2018, add("again/one/images/one.png", b"")),
    row(
        "dsb2018: empty mask",
        of("dsb2018"),
        "one2.png | holds no object",
        dsb2018,
        put("one2.png", layouts.png(np.zeros((8, 10), np.uint8))),
    ),
    row(
        "dsb2018: masks of two sizes",
        of("dsb2018"),
        "one2.png | 5 x 5 | 8 x 10",
        dsb2018,
        put("one2.png", layouts.png(np.eye(5, dtype=np.uint8))),
    ),
    row(
        "dsb2018: 16-bit mask",
        of("dsb2018"),
        "one2.png | uint16",
        dsb2018,
        put("one2.png", layouts.png(LABELS.astype(np.uint16))),
    ),
    row(
        "dsb2018: unknown type of image",
        of("dsb2018", "--option image_type=xray"),
        "image_type=xray | fluorescence",
        dsb2018,
    ),
    row(
        "dsb2018: unknown normalisation",
        of("dsb2018", "--option normalisation=none"),
        "normalisation=none | as_is or stretch",
        dsb2018,
    ),
    row(
        "dsb2018: a part of objectguided",
        of("dsb2018", "--scheme objectguided --splits train"),
        "objectguided train missing: 402 | partial=true",
        dsb2018,
    ),
    row("dsb2018: no images", of("dsb2018"), "no <id>/images/<id>.png", lambda: {"note.txt": b""}),
    Case("dsb2018: zip of rubbish", of("dsb2018"), ("stage1_train.zip", "not a zip file"), zip_of_rubbish),
    row(
        "dsb2018: csv without column",
        of("dsb2018"),
        "stage1_solution.csv | no column EncodedPixels",
        lambda: dsb2018_test(header="ImageId,Runs,Height,Width"),
    ),
    row("dsb2018: csv without row", of("dsb2018"), "one.png | has no row", lambda: dsb2018_test("")),
    row(
        "dsb2018: row without image",
        of("dsb2018"),
        "stage1_solution.csv | 1, two first",
        lambda: dsb2018_test("one,12 3,8,10,Public\ntwo,12 3,8,10,Public\n"),
    ),
    row(
        "dsb2018: runs leave the image",
        of("dsb2018"),
        "line 2, image one | leave the image",
        lambda: dsb2018_test("one,79 3,8,10,Public\n"),
    ),
    row(
        "dsb2018: runs that are words",
        of("dsb2018"),
        "line 2, image one | no whole numbers",
        lambda: dsb2018_test("one,a few,8,10,Public\n"),
    ),
    row(
        "dsb2018: runs without a length",
        of("dsb2018"),
        "line 2, image one | leave the image",
        lambda: dsb2018_test("one,12,8,10,Public\n"),
    ),
    row(
        "dsb2018: height that is a word",
        of("dsb2018"),
        "line 2, image one | Height and Width",
        lambda: dsb2018_test("one,12 3,tall,10,Public\n"),
    ),
    row(
        "dsb2018: csv of another size",
        of("dsb2018"),
        "one | 8 x 10 | 9 x 10",
        lambda: dsb2018_test("one,12 3,9,10,Public\n"),
    ),
    row(
        "dsb2018: rows of two sizes",
        of("dsb2018"),
        "line 3, image one | another size",
        lambda: dsb2018_test("one,12 3,8,10,Public\none,12 3,9,10,Public\n"),
    ),
]

A2 = of("cvppp", "--scheme a2")
CVPPP = [
    row("cvppp: another subset", of("cvppp", "--scheme a3"), "folder A3", cvppp),
    row(
        "cvppp: plants of a1 missing",
        of("cvppp"),
        "A1/plant002_rgb of split train is missing",
        lambda: layouts.cvppp_files({"A1/plant001": PAIR}),
    ),
    row(
        "cvppp: label without image",
        A2,
        "plant002_label.png | A2/plant002_rgb is missing",
        cvppp,
        without("plant002_rgb.png"),
    ),
    row("cvppp: coloured label", A2, "plant002_label.png | in colours", cvppp, put("plant002_label.png", COLOURED)),
    row(
        "cvppp: grey rendering",
        A2,
        "plant002_label.png | a rendering",
        cvppp,
        put("plant002_label.png", layouts.png((LABELS * 60).astype(np.uint8))),
    ),
    row("cvppp: truncated label", A2, "plant002_label.png | cannot be read", cvppp, cut("plant002_label.png", 60)),
    row("cvppp: plant twice", A2, "plant001_rgb.png | is the same plant", cvppp, add("copy/A2/plant001_rgb.png", b"")),
    row(
        "cvppp: another size",
        A2,
        "A2_plant002 | 8 x 10 | 5 x 5",
        cvppp,
        put("plant002_label.png", layouts.png(np.eye(5, dtype=np.uint8))),
    ),
]

CPM = [
    row(
        "cpm15: an image of 10^10 pixels",
        of("cpm15"),
        "image04.png | more than",
        cpm15,
        lambda files: files.update({"CPM15/image04.png": huge(files["CPM15/image04.png"])}),
    ),
    row(
        "cpm15: an image missing",
        of("cpm15"),
        "14 images of cpm15 instead of 15",
        cpm15,
        without("image07.png"),
        without("image07_mask.txt"),
    ),
    row("cpm15: a mask missing", of("cpm15"), "image07.png | image07_mask.txt", cpm15, without("image07_mask.txt")),
    row(
        "cpm15: a mask without image",
        of("cpm15"),
        "image07_mask.txt | image07.png is missing",
        cpm15,
        without("image07.png"),
    ),
    row(
        "cpm15: a mask without size",
        of("cpm15"),
        "image07_mask.txt | `width height`",
        cpm15,
        put("image07_mask.txt", b"0\n0\n1\n"),
    ),
    row(
        "cpm15: a mask of 10^11 pixels",
        of("cpm15"),
        "image07_mask.txt | 999999 x 999999",
        cpm15,
        put("image07_mask.txt", b"999999 999999\n0\n"),
    ),
    row(
        "cpm15: a mask cut short",
        of("cpm15"),
        "image07_mask.txt | for the 8 x 10 pixels",
        cpm15,
        cut("image07_mask.txt", 50),
    ),
    row(
        "cpm15: a mask with words",
        of("cpm15"),
        "image07_mask.txt | not one number",
        cpm15,
        put("image07_mask.txt", b"10 8\nleaf\n"),
    ),
    row(
        "cpm15: half ids",
        of("cpm15"),
        "image07_mask.txt | no whole numbers",
        cpm15,
        put("image07_mask.txt", b"10 8\n" + b"0.5\n" * 80),
    ),
    row(
        "cpm15: negative ids",
        of("cpm15"),
        "image07_mask.txt | negative labels",
        cpm15,
        put("image07_mask.txt", b"10 8\n" + b"-1\n" * 80),
    ),
    row("cpm17: no folder of a split", of("cpm17"), "no folder train or test", cpm15),
    row(
        "cpm17: an image missing",
        of("cpm17"),
        "31 images of cpm17 train instead of 32",
        cpm17,
        without("Images/image_07.png"),
        without("image_07.mat"),
    ),
    row("cpm17: a label file of rubbish", of("cpm17"), "image_07.mat | MATLAB", cpm17, put("image_07.mat", b"rubbish")),
    row(
        "cpm17: a label file of another kind",
        of("cpm17"),
        "image_07.mat | holds no inst_map",
        cpm17,
        put("image_07.mat", layouts.mat(LABELS, "type_map")),
    ),
    row("consep: a truncated label file", of("consep"), "test_3.mat | MATLAB", consep, cut("test_3.mat", 180)),
    row(
        "consep: another size",
        of("consep"),
        "test_3 | 8 x 10 | 4 x 10",
        consep,
        put("test_3.mat", layouts.mat(LABELS[:4])),
    ),
]

CASES = [*ARGUMENTS, *KUMAR, *TNBC, *BBBC039, *DSB2018, *CVPPP, *CPM]


@by_name(CASES)
def test_one_line(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def test_hdf5(tmp_path: Path, check: Callable[[Case], None]) -> None:
    """The challenge's files without their truth, and damaged ones."""
    pytest.importorskip("h5py")

    def damaged(folder: Path) -> None:
        layouts.cvppp_hdf5(folder / "source", {"A2/plant001": PAIR})
        file = folder / "source" / "CVPPP2017_training_truth.h5"
        file.write_bytes(file.read_bytes()[:600])

    check(Case("damaged", A2, ("CVPPP2017_training_truth.h5", "cannot be read as HDF5"), damaged))
    (tmp_path / "source" / "CVPPP2017_training_truth.h5").unlink()
    check(Case("no truth", A2, ("CVPPP2017_training_images.h5", "download CVPPP2017_training_truth.h5")))
