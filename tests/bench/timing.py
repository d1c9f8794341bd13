"""Arms measured in turns, the pairs of readings that gives, and figures held against a bar."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """What was measured. At most one bar is set; without one the figure is shown, not judged."""

    name: str
    value: float
    unit: str
    detail: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Say whether the bar is held, None where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def bar(self) -> str:
        """Return the bar in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"


def interleave(arms: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure every arm once a round, in mirrored order (A B, B A, ...)."""
    readings: dict[str, list[T]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            readings[name].append(arms[name]())
    return readings


def paired_ratio(
    name: str, above: Sequence[float], below: Sequence[float], unit: str, at_least: float | None
) -> Figure:
    """Return the median of the ratios round by round; the detail has both medians and the range.

    above, below: tok/s per round, in order. unit: what `above` and `below` are in.
    """
    ratios = [left / right for left, right in zip(above, below, strict=True)]
    medians = f"{statistics.median(above):.4g} against {statistics.median(below):.4g} {unit}"
    spread = f"{len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f}"
    return Figure(name, statistics.median(ratios), "x", f"{medians}; {spread}", at_least=at_least)
