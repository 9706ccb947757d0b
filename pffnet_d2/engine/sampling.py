"""How often each image is drawn in training: groups that have few images can be drawn more often than their share.

A group is a type of image ("fluorescence", "histology", ...), which prepared data sets name for every image; images of
which no type is known belong to a group with the name of their data set.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.utils.data import Sampler

from pffnet_d2.data.catalog import Origin
from pffnet_d2.errors import InputError

logger = logging.getLogger(__name__)


def balanced_sampler(keys: Any, images: Sequence[Origin], seed: int) -> Sampler[int]:
    """This rank's share of an endless order of indices into ``images``, which follows from ``seed``.

    Every image is drawn as often as :func:`repeat_factors` says for BALANCE, MAX_REPEAT and WEIGHTS of ``keys``
    (DATALOADER.PFFNET); a fraction is the probability of one more draw in an epoch.

    Raises:
        InputError: as :func:`repeat_factors`.
    """
    factors = repeat_factors(images, keys.BALANCE, keys.MAX_REPEAT, keys.WEIGHTS)
    _report(images, factors)
    return RepeatFactorTrainingSampler(torch.tensor(factors, dtype=torch.float64), seed=seed)


def repeat_factors(
    images: Sequence[Origin], balance: float, max_repeat: float, weights: Sequence[str] = ()
) -> list[float]:
    """How often to draw each image for each time that the least drawn one is.

    An image of a group of n images has the factor (m / n) ** balance, at most ``max_repeat``, where m is the size of
    the largest group, times the weights of its type and of its data set. All factors are then divided by the smallest.

    Args:
        images: data set and type of each, in the order of the factors returned; an image listed twice counts twice.
        balance: 0 draws each image equally often, 1 each group, 0.5 is the square root rule of repeat factor sampling
            (Gupta et al., "LVIS", CVPR 2019).
        max_repeat: 1 or more.
        weights: "NAME=FACTOR" each, NAME a type or a data set, FACTOR above 0.

    Raises:
        InputError: a weight for something that no image is.
    """
    groups = [_group(image) for image in images]
    counts = Counter(groups)
    most = max(counts.values())
    by_name = {name: float(factor) for name, _, factor in (weight.rpartition("=") for weight in weights)}
    names = {name for image in images for name in image if name}
    for name, factor in by_name.items():
        if name not in names:
            raise InputError(
                f"DATALOADER.PFFNET.WEIGHTS {name}={factor:g}: no training image is of that type or data set; "
                f"choose from {', '.join(sorted(names))}"
            )
    factors = [
        min((most / counts[group]) ** balance, max_repeat)
        * by_name.get(image.image_type, 1.0)
        * by_name.get(image.dataset, 1.0)
        for image, group in zip(images, groups, strict=True)
    ]
    return [factor / min(factors) for factor in factors]


def _group(image: Origin) -> str:
    return image.image_type or image.dataset


def _report(images: Sequence[Origin], factors: Sequence[float]) -> None:
    shares: dict[tuple[str, str], float] = defaultdict(float)
    for image, factor in zip(images, factors, strict=True):
        shares[image.dataset, _group(image)] += factor
    counts = Counter((image.dataset, _group(image)) for image in images)
    total = sum(shares.values())
    parts = [
        f"{dataset} {group}: {counts[dataset, group]} images, {share / total:.1%} of the draws"
        for (dataset, group), share in shares.items()
    ]
    logger.info(f"Sampling: {'; '.join(parts)}")
