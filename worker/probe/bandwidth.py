"""A quick estimate of memory bandwidth, for predicting a job's time before anything is measured."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from worker.probe.cpu import read_cpu
from worker.probe.memory import available_memory_bytes

CACHE_INDEX = Path("/sys/devices/system/cpu")

# Beyond every desktop's cache; macOS does not report its system-level cache, at most 96 MiB.
MIN_BUFFER_BYTES = 256 * 1024**2
# First touch of a buffer costs more than the measurement: a bound on it.
MAX_BUFFER_BYTES = 1024**3
CACHE_MULTIPLE = 1.5
# Leaves a machine that is short of memory its memory; the estimate is then partly the cache's.
MAX_SHARE_OF_AVAILABLE = 0.25
PIECE_BYTES = 4 * 1024**2
UNIT_BYTES = {"K": 1024, "M": 1024**2, "G": 1024**3}


def memory_bandwidth_gb_s(seconds: float = 0.15) -> float:
    """Estimate memory bandwidth in GB/s (1e9 bytes read or written per second).

    One thread per physical core copies its own part of a buffer larger than the last-level cache
    for the given time; setting the buffer up may take longer than that. An estimate, for a dry
    run's time only: it moves with the machine's load, a copy counts each byte once read and once
    written while many processors also read what they overwrite, and a virtual machine may report
    its host's cache. Never compare machines or builds by it.

    Raises: MemoryError where the buffer does not fit.
    """
    threads = read_cpu().physical_cores
    part_bytes = max(PIECE_BYTES, buffer_bytes() // (2 * threads))
    ready = threading.Barrier(threads)

    def copy() -> float:
        try:
            source = np.ones(part_bytes, dtype=np.uint8)
            target = np.zeros_like(source)
            np.copyto(target, source)
        except MemoryError:
            ready.abort()
            raise
        ready.wait()
        copied, start = 0, time.perf_counter()
        while True:
            for low in range(0, part_bytes, PIECE_BYTES):
                piece = slice(low, low + PIECE_BYTES)
                np.copyto(target[piece], source[piece])
                copied += target[piece].nbytes
                elapsed_s = time.perf_counter() - start
                if elapsed_s >= seconds:
                    return 2 * copied / elapsed_s

    with ThreadPoolExecutor(threads) as pool:
        rates = [pool.submit(copy) for _ in range(threads)]
        return sum(rate.result() for rate in rates) / 1e9


def buffer_bytes() -> int:
    """Return the size of the buffers together, source and target."""
    wanted = max(MIN_BUFFER_BYTES, int(CACHE_MULTIPLE * last_level_cache_bytes()))
    available = available_memory_bytes()
    ceiling = MAX_BUFFER_BYTES if available is None else int(MAX_SHARE_OF_AVAILABLE * available)
    return min(wanted, MAX_BUFFER_BYTES, ceiling)


def last_level_cache_bytes(cpus: Path = CACHE_INDEX) -> int:
    """Return the last-level cache of all processors together, 0 where Linux does not list it."""
    caches: dict[tuple[int, str], int] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level = int((index / "level").read_text())
            shared_by = (index / "shared_cpu_list").read_text().strip()
            size = (index / "size").read_text().strip()
            caches[level, shared_by] = int(size[:-1]) * UNIT_BYTES[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)
