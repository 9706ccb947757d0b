"""Write images and label maps as the publishers distribute theirs, so that the readers are tested without downloads."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

Fields = dict[str, dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]]


def bbbc039_mask(label_map: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(H, W, 4) uint8: red colours the objects so that 8-neighbours differ, green and blue 0, alpha 255."""
    neighbours: dict[int, set[int]] = {int(i): set() for i in np.unique(label_map) if i}
    padded = np.pad(label_map, 1)
    height, width = label_map.shape
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shifted = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        touching = (label_map != shifted) & (label_map > 0) & (shifted > 0)
        for a, b in np.unique(np.stack([label_map[touching], shifted[touching]], 1), axis=0):
            neighbours[int(a)].add(int(b))
            neighbours[int(b)].add(int(a))
    colour = np.zeros(int(label_map.max(initial=0)) + 1, np.uint8)
    for i, others in neighbours.items():
        used = {int(colour[j]) for j in others}
        colour[i] = next(c for c in range(1, 255) if c not in used)
    mask = np.zeros((height, width, 4), np.uint8)
    mask[..., 0] = colour[label_map]
    mask[..., 3] = 255
    return mask


def png(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def tiff(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array)
    return buffer.getvalue()


def bbbc039_files(fields: Fields) -> dict[str, bytes]:
    """Path in the download to content, for fields["training" and so on][stem] = (image (H, W) uint16, label map)."""
    files: dict[str, bytes] = {"metadata/filenames_and_plates.csv": b"plate,filename\n"}
    for name, stems in fields.items():
        files[f"metadata/{name}.txt"] = "".join(f"{stem}.png\n" for stem in stems).encode()
        for stem, (image, label_map) in stems.items():
            files[f"images/{stem}.tif"] = tiff(image)
            files[f"masks/{stem}.png"] = png(bbbc039_mask(label_map))
    return files


def write_files(root: Path, files: dict[str, bytes], form: str) -> Path:
    """``files`` as "folder", "doubled" folders (images/images/), "nested" in one more folder, or "zip": one archive a
    top folder, with the __MACOSX entries that the publisher's have. Returns ``root``."""
    archives: dict[str, zipfile.ZipFile] = {}
    for path, content in files.items():
        part, _, name = path.partition("/")
        if form == "zip":
            root.mkdir(parents=True, exist_ok=True)
            if part not in archives:
                archives[part] = zipfile.ZipFile(root / f"{part}.zip", "w")
                archives[part].writestr(f"{part}/", b"")
            archives[part].writestr(path, content)
            archives[part].writestr(f"__MACOSX/{part}/._{name}", b"\0\5\x16\7")
        else:
            target = root / {"folder": path, "doubled": f"{part}/{part}/{name}", "nested": f"BBBC039/{path}"}[form]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            (target.parent / f"._{target.name}").write_bytes(b"\0\5\x16\7")
    for archive in archives.values():
        archive.close()
    return root
