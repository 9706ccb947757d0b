from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pffnet_d2.data.catalog import load
from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.prepared import PreparedSplit
from pffnet_d2.data.readers import kumar
from pffnet_d2.errors import InputError
from pffnet_d2.masks.coco import annotations_to_label_map, annotations_to_masks


def ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of the objects of equal ids."""
    ids = np.arange(1, max(a.max(), b.max()) + 1)[:, None, None]
    return ((a == ids) & (b == ids)).sum((1, 2)) / ((a == ids) | (b == ids)).sum((1, 2))


def even_odd(vertices: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether a ray from (x, y) to the right crosses the polygon an odd number of times."""
    inside = np.zeros(x.shape, np.bool_)
    for (xa, ya), (xb, yb) in zip(vertices, np.roll(vertices, -1, 0), strict=True):
        if ya != yb:
            inside ^= ((ya > y) != (yb > y)) & (x < xa + (xb - xa) * (y - ya) / (yb - ya))
    return inside


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


@pytest.fixture
def one(tmp_path: Path, layouts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., kumar.Record]:
    """The record of one image of 10 x 12 pixels with the given xml."""

    def record(xml: bytes, **options: float) -> kumar.Record:
        monkeypatch.setitem(kumar.LISTS["kumar"], "val", ["a"])
        files = {"a.tif": layouts.tiff_lzw(np.zeros((10, 12, 3), np.uint8)), "a.xml": xml}
        (found,) = kumar.records(layouts.write(tmp_path, files), "val", **options)
        return found

    return record


def test_lists() -> None:
    sizes = {scheme: [len(names) for names in lists.values()] for scheme, lists in kumar.LISTS.items()}
    assert sizes == {"kumar": [12, 4, 8, 6], "hovernet": [16, 8, 6], "monuseg2018": [30, 14]}
    ids = {scheme: [i for names in lists.values() for i in names] for scheme, lists in kumar.LISTS.items()}
    assert all(len(set(i)) == len(i) for i in ids.values())
    assert set(ids["kumar"]) == set(ids["hovernet"]) == set(kumar.LISTS["monuseg2018"]["train"])
    assert kumar.LISTS["kumar"]["test_unseen"] == kumar.LISTS["hovernet"]["test_unseen"]
    leaked = set(kumar.LISTS["kumar"]["test_seen"]) & set(kumar.LISTS["hovernet"]["train"])
    assert {i[5:12] for i in leaked} == {"E2-A14V", "21-5784", "G9-6362"}


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_read_what_was_written(tmp_path: Path, layouts: ModuleType, form: str) -> None:
    names = kumar.LISTS["kumar"]["val"]
    written = {name: layouts.apart(i, (90, 100)) for i, name in enumerate(names)}
    extra = {"TCGA-XS-A8TJ-01Z-00-DX1": layouts.apart(9)}  # of the later download, in no list
    root = layouts.write(tmp_path, layouts.kumar_files({**written, **extra}), form)
    assert kumar.splits(root) == ("val",)
    found = list(kumar.records(root, "val"))
    assert [r.image_id for r in found] == names
    assert [r.split_group for r in found] == ["TCGA-AR-A1AS", "TCGA-HE-7130", "TCGA-50-5931", "TCGA-G9-6363"]
    for record, (image, labels) in zip(found, written.values(), strict=True):
        np.testing.assert_array_equal(record.read_image(), image)
        read = record.read_label_map()
        assert read.dtype == np.int32
        assert read.max() == labels.max()
        assert ious(read, labels).min() >= 0.99
        assert len(record.read_masks()) == labels.max()
    assert sum(int(labels.max()) for _, labels in written.values()) > 20


def test_schemes(tmp_path: Path, layouts: ModuleType) -> None:
    names = kumar.LISTS["monuseg2018"]["test"]
    root = layouts.write(tmp_path, layouts.kumar_files({n: layouts.apart(i) for i, n in enumerate(names)}, test=True))
    assert kumar.splits(root, scheme="monuseg2018") == ("test",)
    assert [r.image_id for r in kumar.records(root, "test", scheme="monuseg2018")] == names
    with pytest.raises(InputError, match="all images of none of the splits train, val, test_seen, test_unseen"):
        kumar.splits(root)
    with pytest.raises(InputError, match="unknown split scheme 'naylor'"):
        kumar.splits(root, scheme="naylor")


def test_pixel_rule(one: Callable[..., kumar.Record]) -> None:
    """poly2mask: a square from pixel centre 3 to pixel centre 6 (1-based) has the pixels 4, 5, 6: left and upper edge
    open, right and lower closed."""
    xml = b'<Annotations><Annotation><Regions><Region NegativeROA="0"><Vertices>' + (
        b'<Vertex X="3" Y="3"/><Vertex X="6" Y="3"/><Vertex X="6" Y="6"/><Vertex X="3" Y="6"/>'
        b"</Vertices></Region></Regions></Annotation></Annotations>"
    )
    expected = np.zeros((10, 12), np.int32)
    expected[3:6, 3:6] = 1  # 0-based
    np.testing.assert_array_equal(one(xml).read_label_map(), expected)
    expected[:] = 0
    expected[3:6, 3:6] = 1  # from 2.5 to 5.5: the centres 3, 4, 5
    np.testing.assert_array_equal(one(xml, polygon_offset=-0.5).read_label_map(), expected)
    y0, x0, mask = one(xml, polygon_offset=0.4).read_masks()[0]
    assert (y0, x0, mask.shape) == (4, 4, (3, 3))


def test_overlap_keeps_regions_whole(one: Callable[..., kumar.Record], layouts: ModuleType) -> None:
    small, large, duplicate = (
        rectangle(3.5, 3.5, 5.5, 5.5),
        rectangle(1.5, 1.5, 8.5, 7.5),
        rectangle(3.5, 3.5, 5.5, 5.5),
    )
    record = one(layouts.aperio_xml([small, large, duplicate]))
    assert [(y, x, m.shape, int(m.sum())) for y, x, m in record.read_masks()] == [
        (3, 3, (2, 2), 4),
        (1, 1, (6, 7), 42),
        (3, 3, (2, 2), 4),
    ]
    expected = np.zeros((10, 12), np.int32)
    expected[1:7, 1:8] = 2
    expected[3:5, 3:5] = 1  # the first of the equal ones: the other is hidden and has no id
    np.testing.assert_array_equal(record.read_label_map(), expected)
    # The large one first: it hides the others.
    record = one(layouts.aperio_xml([large, small, duplicate]))
    np.testing.assert_array_equal(record.read_label_map(), expected > 0)


def test_overlap_with_the_smaller_on_top(one: Callable[..., kumar.Record], layouts: ModuleType) -> None:
    small, large = rectangle(3.5, 3.5, 5.5, 5.5), rectangle(1.5, 1.5, 8.5, 7.5)
    expected = np.zeros((10, 12), np.int32)
    expected[1:7, 1:8] = 1
    expected[3:5, 3:5] = 3  # of equal ones the later
    record = one(layouts.aperio_xml([large, small, small]), overlap="smaller")
    np.testing.assert_array_equal(record.read_label_map(), np.where(expected == 3, 2, expected))
    with pytest.raises(InputError, match="option overlap=last: give smaller or first"):
        one(b"", overlap="last")


@pytest.mark.parametrize("overlap", ["first", "smaller"])
def test_what_is_prepared_has_the_label_map_of_the_reader(
    tmp_path: Path, one: Callable[..., kumar.Record], layouts: ModuleType, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    """All that is evaluated is made of the json: its annotations are whole and laid as the reader lays them."""
    outlines = [rectangle(1.5, 1.5, 8.5, 7.5), rectangle(3.5, 3.5, 9.5, 5.5), rectangle(7.5, 0.5, 9.5, 8.5)]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "out"))
    record = one(layouts.aperio_xml(outlines))
    expected = one(layouts.aperio_xml(outlines), overlap=overlap).read_label_map()
    prepare("kumar", tmp_path, tmp_path / "out", Selection(splits=["val"], options={"overlap": overlap}))
    (image,) = PreparedSplit(tmp_path / "out/kumar/val").labelled_images()
    np.testing.assert_array_equal(image.truth(), expected)
    (entry,) = load("kumar_val")
    np.testing.assert_array_equal(annotations_to_label_map(entry["annotations"], 10, 12), expected)
    whole = annotations_to_masks(entry["annotations"], 10, 12)
    assert [int(m.sum()) for _, _, m in whole] == [int(m.sum()) for _, _, m in record.read_masks()]


def test_report_groups_are_the_organs_not_the_patients(tmp_path: Path, layouts: ModuleType) -> None:
    pairs = {name: layouts.apart(0) for split in ("test_seen", "test_unseen") for name in kumar.LISTS["kumar"][split]}
    root = layouts.write(tmp_path / "in", layouts.kumar_files(pairs))
    prepare("kumar", root, tmp_path, Selection(count=2))
    prepare("kumar", root, tmp_path, Selection(folds=2, fold=0))
    for split, group in (("test_seen", "seen"), ("test_unseen", "unseen"), ("fold0of2_val", "")):
        images = json.loads((tmp_path / "kumar" / split / "instances.json").read_text())["images"]
        assert {image["report_group"] for image in images} == {group}
        assert all(image["split_group"] == image["file_name"][:12] for image in images)


def test_outside_strokes_and_erasers(one: Callable[..., kumar.Record], layouts: ModuleType) -> None:
    outlines = [
        rectangle(-2.9, -2.9, 3.5, 3.5),  # cut at the corner of the image
        [(5.0, 5.0), (7.0, 7.0)],  # a stroke
        rectangle(20, 11, 24, 14),  # wholly outside: no object
        rectangle(6.5, 4.5, 12.9, 12.1),  # cut at the other corner
        rectangle(8.5, 6.5, 10.5, 8.5),  # an eraser in it
    ]
    record = one(layouts.aperio_xml([*outlines[:2], *outlines[3:]], negative=[3]))
    expected = np.zeros((10, 12), np.int32)
    expected[:3, :3] = 1
    expected[4:, 6:] = 2
    expected[6:8, 8:10] = 0
    np.testing.assert_array_equal(record.read_label_map(), expected)
    assert [int(m.sum()) for _, _, m in record.read_masks()] == [9, 32]
    assert kumar.fill(np.array(outlines[2]), 10, 12) is None


def test_an_eraser_may_take_all(one: Callable[..., kumar.Record], layouts: ModuleType) -> None:
    record = one(layouts.aperio_xml([rectangle(2, 2, 4, 4), rectangle(1, 1, 6, 6)], negative=[1]))
    assert record.read_masks() == []
    assert not record.read_label_map().any()


BOMB = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "1"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;&x;&x;">]>
<Annotations><Region><Vertices><Vertex X="&y;" Y="1"/></Vertices></Region></Annotations>"""
EXTERNAL = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><Annotations><Region>&x;</Region></Annotations>'


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (BOMB, "declares a document type"),
        (EXTERNAL, "declares a document type"),
        (b'<!DOCTYPE a SYSTEM "b.dtd"><Annotations/>', "declares a document type"),
        (b"<Annotations><Annotation><Regions/></Annotation></Annotations>", "no region with at least three vertices"),
        (b'<Annotations><Region><Vertex X="1" Y="2"/></Region></Annotations>', "no region with at least three"),
        (b'<Annotations><Region><Vertex X="1"/></Region></Annotations>', "vertex without numbers X and Y"),
        (b'<Annotations><Region><Vertex X="1" Y="y"/></Region></Annotations>', "vertex without numbers X and Y"),
        (b"<Annotations><Region>" + 3 * b'<Vertex X="1" Y="nan"/>' + b"</Region></Annotations>", "finite number"),
        (b"<Annotations><Region>", "not complete XML"),
        (b"", "not complete XML"),
        (b"<Annotations>&undeclared;</Annotations>", "not complete XML"),
    ],
)
def test_bad_xml(one: Callable[..., kumar.Record], xml: bytes, words: str) -> None:
    for read in (one(xml).read_label_map, one(xml).read_masks):
        with pytest.raises(InputError, match=rf"a\.xml: .*{words}") as raised:
            read()
        assert "\n" not in str(raised.value)


def test_xml_of_another_image(one: Callable[..., kumar.Record], layouts: ModuleType) -> None:
    with pytest.raises(InputError, match=r"a\.xml: outlines reach to row 300, column 400, the image has 10 x 12"):
        one(layouts.aperio_xml([rectangle(2, 2, 400, 300)])).read_label_map()


def test_huge_coordinates_are_refused_at_once(one: Callable[..., kumar.Record], layouts: ModuleType) -> None:
    with pytest.raises(InputError, match="outlines reach to"):
        one(layouts.aperio_xml([rectangle(2, 2, 1e15, 1e15)])).read_masks()
    record = one(layouts.aperio_xml([rectangle(-1e15, -1e15, 4.5, 4.5)]))
    assert record.read_label_map().sum() == 16


def test_missing_and_damaged_files(tmp_path: Path, layouts: ModuleType) -> None:
    names = kumar.LISTS["kumar"]["val"]
    files = layouts.kumar_files({name: layouts.apart(0) for name in names})
    (tif,) = (path for path in files if names[0] in path and path.endswith(".tif"))
    (xml,) = (path for path in files if names[1] in path and path.endswith(".xml"))
    root = layouts.write(tmp_path / "a", {k: v for k, v in files.items() if k != xml})
    with pytest.raises(InputError, match=rf"{names[1]}\.xml of split val \(kumar\) is missing"):
        next(kumar.records(root, "val"))
    with pytest.raises(InputError, match=r"\.tif of split train \(kumar\) is missing"):
        next(kumar.records(root, "train"))
    with pytest.raises(InputError, match="unknown split 'test'"):
        next(kumar.records(root, "test"))
    with pytest.raises(InputError, match="polygon_offset nan: give pixels"):
        next(kumar.records(root, "val", polygon_offset=float("nan")))
    root = layouts.write(tmp_path / "b", {**files, tif: files[tif][:200], xml: files[xml][:-300]})
    first, second, *_ = kumar.records(root, "val")
    with pytest.raises(InputError, match=rf"{names[0]}\.tif: cannot be read as an image"):
        first.read_image()
    with pytest.raises(InputError, match=rf"{names[1]}\.xml: not complete XML"):
        second.read_masks()
    root = layouts.write(tmp_path / "c", {**files, f"copy/{names[2]}.tif": b""})
    with pytest.raises(InputError, match="has the same name; remove one of them"):
        kumar.splits(root)


def test_real_data(pffnet_data: Callable[[str], Path]) -> None:
    """Regions per image, and the pixels of two images against another rasterisation."""
    root = pffnet_data("kumar")
    assert kumar.splits(root)[:2] == ("train", "val")
    found = {r.image_id[5:12]: r for split in ("train", "val") for r in kumar.records(root, split)}
    assert len(found) == 16
    counts = {"A7-A13E": 314, "AR-A1AK": 432, "50-5931": 444}
    for name, count in counts.items():
        assert len(found[name].read_masks()) == count  # of 314, 433 and 445: one without a pixel, one stroke
    differing = pixels = 0
    for name in ("A7-A13E", "50-5931"):
        assert found[name].read_image().shape == (1000, 1000, 3)
        annotation = found[name].read_label_map.args[0]
        outlines = [v - 0.99 for _, v in kumar.parse_outlines(annotation.read(), str(annotation))]
        for (y0, x0, mask), vertices in zip(found[name].read_masks(), outlines, strict=True):
            y, x = np.mgrid[y0 - 1 : y0 + mask.shape[0] + 1, x0 - 1 : x0 + mask.shape[1] + 1]
            expected = even_odd(vertices, x, y) & (x >= 0) & (y >= 0) & (x < 1000) & (y < 1000)
            differing += np.count_nonzero(np.pad(mask, 1) != expected)
            pixels += np.count_nonzero(expected)
    assert pixels > 300_000
    assert differing < 0.001 * pixels  # centres exactly on a diagonal edge: inside for us, either for the other
