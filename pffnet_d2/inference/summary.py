"""The outcomes of predicting many files, summarised for the user and for the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pffnet_d2.inference.sources import Source


@dataclass(frozen=True)
class Outcome:
    """The outcome of one file."""

    index: int  # among the sources
    error: str = ""  # one line; empty if all its results were written
    capped: tuple[str, ...] = ()  # caps that were reached, so that objects may be missing
    doubts: tuple[str, ...] = ()  # lines that say why the result may be unreliable, such as a model for other images
    objects: int = 0
    pixels: int = 0
    normalisation: str = ""
    precision: str = ""  # in which the network computed
    matched: str = ""  # how it was resized to the pixel size of training; empty if it was not


@dataclass(frozen=True)
class Summary:
    """Outcomes in the order of the sources, and the time taken."""

    outcomes: list[Outcome]
    seconds: float  # wall clock, without loading the model
    stages: dict[str, float]  # seconds of all processes: reading, predicting, writing

    @property
    def failed(self) -> int:
        return sum(bool(outcome.error) for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0: every file was predicted; 1: some files failed; 2: all files failed."""
        return 0 if not self.failed else 2 if self.failed == len(self.outcomes) else 1

    def lines(self) -> list[str]:
        """Lines for the user: the normalisations, the pixel sizes that were matched, the numbers of images and objects,
        and the speed."""
        done = [outcome for outcome in self.outcomes if not outcome.error]
        speed = len(done) / self.seconds, sum(outcome.pixels for outcome in done) / 1e6 / self.seconds
        total = sum(self.stages.values()) or 1.0
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.stages.items())
        precisions = "".join(f", {name}" for name in sorted({o.precision for o in done}) if name)
        said = [f"normalisation: {text} ({n} images)" for text, n in Counter(o.normalisation for o in done).items()]
        matched = Counter(o.matched for o in done if o.matched)
        said += [f"pixel size: {text} ({n} images)" for text, n in matched.items()]
        return [
            *said,
            f"{len(done)} of {len(self.outcomes)} images predicted, {sum(o.objects for o in done)} objects, "
            f"{self.seconds:.1f} s: {speed[0]:.2f} images/s, {speed[1]:.2f} Mpx/s ({shares}){precisions}"
            + (f"; {self.failed} failed" if self.failed else ""),
        ]


def doubts(sources: Sequence[Source], outcomes: Sequence[Outcome]) -> list[str]:
    """One line per reason why results may be unreliable: how many images it affects, the first one and what to do."""
    lines = []
    for doubt, count in Counter(doubt for outcome in outcomes for doubt in outcome.doubts).items():
        first = next(sources[outcome.index].path for outcome in outcomes if doubt in outcome.doubts)
        some = f"{count} of {len(outcomes)} images, the first {first}" if count > 1 else str(first)
        lines.append(f"{some}: {doubt}")
    return lines
