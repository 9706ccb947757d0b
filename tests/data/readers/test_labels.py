from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pffnet_d2.data.readers.labels import decode_mat, decode_text, image_size, label_map
from pffnet_d2.errors import InputError


@given(
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64]).flatmap(
        lambda dtype: arrays(dtype, (4, 5), elements=st.integers(0, 120))
    )
)
def test_ids_are_compacted_in_order(array: np.ndarray) -> None:
    read = label_map(array, "x")
    assert read.dtype == np.int32
    ids = [i for i in np.unique(array) if i]
    expected = np.zeros(array.shape, int)
    for new, old in enumerate(ids, 1):
        expected[array == old] = new
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 5), np.uint8), "shape"),
        (np.full((2, 2), -1, np.int16), "negative labels"),
        (np.full((2, 2), -1.0), "negative labels"),
        (np.full((2, 2), 0.5), "no whole numbers"),
        (np.full((2, 2), np.nan), "no whole numbers"),
        (np.full((2, 2), np.inf), "no whole numbers"),
        (np.full((2, 2), "a"), "values of type"),
        (np.full((2, 2), 1j), "values of type"),
    ],
)
def test_what_is_no_label_map(array: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=rf"truth\.png: .*{words}"):
        label_map(array, "truth.png")


def test_text_is_row_major() -> None:
    assert decode_text(b"3 2\n0\n0\n7\n4\n4\n0\n", "x").tolist() == [[0, 0, 2], [1, 1, 0]]
    assert decode_text(b"3 2\r\n0\r\n0\r\n7\r\n4\r\n4\r\n0", "x").tolist() == [[0, 0, 2], [1, 1, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "first line"),
        (b"3\n2\n", "first line"),
        (b"-3 2\n0\n", "first line"),
        (b"0 2\n0\n", "0 pixels"),
        (b"999999 999999\n0\n", "more than"),
        (b"3 2\n0\n0\n7\n4\n", "4 values for the 2 x 3 pixels of its first line; it is truncated"),
        (b"3 2\n" + 7 * b"0\n", "7 values"),
        (b"3 2\n0 0 7\n4 4 0\n1 1 1\n", "9 values"),
        (b"3 2\n0\n0\nx\n4\n4\n0\n", "not one number"),
        (b"3 2\n0\n0\n1.5\n4\n4\n0\n", "no whole numbers"),
        (b"3 2\n0\n0\n-1\n4\n4\n0\n", "negative labels"),
    ],
)
def test_bad_text(text: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("0 pixels", "2 x 0 pixels")):
        decode_text(text, "image01_mask.txt")


def test_mat(layouts: ModuleType) -> None:
    labels = np.array([[0, 3], [7, 7]])
    assert decode_mat(layouts.mat(labels), "x", "inst_map").tolist() == [[0, 1], [2, 2]]
    with pytest.raises(InputError, match=r"a\.mat: holds no inst_map"):
        decode_mat(layouts.mat(labels, key="instances"), "a.mat", "inst_map")
    with pytest.raises(InputError, match=r"a\.mat: labels that are no whole numbers"):
        decode_mat(layouts.mat(labels + 0.25), "a.mat", "inst_map")
    with pytest.raises(InputError, match=r"a\.mat: negative"):
        decode_mat(layouts.mat(-labels), "a.mat", "inst_map")
    for damaged in (b"", b"text", layouts.mat(labels)[:150], b"\x89HDF\r\n\x1a\n" + bytes(600)):
        with pytest.raises(InputError, match=r"a\.mat: "):
            decode_mat(damaged, "a.mat", "inst_map")


def test_image_size(layouts: ModuleType) -> None:
    data = layouts.png(np.zeros((5, 9, 3), np.uint8))
    assert image_size(data, "x") == (5, 9)
    assert image_size(layouts.tiff_lzw(np.zeros((5, 9, 3), np.uint8)), "x") == (5, 9)
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        image_size(data[:10], "a.png")
