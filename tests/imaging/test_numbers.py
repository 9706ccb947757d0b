from __future__ import annotations

import pytest

from pffnet_d2.imaging.numbers import real_number, whole_number


def test_what_is_a_number() -> None:
    assert [whole_number(text) for text in ("0", "007", "123")] == [0, 7, 123]
    assert [real_number(text) for text in ("0", "-1.5", "+.5", "2.", "1e-3")] == [0, -1.5, 0.5, 2, 0.001]


@pytest.mark.parametrize("text", ["", " 1", "1 ", "²", "٣", "1_000", "-1", "+1", "1.0", "0x1", "1\n"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        whole_number(text)


@pytest.mark.parametrize(
    "text", ["", " 1", "²", "٣", "1_000", "nan", "inf", "-Infinity", "1e999", ".", "1e", "1,5", "1\n"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        real_number(text)
