"""Axes that several K curves share, so that their heights can be compared by eye."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from farm.science.paired import Interval
from farm.services.recommend import CurvePoint

MAX_TICKS = 6
MARGIN = 0.06
# An interval over three prompts can be a hundred times wider than the curve is high; past this
# multiple of the largest estimate it runs out of the picture, and its numbers are in the table.
MAX_HEADROOM = 1.6
# Series at one K stand this far apart (a factor), so that their error bars do not cover each other.
SERIES_SHIFT = 1.06
K_MARGIN = 1.25


@dataclass(frozen=True)
class Axes:
    """What the axes span: K (shown on a log scale) and speedup."""

    k_low: float
    k_high: float
    speedup_low: float
    speedup_high: float

    @property
    def speedup_ticks(self) -> list[float]:
        """Return round values within the speedup axis, 1 always among them."""
        span = self.speedup_high - self.speedup_low
        steps = [base * 10.0**power for power in range(-2, 4) for base in (1, 2, 5)]
        step = next(step for step in steps if span / step <= MAX_TICKS)
        first = math.ceil((self.speedup_low - 1) / step)
        last = math.floor((self.speedup_high - 1) / step)
        return [round(1 + index * step, 6) for index in range(first, last + 1)]

    def clipped(self, interval: Interval) -> tuple[float, float]:
        """Return the bounds as far as the axis shows them."""
        return max(interval.low, self.speedup_low), min(interval.high, self.speedup_high)


def shared_axes(points: Sequence[CurvePoint]) -> Axes:
    """Return axes that hold the points' intervals (very wide ones in part) and the line at 1."""
    ks = [point.speculation.n_max for point in points] or [1]
    speedups = [point.speedup for point in points if point.speedup is not None]
    low = min([interval.low for interval in speedups] + [1.0])
    top = max([interval.estimate for interval in speedups] + [1.0])
    high = min(max([interval.high for interval in speedups] + [1.0]), top * MAX_HEADROOM)
    margin = max(MARGIN * (high - low), 0.05)
    return Axes(min(ks) / K_MARGIN, max(ks) * K_MARGIN, max(low - margin, 0.0), high + margin)


def series_shift(index: int, count: int) -> float:
    """Return the factor by which a series moves along the K axis."""
    return float(SERIES_SHIFT ** (index - (count - 1) / 2))
