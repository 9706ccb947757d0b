"""Write images and label maps in the layouts and encodings of Kumar, TNBC, CVPPP, CPM15, CPM17 and CoNSeP."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import binary_fill_holes, find_objects
from skimage.measure import find_contours, label

from pffnet_d2.data.synthetic import synthetic_image

Array = np.ndarray[Any, Any]
Pair = tuple[Array, Array]
Files = dict[str, bytes]


def apart(index: int, size: tuple[int, int] = (64, 80)) -> Pair:
    """A synthetic image whose objects are 4-connected, without holes and of at least 30 pixels."""
    image, labels = synthetic_image(21, index, size=size, style="histology")
    kept = np.zeros(size, np.int32)
    for i in range(1, int(labels.max()) + 1):
        parts = label(labels == i, connectivity=1)
        for part in range(1, int(parts.max()) + 1):
            mask = binary_fill_holes(parts == part) & (kept == 0)
            if mask.sum() >= 30 and label(mask, connectivity=1).max() == 1 and (binary_fill_holes(mask) == mask).all():
                kept[mask] = kept.max() + 1
    return image, kept


def spaced(index: int, size: tuple[int, int] = (64, 80)) -> Pair:
    """``apart`` with a gap of background around every object, in raster order."""
    image, labels = apart(index, size)
    gap = labels.copy()
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        near = np.roll(labels, (dy, dx), (0, 1))
        gap[(near != labels) & (near > 0)] = 0
    components = label(gap > 0, connectivity=2)
    small = np.bincount(components.ravel()) < 30
    filled = np.zeros(size, np.bool_)
    for i in np.flatnonzero(~small):
        if i:
            filled |= binary_fill_holes(components == i)
    return image, np.asarray(label(filled, connectivity=2), np.int32)


def write(root: Path, files: Mapping[str, bytes], form: str = "folder") -> Path:
    """``files`` below ``root`` as "folder" or, with what macOS adds, as one "zip". Returns ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    if form == "zip":
        with zipfile.ZipFile(root / "download.zip", "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
                archive.writestr(f"__MACOSX/{Path(path).parent}/._{Path(path).name}", b"\0\5\x16\7")
        return root
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def png(array: Array, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rgba(image: Array) -> Array:
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


def tiff_lzw(image: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "TIFF", compression="tiff_lzw")
    return buffer.getvalue()


def outlines(label_map: Array) -> list[Array]:
    """Of every object the vertices (n, 2) x and y in 1-based pixel centres, half-way between its pixels and others."""
    found = []
    for i, window in enumerate(find_objects(label_map), 1):
        contour = max(find_contours(np.pad(label_map[window] == i, 1).astype(float), 0.5), key=len)
        found.append(contour[:-1, ::-1] + (window[1].start, window[0].start))  # -1 of the margin, +1 for 1-based
    return found


def aperio_xml(polygons: Iterable[Any], negative: Iterable[int] = ()) -> bytes:
    """An annotation of Aperio ImageScope; polygons are sequences of (x, y), those numbered in ``negative`` erasers."""
    lines = ['<Annotations MicronsPerPixel="0.246800">', '<Annotation Id="1" Name="" Type="4" Visible="1">']
    lines += ['<Attributes><Attribute Name="Description" Id="0" Value=""/></Attributes>', "<Regions>"]
    lines += ['<RegionAttributeHeaders><AttributeHeader Id="9999" Name="Region"/></RegionAttributeHeaders>']
    for i, vertices in enumerate(polygons):
        lines.append(f'<Region Id="{i + 1}" Type="0" NegativeROA="{int(i in set(negative))}"><Attributes/><Vertices>')
        lines += [f'<Vertex X="{x:.6f}" Y="{y:.6f}"/>' for x, y in vertices]
        lines.append("</Vertices></Region>")
    lines += ["</Regions>", "<Plots/>", "</Annotation>", "</Annotations>"]
    return "\n".join(lines).encode()


def kumar_files(pairs: Mapping[str, Pair], *, test: bool = False) -> Files:
    """The training set in its doubled folder, or the flat test set."""
    base = "MoNuSegTestData" if test else "MoNuSeg 2018 Training Data/MoNuSeg 2018 Training Data"
    files: Files = {}
    for name, (image, label_map) in pairs.items():
        files[f"{base}/{name}.tif" if test else f"{base}/Tissue Images/{name}.tif"] = tiff_lzw(image)
        files[f"{base}/{name}.xml" if test else f"{base}/Annotations/{name}.xml"] = aperio_xml(outlines(label_map))
    return files


def tnbc_files(pairs: Mapping[str, Pair]) -> Files:
    """Images by stem (01_1), every other one with an alpha channel as the publisher's."""
    files: Files = {}
    for i, (stem, (image, label_map)) in enumerate(pairs.items()):
        base = "TNBC_NucleiSegmentation"
        files[f"{base}/Slide_{stem[:2]}/{stem}.png"] = png(rgba(image) if i % 2 else image)
        files[f"{base}/GT_{stem[:2]}/{stem}.png"] = png((label_map > 0).astype(np.uint8) * 255)
    return files


def cvppp_files(plants: Mapping[str, tuple[Array, Array | None]]) -> Files:
    """Plants by subset and name (A1/plant001); those without label map are of the test set."""
    files: Files = {}
    counts: dict[str, list[str]] = {}
    for key, (image, label_map) in plants.items():
        subset, name = key.split("/")
        if label_map is None:
            files[f"testing/{key}_rgb.png"] = png(rgba(image))
            continue
        files[f"training/{key}_rgb.png"] = png(rgba(image))
        files[f"training/{key}_label.png"] = png(label_map.astype(np.uint8), "P")
        files[f"training/{key}_fg.png"] = png((label_map > 0).astype(np.uint8), "P")
        files[f"training/{key}_centers.png"] = png(np.zeros_like(label_map, np.uint8), "P")
        counts.setdefault(subset, []).append(f"{name}_rgb.png, {label_map.max()}\n")
    return {**files, **{f"training/{s}/{s}.csv": "".join(lines).encode() for s, lines in counts.items()}}


def cvppp_hdf5(root: Path, plants: Mapping[str, tuple[Array, Array | None]], dtype: type = np.uint8) -> Path:
    """The four HDF5 files of the challenge. Returns ``root``."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    files = {
        part: h5py.File(root / f"{part}.h5", "w")
        for part in (
            "CVPPP2017_training_images",
            "CVPPP2017_training_truth",
            "CVPPP2017_testing_images",
            "submission_example",
        )
    }
    for key, (image, label_map) in plants.items():
        part = "testing" if label_map is None else "training"
        group = files[f"CVPPP2017_{part}_images"].create_group(key)
        group["rgb"] = rgba(image)
        group["rgb_filename"] = f"{key}_rgb.png"
        group["fg"] = np.zeros(image.shape[:2], np.uint8)
        if label_map is None:
            group = files["submission_example"].create_group(key)
            group["label"] = np.ones(image.shape[:2], dtype)
        else:
            group = files["CVPPP2017_training_truth"].create_group(key)
            group["label"] = label_map.astype(np.uint8)
            group["count"] = int(label_map.max())
        group["label_filename"] = f"{key}_label.png"
    for file in files.values():
        file.close()
    return root


def text_mask(label_map: Array) -> bytes:
    height, width = label_map.shape
    return "".join([f"{width} {height}\n", *(f"{i}\n" for i in label_map.ravel())]).encode()


def mat(label_map: Array, key: str = "inst_map") -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, {key: label_map.astype(np.float64), "inst_type": np.ones((int(label_map.max()), 1))})
    return buffer.getvalue()


def challenge_files(pairs: Mapping[str, Pair], base: str) -> Files:
    """The digital pathology challenges' <name>.png, <name>_mask.txt and the rendering <name>_poly.png."""
    files: Files = {}
    for name, (image, label_map) in pairs.items():
        files[f"{base}{name}.png"] = files[f"{base}{name}_poly.png"] = png(rgba(image))
        files[f"{base}{name}_mask.txt"] = text_mask(label_map)
    return files


def repack_files(pairs: Mapping[str, Pair], base: str) -> Files:
    """Images, Labels and Overlay of the HoVer-Net authors; ids have gaps, as some of theirs."""
    files: Files = {}
    for name, (image, label_map) in pairs.items():
        files[f"{base}Images/{name}.png"] = files[f"{base}Overlay/{name}.png"] = png(rgba(image))
        files[f"{base}Labels/{name}.mat"] = mat(label_map * 2)
    return files
