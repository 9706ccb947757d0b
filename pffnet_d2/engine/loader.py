"""Batches of training images. Their order and their augmentations follow from a seed and their position alone.

Detectron2's loader restarts its order when training resumes, makes it depend on the number of workers, and draws
augmentations from the state that a worker happens to be in. Here every image has a position in one endless order of all
ranks, and its augmentations are seeded by (seed, position), so that training can resume at any iteration.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import DataLoader, Dataset, Sampler

from pffnet_d2.data.catalog import origins
from pffnet_d2.data.copy_paste import Partners
from pffnet_d2.engine.sampling import balanced_sampler
from pffnet_d2.errors import InputError

logger = logging.getLogger(__name__)

# The use of a seed, which is the second number of a key.
IMAGE, STEP = 0, 1

Place = tuple[int, int]  # position in the order, index into the data set


def seed_by(*key: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices) by a hash of numbers from 0."""
    seed_all_rng(int(np.random.SeedSequence(key).generate_state(1)[0]))


class TrainLoader:
    """Endless iterable over the batches of this rank: lists of what ``mapper`` returns for the dicts of a data set.

    Attributes:
        start: how many batches an iterator skips: the iterations done already. Nothing is read before the first batch
            is requested.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[..., dict[str, Any]],
        *,
        sampler: Sampler[int],
        batch_size: int,
        seed: int,
        by_aspect: bool = False,
        workers: int = 0,
        partners: Partners | None = None,
    ) -> None:
        """
        Args:
            dicts: Detectron2's dicts of all images; ``by_aspect`` needs their ``width`` and ``height``.
            mapper: such as ``PFFNetDatasetMapper``; it must draw random numbers from the global generators only.
            sampler: this rank's share of an endless order, of which the ranks take turns, as in Detectron2's samplers.
            batch_size: images of this rank per iteration.
            seed: of the augmentations.
            by_aspect: batch wide images apart from the others, which needs less padding.
            workers: processes that read; 0 reads in this process. Batches do not depend on it.
            partners: draws the image whose dict is the second argument of ``mapper``; None: it gets one argument.
        """
        self.start = 0
        self.samples = _Samples(dicts, mapper, seed, partners)
        self.sampler = sampler
        self.batch_size = batch_size
        self.wide = [by_aspect and entry["width"] > entry["height"] for entry in dicts]
        self.workers = workers

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches = itertools.islice(self._batches(), self.start, None)
        yield from DataLoader(self.samples, batch_sampler=batches, num_workers=self.workers, collate_fn=list)

    def _batches(self) -> Iterator[list[Place]]:
        rank, ranks = comm.get_rank(), comm.get_world_size()
        waiting: dict[bool, list[Place]] = {False: [], True: []}
        for k, index in enumerate(self.sampler):
            batch = waiting[self.wide[index]]
            batch.append((rank + k * ranks, index))
            if len(batch) == self.batch_size:
                yield batch
                waiting[self.wide[index]] = []


class _Samples(Dataset[dict[str, Any]]):
    """Maps a place to an image. Its random numbers do not depend on what was drawn before."""

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[..., dict[str, Any]],
        seed: int,
        partners: Partners | None,
    ) -> None:
        self.dicts = DatasetFromList(list(dicts), copy=False)  # serialised: workers share its memory
        self.mapper = mapper
        self.seed = seed
        self.partners = partners

    def __getitem__(self, place: Place) -> dict[str, Any]:
        position, index = place
        seed_by(self.seed, IMAGE, position)
        if self.partners is None:
            return self.mapper(self.dicts[index])
        return self.mapper(self.dicts[index], self.dicts[self.partners(index)])


def chosen_seed(cfg: Any) -> int:
    """SEED or, where that is negative, a random number that all ranks share."""
    return int(cfg.SEED) if cfg.SEED >= 0 else int(comm.shared_random_seed())


def build_train_loader(cfg: Any, mapper: Callable[..., dict[str, Any]]) -> TrainLoader:
    """From DATASETS.TRAIN, DATALOADER, SOLVER.IMS_PER_BATCH (of all ranks together) and SEED. Where
    INPUT.PFFNET.AUGMENTATIONS lists "copy_paste", ``mapper`` is given the dicts of two images of the same data set and
    type.

    Raises:
        InputError: a sampler that does not serve, or a weight for images that there are none of.
    """
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    seed = chosen_seed(cfg)
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}: with one class of objects there is nothing to "
            "balance; set it to TrainingSampler (DATALOADER.PFFNET.BALANCE balances types of images)"
        )
    keys = cfg.DATALOADER.PFFNET
    balanced = keys.BALANCE or keys.WEIGHTS
    copy_paste = "copy_paste" in cfg.INPUT.PFFNET.AUGMENTATIONS
    known = origins(cfg.DATASETS.TRAIN) if balanced or copy_paste else {}
    images = [known[entry["file_name"]] for entry in dicts] if known else []
    return TrainLoader(
        dicts,
        mapper,
        sampler=balanced_sampler(keys, images, seed) if balanced else TrainingSampler(len(dicts), seed=seed),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        seed=seed,
        by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        workers=cfg.DATALOADER.NUM_WORKERS,
        partners=Partners(images) if copy_paste else None,
    )
