"""How busy other processes keep the processors while a benchmark wants them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import psutil

# The counters resolve no finer.
SHARE_DIGITS = 3


def busy_share_of_others(window_s: float) -> float | None:
    """Return the share of CPU time, 0 to 1, that other processes took over a window.

    Other means not this process and not its children. Counted over the processors this process
    may run on, so a neighbour outside the container shows too. The kernel counts in ticks of
    10 ms: over 0.2 s, one processor's share comes in steps of 0.05. None where the counters are
    not readable.
    """
    try:
        cpus_before, own_before = _cpu_seconds(), _own_cpu_seconds()
        time.sleep(window_s)
        cpus_after, own_after = _cpu_seconds(), _own_cpu_seconds()
    except (psutil.Error, OSError, AttributeError):
        return None
    total_s = cpus_after[0] - cpus_before[0]
    busy_s = cpus_after[1] - cpus_before[1]
    return others_share(total_s, busy_s, own_after - own_before)


def others_share(total_s: float, busy_s: float, own_s: float) -> float | None:
    """Return others' share of total_s processor seconds, None where no time was counted."""
    if total_s <= 0:
        return None
    return min(1.0, max(0.0, round((busy_s - own_s) / total_s, SHARE_DIGITS)))


def _cpu_seconds() -> tuple[float, float]:
    cpus = psutil.cpu_times(percpu=True)
    if sys.platform == "linux" and len(cpus) > max(allowed := os.sched_getaffinity(0)):
        cpus = [cpus[index] for index in sorted(allowed)]
    return sum(map(_total, cpus)), sum(_total(cpu) - _rest(cpu) for cpu in cpus)


def _total(cpu: Sequence[float]) -> float:
    # Linux counts a guest's time inside user time as well.
    return sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0)


def _rest(cpu: Sequence[float]) -> float:
    return float(getattr(cpu, "idle", 0.0) + getattr(cpu, "iowait", 0.0))


def _own_cpu_seconds() -> float:
    # Ended children count in their parent's children_* times, so the sum never falls.
    process = psutil.Process()
    seconds = sum(process.cpu_times()[:4])
    for child in process.children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:4])
        except psutil.Error:
            continue
    return float(seconds)
