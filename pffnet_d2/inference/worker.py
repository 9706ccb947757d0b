"""One process that predicts its share of the images of a job: read, predict, write."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pffnet_d2.atomic_write import move, work_folder
from pffnet_d2.errors import DeviceMemoryError, InputError
from pffnet_d2.imaging.microscopy import MicroscopyImage, read_selection
from pffnet_d2.imaging.normalisation import describe, normalisation_of
from pffnet_d2.inference.export import Part, SourceImage
from pffnet_d2.inference.export.measure import Measured
from pffnet_d2.inference.job import Job, outcome_of_tiles, summarise, take
from pffnet_d2.inference.predictor import Prediction, Predictor
from pffnet_d2.inference.sources import Source, label_of
from pffnet_d2.inference.summary import Outcome, Summary
from pffnet_d2.inference.tiling import Box
from pffnet_d2.parallel import ranks

# Seconds to wait while another process writes results of the same name.
_PATIENCE = 60.0


@dataclass(frozen=True)
class _Read:
    """An image that was read."""

    opened: MicroscopyImage
    rgb: NDArray[np.uint8]  # as the network sees it, before it is resized
    predictor: Predictor  # for the size of its pixels


def _predictions(images: Mapping[int, _Read]) -> dict[int, Prediction]:
    """Predicts images. Those of one scale are predicted together."""
    groups: dict[float, list[int]] = {}
    for index, image in images.items():
        groups.setdefault(image.predictor.scale, []).append(index)
    found: dict[int, Prediction] = {}
    for group in groups.values():
        predictor = images[group[0]].predictor
        found |= zip(group, predictor.predict([images[index].rgb for index in group]), strict=True)
    return found


@dataclass
class _Batch:
    """Images that are predicted together, from reading to writing."""

    indices: Sequence[int]
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # of those that are done, or have failed
    images: dict[int, _Read] = field(default_factory=dict)  # that were read
    predictions: dict[int, Prediction] = field(default_factory=dict)


class Worker:
    """One process and its share of a job."""

    def __init__(self, job: Job) -> None:
        self.job, self.options = job, job.options
        self.predictor = job.model(options=job.options)
        self.tiled = self.options.tile is not None
        if self.tiled:
            self.predictor.check_tiles(self.options)
        self.stages = dict.fromkeys(["tiles"] if self.tiled else ["reading", "predicting", "writing"], 0.0)
        self.outcomes: list[Outcome] = []

    def run(self) -> Summary:
        """Predicts this share. Returns the outcomes of all processes in the first one, and of this share in others."""
        batches = self._share()
        start, pixels = time.perf_counter(), 0
        total = sum(len(batch) for batch in batches)
        # disable=None: only where stderr is a terminal
        hidden = None if ranks.rank() == 0 else True
        with (
            tqdm(total=total, unit="image", disable=hidden, dynamic_ncols=True) as progress,
            ThreadPoolExecutor(1) as reader,
            ThreadPoolExecutor(1) as writer,
        ):
            done = map(self._tiles_of, batches) if self.tiled else self._overlapped(batches, reader, writer)
            for outcomes in done:
                for outcome in outcomes:
                    take(self.job, self.outcomes, outcome)
                    pixels += outcome.pixels
                    progress.set_postfix_str(f"{pixels / 1e6 / (time.perf_counter() - start):.2f} Mpx/s", refresh=False)
                    progress.update()
        return self._summary(start)

    def _share(self) -> list[range]:
        indices = range(len(self.job.sources))
        step = 1 if self.tiled else self.options.batch
        batches = [indices[i : i + step] for i in range(0, len(indices), step)]
        return batches if self.tiled else batches[ranks.rank() :: ranks.count()]

    def _summary(self, start: float) -> Summary:
        gathered = ranks.gather((self.outcomes, self.stages))
        everything = [outcome for part, _ in gathered for outcome in part]
        stages = {key: sum(part[key] for _, part in gathered) for key in self.stages}
        return summarise(self.job, everything, time.perf_counter() - start, stages)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] += time.perf_counter() - started

    # --- Whole images ------------------------------------------------------------------------------------------------

    def whole(self, indices: Sequence[int]) -> list[Outcome]:
        """Reads, predicts and writes some files. Returns one outcome per file."""
        batch = self._opened(indices)
        self._predict(batch)
        return self._written(batch)

    def _overlapped(
        self, batches: Iterable[Sequence[int]], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor
    ) -> Iterator[list[Outcome]]:
        """Does what ``whole`` does for each batch, in order. While one is predicted in this thread, the next is read
        and the previous one written, each in a thread. So at most three batches are in memory."""
        remaining = iter(batches)

        def read_next() -> Future[_Batch] | None:
            indices = next(remaining, None)
            return None if indices is None else reader.submit(self._opened, indices)

        reading, writing = read_next(), None
        while reading is not None:
            batch = reading.result()
            reading = read_next()
            self._predict(batch)
            if writing is not None:
                yield writing.result()  # may end the job, so the next results are not begun before
            writing = writer.submit(self._written, batch)
        if writing is not None:
            yield writing.result()

    def _opened(self, indices: Sequence[int]) -> _Batch:
        batch = _Batch(indices)
        with self._timed("reading"):
            for index in indices:
                try:
                    batch.images[index] = self._read(self.job.sources[index])
                except InputError as error:
                    batch.outcomes[index] = Outcome(index, str(error))
        return batch

    def _predict(self, batch: _Batch) -> None:
        with self._timed("predicting"):
            try:
                batch.predictions = _predictions(batch.images)
            except DeviceMemoryError:
                batch.outcomes |= {index: Outcome(index, self._no_memory(index)) for index in batch.images}

    def _written(self, batch: _Batch) -> list[Outcome]:
        with self._timed("writing"):
            for index, prediction in batch.predictions.items():
                image = batch.images[index]
                try:
                    self._write(self.job.sources[index], self._exported(index, image), prediction)
                    batch.outcomes[index] = self._outcome(index, image, prediction)
                except InputError as error:
                    batch.outcomes[index] = Outcome(index, str(error))
        return [batch.outcomes[index] for index in batch.indices]

    def _read(self, source: Source) -> _Read:
        """Reads a file. Raises InputError naming it."""
        path, options = source.path, source.options(self.options)
        opened = read_selection(path, options.selection(), every_channel=options.measures_channels)
        try:
            predictor = self.predictor.for_pixels(options.scale_of(opened.pixel_size))
            predictor.network_size(*opened.pixels.shape[:2])
            return _Read(opened, predictor.normalise(opened.pixels), predictor)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def _no_memory(self, index: int) -> str:
        return (
            f"{self.job.sources[index].path}: {self.predictor.backend.device} has too little memory for it; "
            "use a smaller --batch, --device cpu, or cut the image"
        )

    def _exported(self, index: int, read: _Read) -> SourceImage:
        opened, source = read.opened, self.job.sources[index]
        pixels = opened.pixels
        return SourceImage(
            source.path.name,
            (pixels.shape[0], pixels.shape[1]),
            partial(_window, pixels),
            partial(_window, read.rgb),
            whole=True,
            pixel_size=self.options.scale_of(opened.pixel_size),
            resolution=opened.resolution,
            measured=self._measured(source, opened),
            class_name=self.options.class_name,
        )

    def _measured(self, source: Source, opened: MicroscopyImage) -> Measured | None:
        if self.options.measure is None:
            return None
        label = label_of(source.path, source.name, source.options(self.options))
        return Measured(self.options.measure, label, partial(_window, opened.channels), opened.channel_names)

    def _write(self, source: Source, image: SourceImage, prediction: Prediction) -> None:
        """Writes all formats of one image. If one fails, none is kept."""
        out, target = self.job.out, self.job.out / source.name
        part = Part(prediction.label_map, prediction.scores)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with work_folder(target, wait=_PATIENCE) as folder:
                results = []
                for exporter in self.options.exporters.files:
                    results.append(folder / (target.name + exporter.ending))
                    if not exporter.replaces(target.parent / results[-1].name):
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), results[-1].name)
                    with exporter.begin(results[-1], image) as add:
                        add(part)
                for path in results:
                    move(path, target.parent / path.name)
        except OSError as error:
            raise InputError(
                f"{source.path}: results cannot be written to {out} ({error.strerror or error})"
            ) from error
        except InputError as error:  # it names a file in the temporary folder, which no longer exists
            message = str(error).partition(": ")[2] if str(error).startswith(str(out)) else str(error)
            raise InputError(f"{source.path}: {message}") from error

    def _outcome(self, index: int, read: _Read, prediction: Prediction) -> Outcome:
        pixels = read.opened.pixels
        normalisation = normalisation_of(pixels, self.predictor.normalisation)
        doubts = self.predictor.doubt_of(pixels, read.rgb), read.predictor.doubt_about_size(prediction.label_map)
        return Outcome(
            index,
            capped=prediction.capped,
            doubts=tuple(filter(None, doubts)),
            objects=int(prediction.label_map.max(initial=0)),
            pixels=prediction.label_map.size,
            normalisation=f"{pixels.dtype}: {describe(normalisation)}",
            precision=self.predictor.precision,
            matched=read.predictor.matched,
        )

    # --- Images in tiles ---------------------------------------------------------------------------------------------

    def _tiles_of(self, indices: Sequence[int]) -> list[Outcome]:
        """Predicts and writes one file in tiles, together with the other processes. The first returns the outcome."""
        (index,) = indices
        source, main = self.job.sources[index], ranks.rank() == 0
        formats = [exporter.name for exporter in self.options.exporters.files]
        options = replace(source.options(self.options), formats=formats)
        with self._timed("tiles"):
            try:
                done = self.predictor.predict_large(source.path, self.job.out, name=source.name, options=options)
            except InputError as error:
                return [Outcome(index, str(error))] if main or self.job.stop else []
        return [outcome_of_tiles(index, source.path, done)] if main else []


def _window(pixels: Any, box: Box) -> NDArray[Any]:
    return pixels[box[0] : box[2], box[1] : box[3]]
