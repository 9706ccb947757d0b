from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
from PIL import Image

from pffnet_d2.data.prepare import Selection, prepare
from pffnet_d2.data.readers import own
from pffnet_d2.errors import InputError
from pffnet_d2.imaging.normalisation import AS_IS, AUTO, Normalisation
from pffnet_d2.imaging.read import MAX_PIXELS
from pffnet_d2.masks.coco import annotations_to_label_map, label_map_to_annotations

Pair = tuple[np.ndarray, np.ndarray]
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def pairs(layouts: ModuleType) -> dict[str, Pair]:
    return {f"{plate}/cell {i}.v2": layouts.apart(i, (40, 50 + i)) for i, plate in enumerate("AABBBCCDDD")}


def tiff(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array)
    return buffer.getvalue()


def prepared(source: Path, root: Path, **options: str) -> dict[str, Any]:
    """The json of "mine" under ``root``, one split "all" of the images of ``source``."""
    prepare("own", source, root, Selection(options={"fractions": "all=1", **options}), dataset="mine")
    contents: dict[str, Any] = json.loads((root / "mine/all/instances.json").read_text())
    return contents


def palette(layouts: ModuleType, labels: np.ndarray) -> bytes:
    content: bytes = layouts.png(labels.astype(np.uint8), "P")
    return content


def labelled(layouts: ModuleType, pairs: dict[str, Pair], form: str) -> Files:
    """Images and their label images."""
    encode = {
        "8": lambda labels: layouts.png(labels.astype(np.uint8)),
        "16": lambda labels: layouts.png(labels.astype(np.uint16)),
        "tif 32": lambda labels: tiff(labels.astype(np.int32)),
        "tif float": lambda labels: tiff(labels.astype(np.float32)),
        "palette": lambda labels: palette(layouts, labels),
        "rgb": lambda labels: layouts.png(np.repeat(labels.astype(np.uint8)[..., None], 3, axis=2)),
    }[form]
    ending = ".tif" if "tif" in form else ".png"
    files = {f"images/{name}.png": layouts.png(image) for name, (image, _) in pairs.items()}
    return files | {f"labels/{name}{ending}": encode(labels) for name, (_, labels) in pairs.items()}


def check(root: Path, pairs: dict[str, Pair], **options: Any) -> dict[str, list[str]]:
    """Every image reads as written; the ids by split."""
    ids = {}
    for split in own.splits(root, **options):
        found = list(own.records(root, split, **options))
        ids[split] = [record.image_id for record in found]
        for record in found:
            image, labels = next(pair for name, pair in pairs.items() if name.replace("/", "_") == record.image_id)
            np.testing.assert_array_equal(record.read_image()[..., :3], image)
            assert record.read_label_map is not None
            read = record.read_label_map()
            assert read.dtype == np.int32
            np.testing.assert_array_equal(read, labels)
    assert sorted(i for split in ids.values() for i in split) == sorted(name.replace("/", "_") for name in pairs)
    return ids


@pytest.mark.parametrize("form", ["8", "16", "tif 32", "tif float", "palette", "rgb"])
def test_label_images(tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair], form: str) -> None:
    root = layouts.write(tmp_path, labelled(layouts, pairs, form))
    ids = check(root, pairs)
    assert {split: len(found) for split, found in ids.items()} == {"train": 8, "val": 2}


@pytest.mark.parametrize("form", ["zip", "two zips", "nested"])
def test_archives(tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair], form: str) -> None:
    files = labelled(layouts, pairs, "8")
    if form == "zip":
        layouts.write(tmp_path, files, "zip")
    elif form == "nested":
        layouts.write(tmp_path / "my data" / "export", files)
    else:
        for part in ("images", "labels"):
            layouts.write(tmp_path / part, {k: v for k, v in files.items() if k.startswith(part)}, "zip")
            (tmp_path / part / "download.zip").rename(tmp_path / f"{part}.zip")
            (tmp_path / part).rmdir()
    check(tmp_path, pairs)


@pytest.mark.parametrize("each", [False, True])
def test_masks_of_one_object(tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair], each: bool) -> None:
    chosen = {name: pair for name, pair in pairs.items() if pair[1].any()}
    assert len(chosen) > 3
    files = {}
    for name, (image, labels) in chosen.items():
        stem = name.rsplit("/")[-1]
        files[f"{name}/images/{stem}.png" if each else f"images/{name}.png"] = layouts.png(image)
        for i in range(1, labels.max() + 1):
            place = f"{name}/masks/{i:02d}.png" if each else f"masks/{name}/{i:02d}.png"
            files[place] = layouts.png((labels == i).astype(np.uint8) * 255)
    check(layouts.write(tmp_path, files), chosen)


def coco(pairs: dict[str, Pair], polygons: bool = False) -> dict[str, Any]:
    images, annotations = [], []
    for i, (name, (_, labels)) in enumerate(pairs.items()):
        images.append({"id": 7 * i, "file_name": f"{name}.png", "height": len(labels), "width": labels.shape[1]})
        annotations += label_map_to_annotations(labels, 7 * i, len(annotations) + 1)
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}


@pytest.mark.parametrize("place", ["images", "beside"])
def test_coco(tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair], place: str) -> None:
    base = "images/" if place == "images" else ""
    files = {f"{base}{name}.png": layouts.png(image) for name, (image, _) in pairs.items()}
    files["truth.json"] = json.dumps(coco(pairs)).encode()
    root = layouts.write(tmp_path, files)
    check(root, pairs)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="2 json files there; name the COCO json"):
        own.splits(root)
    check(root, pairs, coco="truth.json")


def test_coco_objects_overlap(tmp_path: Path, layouts: ModuleType) -> None:
    """The annotations keep both whole; the label map has the smaller on top; a polygon, a crowd, one without pixels."""
    big, small = np.zeros((9, 12), np.uint8), np.zeros((9, 12), np.uint8)
    big[1:8, 1:9], small[2:4, 7:11] = 1, 1
    rle = mask_util.encode(np.asfortranarray(small))
    square = [[1, 1, 9, 1, 9, 8, 1, 8]]
    annotations: list[dict[str, Any]] = [
        {"id": 1, "image_id": 3, "category_id": 5, "segmentation": square, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 6, "segmentation": {"size": [9, 12], "counts": rle["counts"].decode()}},
        {"id": 3, "image_id": 3, "category_id": 6, "segmentation": square, "iscrowd": 1},
        {"id": 4, "image_id": 3, "category_id": 6, "segmentation": {"size": [9, 12], "counts": [108]}},
    ]
    data = {"images": [{"id": 3, "file_name": "x.png", "height": 9, "width": 12}], "annotations": annotations}
    files = {"images/x.png": layouts.png(np.zeros((9, 12, 3), np.uint8)), "a.json": json.dumps(data).encode()}
    made = prepared(layouts.write(tmp_path / "in", files), tmp_path)
    assert [a["area"] for a in made["annotations"]] == [56, 8]
    np.testing.assert_array_equal(
        annotations_to_label_map(made["annotations"], 9, 12), np.where(small > 0, 2, big).astype(np.int32)
    )
    semantic = np.asarray(Image.open(tmp_path / "mine/all/semantic/x.png"))
    np.testing.assert_array_equal(semantic, big | small)


def test_groups_stay_together(tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair]) -> None:
    root = layouts.write(tmp_path, labelled(layouts, pairs, "8"))
    for group in ("folder", "^([A-D])/"):
        found = check(root, pairs, group=group, fractions="train=0.5,val=0.2,test=0.3", seed=3)
        plates = [{name[0] for name in ids} for ids in found.values()]
        assert sum(map(len, plates)) == 4
        assert set().union(*plates) == set("ABCD")
        assert [r.split_group for r in own.records(root, "train", group=group, fractions="train=1")] == list(
            "AABBBCCDDD"
        )
    assert own.splits(root, fractions="a=0.5,b=0.5") == ("a", "b")
    draws = {tuple(check(root, pairs, seed=seed)["val"]) for seed in range(6)}
    assert len(draws) > 3
    assert check(root, pairs, seed=1) == check(root, pairs, seed=1)
    with pytest.raises(InputError, match="finds nothing in A/cell 0"):
        own.splits(root, group="plate(.)")
    with pytest.raises(InputError, match="no regular expression"):
        own.splits(root, group="(")
    assert len(list(own.records(root, "val", fractions="train=0.97,val=0.03"))) == 1  # no split stays empty
    with pytest.raises(InputError, match="4 images or groups are too few for 5 splits"):
        own.splits(root, fractions="a=0.2,b=0.2,c=0.2,d=0.2,e=0.2", group="folder")


def test_lists_and_split_folders(
    tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair], caplog: pytest.LogCaptureFixture
) -> None:
    files = labelled(layouts, pairs, "16")
    root = layouts.write(tmp_path / "a", files)
    names = list(pairs)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "val.txt").write_text(f"{names[0]}.png\n\n{names[1]}\n")
    (lists / "train.txt").write_text("\n".join(names[2:9]))
    (lists / "extra.txt").write_text(names[9].replace("/", "_"))
    assert own.splits(root, lists=str(lists)) == ("train", "val", "extra")
    assert [r.image_id for r in own.records(root, "val", lists=str(lists))] == ["A_cell 0.v2", "A_cell 1.v2"]
    (lists / "extra.txt").unlink()
    own.splits(root, lists=str(lists))
    assert "1 of 10 images are in no list" in caplog.text
    for line, message in (("B/none", "there is no image 'B/none'"), (names[2], "is in train.txt already")):
        (lists / "val.txt").write_text(line)
        with pytest.raises(InputError, match=message):
            own.splits(root, lists=str(lists))
    with pytest.raises(InputError, match=r"holds no <split>\.txt"):
        own.splits(root, lists="nowhere")

    parted = {("val/" if "/A/" in f"/{k}" else "train/") + k: v for k, v in files.items()}
    root = layouts.write(tmp_path / "b", parted)
    assert {split: len(ids) for split, ids in check(root, pairs).items()} == {"train": 8, "val": 2}


def test_other_names(tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair]) -> None:
    """Cellpose's: all in one folder, the label image has _masks after the name."""
    files = {}
    for name, (image, labels) in pairs.items():
        files[f"{name}.png"], files[f"{name}_masks.png"] = layouts.png(image), layouts.png(labels.astype(np.uint16))
    root = layouts.write(tmp_path / "a", files)
    check(root, pairs, images=".", labels=".", label_suffix="_masks")
    files = {
        k.replace("images/", "raw/").replace("labels/", "truth/"): v for k, v in labelled(layouts, pairs, "8").items()
    }
    check(layouts.write(tmp_path / "b", files), pairs, images="raw", labels="truth")


def test_mask_of_all_objects(tmp_path: Path, layouts: ModuleType, pairs: dict[str, Pair]) -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 1:3] = mask[3:5, 3:5] = mask[1:3, 6] = 255
    files = {"images/x.png": layouts.png(np.zeros((6, 8, 3), np.uint8)), "masks/x.png": layouts.png(mask)}
    root = layouts.write(tmp_path, files)
    for truth, objects in (("ids", 1), ("components", 2)):
        (record,) = own.records(root, "all", fractions="all=1", truth=truth)
        assert record.read_label_map is not None
        assert record.read_label_map().max() == objects
    (record,) = own.records(root, "all", fractions="all=1")
    assert record.read_label_map is not None
    with pytest.raises(InputError, match=r"masks/x\.png: one id in 2 separate parts; say --option truth=components"):
        record.read_label_map()


def test_many_instances_and_gaps_in_ids(tmp_path: Path, layouts: ModuleType) -> None:
    """70,000 objects, ids in steps of 3 up to 210,000: more than 16 bit hold."""
    labels = np.zeros((400, 700), np.int32)
    labels[::2, ::2] = 3 * np.arange(1, 200 * 350 + 1).reshape(200, 350)
    files = {"images/x.tif": tiff(labels.astype(np.uint16)), "labels/x.tif": tiff(labels)}
    data = prepared(layouts.write(tmp_path / "in", files), tmp_path)
    assert len(data["annotations"]) == 70_000
    np.testing.assert_array_equal(annotations_to_label_map(data["annotations"], 400, 700), labels // 3)


def test_normalisation_and_category(tmp_path: Path, layouts: ModuleType) -> None:
    assert own.normalisation() == AUTO
    assert own.normalisation(normalisation="as_is") == AS_IS
    assert own.normalisation(normalisation="percentile", low=1.0, fractions="x=1") == Normalisation(
        "percentile", 1.0, 99.9, 512.0
    )
    deep = np.full((20, 20), 1000, np.uint16)
    deep[5:9, 5:9], deep[0, 0] = 5000, 60000
    labels = (deep == 5000).astype(np.uint8)
    files = {"images/deep.tif": tiff(deep), "labels/deep.png": layouts.png(labels)}
    files |= {"images/flat.png": layouts.png(labels * 50), "labels/flat.png": layouts.png(labels)}
    source = layouts.write(tmp_path / "in", files)
    data = prepared(source, tmp_path, category="cell", high="99", image_type="brightfield")
    assert data["info"]["normalisation"] == {"name": "auto", "low": 0.1, "high": 99.0, "minimum_range": 512.0}
    assert data["info"]["category"] == data["categories"][0]["name"] == "cell"
    assert {image["image_type"] for image in data["images"]} == {"brightfield"}
    image = np.asarray(Image.open(tmp_path / "mine/all/images/deep.png"))
    assert np.unique(image).tolist() == [0, 255]
    assert np.asarray(Image.open(tmp_path / "mine/all/images/flat.png")).max() == 50


def _replace(**files: bytes | None) -> Any:
    """Names with __ for / and - for the dot of the ending."""

    def damage(all_files: Files) -> None:
        for name, content in files.items():
            path = name.replace("__", "/")[::-1].replace("_", ".", 1)[::-1]
            if content is None:
                del all_files[path]
            else:
                all_files[path] = content

    return damage


ONE = np.zeros((5, 6), np.uint8)
ONE[1:3, 1:4] = 1
BLANK = np.zeros((5, 6, 3), np.uint8)


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _huge() -> bytes:
    """A PNG that says it has 20,000 x 20,000 pixels."""
    data = bytearray(_png(ONE))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def _coco(change: Any) -> Any:
    def damage(files: Files) -> None:
        data = coco({"a": (BLANK, ONE.astype(np.int32)), "b": (BLANK, ONE.astype(np.int32))})
        changed = change(data)
        for name in [name for name in files if name.startswith("labels/")]:
            del files[name]
        files["truth.json"] = changed if isinstance(changed, bytes) else json.dumps(data).encode()

    return damage


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (_replace(labels__b_png=_png(ONE[:4])), {}, r"b: the image has 5 x 6 pixels .* its mask 4 x 6"),
        (_replace(images__b_png=_png(BLANK)[:-30]), {}, r"images/b\.png: cannot be read as an image"),
        (_replace(labels__b_png=_png(ONE)[:50]), {}, r"labels/b\.png: cannot be read as an image"),
        (_replace(labels__b_png=None), {}, r"images/b\.png: has no truth"),
        (_replace(images__b_png=None), {}, r"labels/b\.png: truth without an image"),
        (_replace(images__b_tif=tiff(BLANK)), {}, r"two images are called b"),
        (_replace(labels__b_tif=tiff(ONE)), {}, r"the truth of b is there twice"),
        (_replace(labels__b_png=None, labels__b_tif=tiff(ONE + np.float32(0.5))), {}, "no whole numbers"),
        (_replace(labels__b_png=None, labels__b_tif=tiff(-ONE.astype(np.int16))), {}, "negative labels"),
        (
            _replace(labels__b_png=_png(np.stack([ONE * 200, ONE * 90, ONE * 0], axis=2))),
            {},
            r"labels/b\.png: shows labels in colours",
        ),
        (_replace(images__b_png=_huge()), {}, rf"images/b\.png: more than {MAX_PIXELS:,} pixels"),
        (_replace(images__b_png=None, images__b_tif=tiff(np.zeros((2, 5, 6), np.uint16))), {}, "stack of 2 planes"),
        (_replace(images__b_png=None, images__b_tif=tiff(np.full((5, 6), np.nan, np.float32))), {}, "b: .* not finite"),
        (lambda files: files.clear(), {}, "holds no files"),
        (lambda files: (files.clear(), files.update({"note.md": b"x"})), {}, "holds no images"),
        (_coco(lambda data: b"{"), {}, r"truth\.json: is not COCO JSON"),
        (_coco(lambda data: b"[]"), {}, r"truth\.json: is not COCO JSON"),
        (_coco(lambda data: data["annotations"][0].pop("category_id")), {}, r"truth\.json: is not COCO JSON"),
        (_coco(lambda data: data["images"].pop()), {}, "annotation 2 is of image 7, which is not among its images"),
        (_coco(lambda data: data["images"][0].update(id=7)), {}, "is of image 0|same id"),
        (_coco(lambda data: data["images"][0].update(file_name="c.png")), {}, r"its image c\.png is not there"),
        (_coco(lambda data: data["images"][0].update(height=6)), {}, r"a\.png: 5 x 6 pixels .* says 6 x 6"),
        (_coco(lambda data: data["annotations"][0].update(segmentation=None)), {}, "neither run lengths nor polygons"),
        (lambda files: None, {"splits": ["dev"]}, "unknown split 'dev' of own; choose one of train, val"),
        (lambda files: None, {"options": {"fractions": "train=0.5,val=0.4"}}, "sum to 1"),
        (lambda files: None, {"options": {"fractions": "half"}}, "write train=0.8,val=0.2"),
        (lambda files: None, {"options": {"fractions": "a/b=1"}}, "is not a valid name of a split"),
        (lambda files: None, {"options": {"truth": "colours"}}, "give auto, ids or components"),
        (lambda files: None, {"options": {"image_type": "xray"}}, "choose one of fluorescence"),
        (lambda files: None, {"options": {"normalisation": "none"}}, "give auto, stretch, as_is or percentile"),
        (lambda files: None, {"options": {"low": "60", "high": "40"}}, "low < high"),
        (lambda files: None, {"options": {"low": "dark"}}, "option low=dark of own: give a number"),
        (lambda files: None, {"options": {"coco": "x.json"}}, r"no x\.json there"),
        (lambda files: None, {"options": {"polygons": "1"}}, "unknown option 'polygons' of own; choose from fractions"),
        (lambda files: None, {"dataset": None}, "own needs --name"),
        (lambda files: None, {"dataset": "kumar"}, "is the name of a published data set"),
        (lambda files: None, {"dataset": "../up"}, "use letters, digits"),
    ],
)
def test_refusals(tmp_path: Path, layouts: ModuleType, damage: Any, options: dict[str, Any], message: str) -> None:
    files = {f"images/{name}.png": _png(BLANK) for name in "ab"} | {f"labels/{name}.png": _png(ONE) for name in "ab"}
    damage(files)
    root = layouts.write(tmp_path / "in", files)
    chosen = {"fractions": "train=0.5,val=0.5"} | options.get("options", {})
    selection = Selection(splits=options.get("splits"), options=chosen)
    with pytest.raises(InputError, match=message) as caught:
        prepare("own", root, tmp_path / "out", selection, dataset=options.get("dataset", "mine"))
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    for split in (tmp_path / "out").glob("*/*"):  # the other one may be made
        assert (split / "instances.json").is_file()


def test_member_pointing_outside(tmp_path: Path, layouts: ModuleType) -> None:
    for name in ("../../evil.png", "/etc/evil.png", "images\\..\\..\\evil.png", "C:/evil.png"):
        files = {"images/a.png": _png(BLANK), "labels/a.png": _png(ONE), name: _png(BLANK)}
        source = tmp_path / f"{abs(hash(name))}"
        layouts.write(source, files, "zip")
        with pytest.raises(InputError, match=r"download\.zip: its member .* points outside"):
            prepare("own", source, tmp_path / "out", dataset="mine")
    assert not (tmp_path / "out").exists()
