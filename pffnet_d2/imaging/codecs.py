"""The tiles and strips of a TIFF, decoded: by tifffile, and without imagecodecs by Pillow what Pillow can decode.

tifffile decompresses with imagecodecs, which not every machine has. Pillow brings libtiff, which undoes LZW, ZSTD, LZMA
and fax compression, and libjpeg; both get one tile or strip at a time, so that windows of large files and depths that
Pillow itself would cut to 8 bit (RGB of 16 bit) are read all the same.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pffnet_d2.errors import InputError

_NONE, _FAX, _LZW, _JPEG, _DEFLATE, _PACKBITS = (1,), (2, 3, 4), (5,), 7, (8, 32946), (32773,)
_LIBTIFF = (*_LZW, 34925, 50000)  # LZMA, ZSTD
JPEG = (6, 7, 33007, 34892)  # old and new, of lossy digital negatives: all are decoded to RGB
_YCBCR = 6
_LONG = 4
_HEARING = threading.Lock()  # there is one stderr
# As libtiff names its functions and the file that Pillow gives it.
_OF_LIBTIFF = re.compile(rb"^(\w+Decode|_?TIFF\w+|tempfile\.tif)\b")


def decode_segment(
    page: Any, data: bytes, index: int, shape: tuple[int, int, int], jpeg_tables: bytes | None, name: str
) -> NDArray[Any]:
    """A tile or strip as (h, w, samples) of the page's dtype; h and w may exceed or fall short of ``shape``'s.

    Args:
        page: the tifffile.TiffPage that says how pages like it are coded.
        data: the coded bytes.
        index: of the tile or strip in its page.
        shape: height, width and samples that the tags promise.
        jpeg_tables: of the page that holds the segment.
        name: of the file, for messages.

    Raises:
        InputError: imagecodecs is needed and not there.
        ValueError, OSError, ...: as ``tiff.DAMAGE`` lists, for damaged data.
    """
    try:
        return _by_tifffile(page, data, index, jpeg_tables)
    except (ValueError, NotImplementedError, ImportError) as error:  # ImportError: tifffile's own stand-in for ZSTD
        if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
            raise
    decoded = _without_imagecodecs(page, data, shape, jpeg_tables)
    if decoded is None:
        raise InputError(
            f"{name}: needs imagecodecs for its {compression_name(page)} compression; type: pip install imagecodecs"
        )
    return decoded


def _by_tifffile(page: Any, data: bytes, index: int, jpeg_tables: bytes | None) -> NDArray[Any]:
    tables = {"jpegtables": jpeg_tables, "jpegheader": page.jpegheader} if page.compression in JPEG else {}
    decoded, _, _ = page.decode(data, index, **tables)
    return np.asarray(decoded)[0]


def compression_name(page: Any) -> str:
    """What the compression of a page is called; of packed bits, their number."""
    if page.compression in _NONE:
        return f"{page.bitspersample}-bit"
    return str(getattr(page.compression, "name", page.compression))


def _without_imagecodecs(
    page: Any, data: bytes, shape: tuple[int, int, int], jpeg_tables: bytes | None
) -> NDArray[Any] | None:
    """None where that cannot be done."""
    if page.compression == _JPEG:
        return _jpeg(page, data, jpeg_tables) if page.bitspersample == 8 else None
    if page.fillorder != 1 or page.predictor not in (1, 2):
        return None
    row_bits = shape[1] * shape[2] * page.bitspersample
    if page.compression in _FAX and page.bitspersample == 1:
        fax = {tag: page.tags[tag].value for tag in (292, 293) if tag in page.tags}  # T4Options, T6Options
        raw = _libtiff(data, shape[1], shape[0], page.compression, 1, fax)
    elif page.compression in _LIBTIFF:
        raw = _libtiff(data, -(-row_bits // 8), shape[0], page.compression, 8, {})
    elif page.compression in _NONE:
        raw = data
    elif page.compression in _DEFLATE:
        raw = zlib.decompress(data)
    elif page.compression in _PACKBITS:
        raw = tifffile.TIFF.DECOMPRESSORS[page.compression](data)
    else:
        return None
    return None if raw is None else _samples(page, raw, shape)


def _samples(page: Any, raw: bytes, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Decompressed bytes as samples; those of less than a byte are packed, and every row begins with a new byte."""
    height, width, samples = shape
    bits = page.bitspersample
    if bits in (8, 16, 32, 64):
        integers = np.dtype(f"{page.parent.byteorder}u{bits // 8}")
        values = np.frombuffer(raw, integers, height * width * samples).reshape(shape).astype(f"u{bits // 8}")
        if page.predictor == 2:
            values = np.cumsum(values, axis=1, dtype=values.dtype)  # differences of neighbours; wraps around
        return values.view(page.dtype)
    row = -(-width * samples * bits // 8)
    packed = np.unpackbits(np.frombuffer(raw, np.uint8, height * row).reshape(height, row), axis=1)
    packed = packed[:, : width * samples * bits].reshape(*shape, bits)
    return (packed @ (1 << np.arange(bits - 1, -1, -1, dtype=np.uint32))).astype(page.dtype)


def _jpeg(page: Any, data: bytes, tables: bytes | None) -> NDArray[Any]:
    """A JPEG tile or strip whose tables may lie apart. Adobe's marker says whether its colours are YCbCr or RGB, which
    Pillow would have to guess."""
    marker = b""
    if page.samplesperpixel == 3 and page.planarconfig == 1 and data[6:10] != b"JFIF":
        marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([page.photometric == _YCBCR])
    with Image.open(io.BytesIO(data[:2] + marker + (tables or b"\xff\xd8\xff\xd9")[2:-2] + data[2:])) as image:
        pixels = np.array(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _libtiff(data: bytes, width: int, height: int, compression: int, bits: int, tags: dict[int, int]) -> bytes | None:
    """Compressed bytes as libtiff undoes them: as the one strip of a grey TIFF. None where this Pillow cannot."""
    entries = {
        256: width,
        257: height,
        258: bits,
        259: compression,
        262: 1,
        273: 0,
        277: 1,
        278: height,
        279: len(data),
    }
    entries |= tags
    start = 8 + 2 + 12 * len(entries) + 4
    entries[273] = start
    directory = b"".join(struct.pack("<HHII", tag, _LONG, 1, value) for tag, value in sorted(entries.items()))
    header = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + directory + bytes(4)
    try:
        with _libtiff_heard(damage=b"Fax" if bits == 1 else None), Image.open(io.BytesIO(header + data)) as image:
            return np.packbits(np.array(image), axis=1).tobytes() if bits == 1 else np.array(image).tobytes()
    except Image.DecompressionBombError:  # Pillow's bound of one strip
        return None
    except OSError as error:
        if "decoder" in str(error) and "available" in str(error):
            return None
        raise


@contextmanager
def _libtiff_heard(damage: bytes | None) -> Iterator[None]:
    """libtiff prints what is wrong with the data on the process's stderr, and Pillow cannot turn that off. Within, that
    goes to a file; where decoding raises, the error says it better, and other lines (of other threads) are passed on.

    Args:
        damage: text that tells of damage which libtiff only prints.

    Raises:
        ValueError: libtiff printed ``damage``.
    """
    with _HEARING, tempfile.TemporaryFile() as file:
        try:
            stderr = os.dup(2)
        except OSError:  # closed: nobody is told anything
            yield
            return
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            others = b"".join(line for line in lines if not _OF_LIBTIFF.search(line))
            if others.strip():
                os.write(2, others)
        if damage is not None and any(damage in line for line in lines):
            raise ValueError("libtiff found damage")
