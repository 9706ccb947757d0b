"""Decodes the tiles and strips of a TIFF with tifffile or, if imagecodecs is missing, with Pillow.

tifffile decompresses with imagecodecs, which is not installed everywhere. Pillow contains libtiff, which decodes LZW,
ZSTD, LZMA and fax compression, and libjpeg. Both get one tile or strip at a time, so that windows of large files can be
read, and depths that Pillow itself would cut to 8 bits (RGB of 16 bits).
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
JPEG = (6, 7, 33007, 34892)  # old, new and that of lossy digital negatives; all are decoded to RGB
_YCBCR = 6
_LONG = 4
_HEARING = threading.Lock()  # all threads share one stderr
# Lines of libtiff begin with one of its functions, or with the name that Pillow gives the file.
_OF_LIBTIFF = re.compile(rb"^(\w+Decode|_?TIFF\w+|tempfile\.tif)\b")


def decode_segment(
    page: Any, data: bytes, index: int, shape: tuple[int, int, int], jpeg_tables: bytes | None, name: str
) -> NDArray[Any]:
    """Decode a tile or strip to (h, w, samples) of the page's dtype; h and w may differ from those of ``shape``.

    Args:
        page: the tifffile.TiffPage whose tags apply.
        data: the encoded bytes.
        index: of the tile or strip in the page.
        shape: height, width and samples according to the tags.
        jpeg_tables: of the page that contains the segment.
        name: of the file, for messages.

    Raises:
        InputError: imagecodecs is needed and not installed.
        ValueError, OSError, ...: those of ``tiff.DAMAGE``, for damaged data.
    """
    try:
        return _by_tifffile(page, data, index, jpeg_tables)
    except (ValueError, NotImplementedError, ImportError) as error:  # tifffile's substitute for ZSTD raises ImportError
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
    """The name of a page's compression; for packed bits without one, their number."""
    if page.compression in _NONE:
        return f"{page.bitspersample}-bit"
    return str(getattr(page.compression, "name", page.compression))


def _without_imagecodecs(
    page: Any, data: bytes, shape: tuple[int, int, int], jpeg_tables: bytes | None
) -> NDArray[Any] | None:
    """See ``decode_segment``; None if only imagecodecs can decode the data."""
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
    """Decompressed bytes as samples. Samples smaller than a byte are packed; every row starts at a new byte."""
    height, width, samples = shape
    bits = page.bitspersample
    if bits in (8, 16, 32, 64):
        integers = np.dtype(f"{page.parent.byteorder}u{bits // 8}")
        values = np.frombuffer(raw, integers, height * width * samples).reshape(shape).astype(f"u{bits // 8}")
        if page.predictor == 2:
            values = np.cumsum(
                values, axis=1, dtype=values.dtype
            )  # the file stores differences of neighbours, modulo 2^n
        return values.view(page.dtype)
    row = -(-width * samples * bits // 8)
    packed = np.unpackbits(np.frombuffer(raw, np.uint8, height * row).reshape(height, row), axis=1)
    packed = packed[:, : width * samples * bits].reshape(*shape, bits)
    return (packed @ (1 << np.arange(bits - 1, -1, -1, dtype=np.uint32))).astype(page.dtype)


def _jpeg(page: Any, data: bytes, tables: bytes | None) -> NDArray[Any]:
    """Decodes a JPEG tile or strip, whose tables may be stored separately. An Adobe marker is added to tell Pillow
    whether the colours are YCbCr or RGB, which it would otherwise guess."""
    marker = b""
    if page.samplesperpixel == 3 and page.planarconfig == 1 and data[6:10] != b"JFIF":
        marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([page.photometric == _YCBCR])
    with Image.open(io.BytesIO(data[:2] + marker + (tables or b"\xff\xd8\xff\xd9")[2:-2] + data[2:])) as image:
        pixels = np.array(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _libtiff(data: bytes, width: int, height: int, compression: int, bits: int, tags: dict[int, int]) -> bytes | None:
    """Decompresses bytes with libtiff, as the only strip of a grey TIFF. None if this Pillow cannot."""
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
    except Image.DecompressionBombError:  # Pillow's limit for one strip
        return None
    except OSError as error:
        if "decoder" in str(error) and "available" in str(error):
            return None
        raise


@contextmanager
def _libtiff_heard(damage: bytes | None) -> Iterator[None]:
    """Keep libtiff's messages off stderr.

    libtiff prints damage to the stderr of the process, and Pillow cannot turn that off. Inside the block stderr is a
    file; lines that are not libtiff's (of other threads) are printed afterwards.

    Args:
        damage: text that marks damage which libtiff prints without an error.

    Raises:
        ValueError: libtiff printed ``damage``.
    """
    with _HEARING, tempfile.TemporaryFile() as file:
        try:
            stderr = os.dup(2)
        except OSError:  # stderr is closed
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
