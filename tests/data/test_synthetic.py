from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from pffnet_d2.data.synthetic import DEFAULT_COUNT, MIN_AREA, SPLITS, records, synthetic_image
from pffnet_d2.errors import InputError


def test_same_seed_same_image() -> None:
    image, labels = synthetic_image(3, 5)
    again, labels_again = synthetic_image(3, 5)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (synthetic_image(3, 6)[0] != image).any()
    assert (synthetic_image(4, 5)[0] != image).any()


@pytest.mark.parametrize("style", ["fluorescence", "histology"])
@pytest.mark.parametrize("size", [(256, 256), (90, 140), (1, 1)])
def test_shapes_and_labels(style: str, size: tuple[int, int]) -> None:
    for index in range(6):
        image, labels = synthetic_image(11, index, size=size, style=style)
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        assert labels.shape == size
        assert labels.dtype == np.int32
        area = np.bincount(labels.ravel())
        assert (area[1:] >= MIN_AREA).all()  # so ids are contiguous, too


def test_variety() -> None:
    """Empty, sparse and dense fields; both styles; objects that the foreground alone does not tell apart."""
    count, touching, styles = [], 0, []
    for index in range(40):
        image, labels = synthetic_image(1, index)
        count.append(int(labels.max()))
        touching += count[-1] - label(labels > 0, np.ones((3, 3)))[1]
        styles.append(bool((image[..., 0] == image[..., 1]).all()))
    assert min(count) == 0
    assert max(count) >= 55
    assert any(0 < c < 15 for c in count)
    assert touching > 0.25 * sum(count)
    assert 8 <= sum(styles) <= 32


@pytest.mark.parametrize(("style", "sign"), [("fluorescence", 1), ("histology", -1)])
def test_nuclei_stand_out_on_the_whole_but_not_all(style: str, sign: int) -> None:
    """Nuclei lie where the label map says; a global threshold halfway misses some of them."""
    missed = total = 0
    for index in range(12):
        image, labels = synthetic_image(2, index, style=style)
        if not labels.any():
            continue
        red = image[..., 0].astype(float) * sign
        inside, outside = red[labels > 0].mean(), red[labels == 0].mean()
        assert inside > outside + 15
        # the exact outline: a ring just inside is nearer to the nuclei than a ring just outside, shifted labels would
        # fail
        shifted = np.roll(labels > 0, 6, axis=(0, 1))
        assert inside - outside > red[shifted].mean() - red[~shifted].mean()
        means = np.bincount(labels.ravel(), red.ravel()) / np.bincount(labels.ravel())
        missed += int((means[1:] < (inside + outside) / 2).sum())
        total += int(labels.max())
    assert 0.02 * total < missed < 0.5 * total


def test_records() -> None:
    found = {split: list(records(split)) for split in SPLITS}
    assert {split: len(r) for split, r in found.items()} == DEFAULT_COUNT == {"train": 80, "val": 16}
    assert len({r.image_id for split in SPLITS for r in found[split]}) == 96
    (first,) = records("val", 1)
    assert (first.read_image() == found["val"][0].read_image()).all()
    np.testing.assert_array_equal(first.read_label_map(), synthetic_image(2, 0)[1])
    assert (synthetic_image(1, 0)[0] != synthetic_image(2, 0)[0]).any()  # no training image among the validation images


def test_unknown() -> None:
    with pytest.raises(InputError, match="split 'test' of phantoms"):
        next(records("test"))
    with pytest.raises(InputError, match="style 'x'"):
        synthetic_image(0, 0, style="x")
