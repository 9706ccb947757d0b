"""data/loader.py: what a batch holds follows from the seed and its place, whoever reads it and from wherever on."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import torch
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from pffnet_d2.config import config_path, read_config
from pffnet_d2.engine import loader
from pffnet_d2.engine.loader import TrainLoader
from pffnet_d2.errors import InputError

DICTS = [{"index": i, "width": 10 + 10 * (i % 3 == 0), "height": 15} for i in range(7)]  # 0, 3 and 6 are wide
Drawn = tuple[int, float, float, float]


def drawing(entry: dict[str, Any]) -> dict[str, Any]:
    """Stands in for a mapper with augmentations."""
    return {"index": entry["index"], "draw": (np.random.rand(), random.random(), torch.rand(()).item())}  # noqa: NPY002


def batches(number: int, start: int = 0, seed: int = 3, batch_size: int = 2, **options: Any) -> list[list[Drawn]]:
    sampler = TrainingSampler(len(DICTS), seed=seed)
    train_loader = TrainLoader(DICTS, drawing, sampler=sampler, batch_size=batch_size, seed=seed, **options)
    train_loader.start = start
    return [[(x["index"], *x["draw"]) for x in batch] for batch in itertools.islice(train_loader, number)]


def test_the_order_is_the_samplers_and_every_visit_draws_anew() -> None:
    seen = [x for batch in batches(14) for x in batch]
    assert [index for index, *_ in seen] == list(itertools.islice(TrainingSampler(len(DICTS), seed=3), 28))
    for draws in zip(*(x[1:] for x in seen), strict=True):
        assert len(set(draws)) == 28
    assert seen != [x for batch in batches(14, seed=4) for x in batch]


@pytest.mark.parametrize("by_aspect", [False, True])
def test_batches_depend_neither_on_workers_nor_on_the_start(by_aspect: bool) -> None:
    every = batches(12, by_aspect=by_aspect)
    np.random.seed(99)  # noqa: NPY002
    assert batches(7, start=5, workers=2, by_aspect=by_aspect) == every[5:]
    shapes = [{DICTS[index]["width"] for index, *_ in batch} for batch in every]
    assert all(len(widths) == 1 for widths in shapes) == by_aspect


def test_ranks_share_the_order_out(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = batches(6, batch_size=4)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(batches(6))
    for first, second, whole in zip(*parts, alone, strict=True):
        assert sorted(first + second) == sorted(whole)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    calls: list[int] = []
    train_loader = TrainLoader(
        DICTS, lambda entry: calls.append(1) or {}, sampler=TrainingSampler(7, seed=0), batch_size=1, seed=0
    )
    iterator = iter(train_loader)
    assert not calls
    next(iterator)
    assert len(calls) == 1


def test_seed_and_sampler_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "get_detection_dataset_dicts", lambda names, filter_empty: DICTS)
    options = ["DATALOADER.ASPECT_RATIO_GROUPING", "False", "SOLVER.IMS_PER_BATCH", "3"]

    def first(*more: str) -> list[list[tuple[int, Any]]]:
        cfg = read_config(str(config_path("demo/PFFNet_R18_FPN.yaml")), [*options, *more])
        train_loader = loader.build_train_loader(cfg, drawing)
        return [[(x["index"], x["draw"]) for x in batch] for batch in itertools.islice(train_loader, 5)]

    assert [len(batch) for batch in first()] == [3] * 5
    assert first("SEED", "5") == first("SEED", "5") != first("SEED", "6")
    assert first("SEED", "-1") != first("SEED", "-1")
    with pytest.raises(InputError, match=r"DATALOADER\.SAMPLER_TRAIN RepeatFactorTrainingSampler: .*TrainingSampler"):
        first("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
