from __future__ import annotations

import time
from pathlib import Path

import pytest

from worker.probe import bandwidth
from worker.probe.bandwidth import (
    MAX_BUFFER_BYTES,
    MIN_BUFFER_BYTES,
    buffer_bytes,
    last_level_cache_bytes,
    memory_bandwidth_gb_s,
)

MIB = 1024**2


def write_caches(root: Path, shared: list[tuple[int, int, str, str]]) -> None:
    """Write (cpu, level, size, shared_cpu_list) rows as sysfs does."""
    for cpu, level, size, cpus in shared:
        folder = root / f"cpu{cpu}" / "cache" / f"index{level}"
        folder.mkdir(parents=True)
        for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", cpus)):
            (folder / name).write_text(f"{text}\n")


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "buffer_bytes", lambda: 64 * MIB)
    start = time.monotonic()

    gb_s = memory_bandwidth_gb_s(0.05)

    assert 0.2 < gb_s < 20_000
    assert time.monotonic() - start < 10


def test_a_machine_short_of_memory_gets_a_small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "available_memory_bytes", lambda: 100 * MIB)

    assert buffer_bytes() == 25 * MIB


@pytest.mark.parametrize(
    ("cache_mib", "expected"),
    [(0, MIN_BUFFER_BYTES), (480, 720 * MIB), (4608, MAX_BUFFER_BYTES)],
)
def test_the_buffer_exceeds_the_cache(
    monkeypatch: pytest.MonkeyPatch, cache_mib: int, expected: int
) -> None:
    monkeypatch.setattr(bandwidth, "available_memory_bytes", lambda: None)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: cache_mib * MIB)

    assert buffer_bytes() == expected


def test_last_level_caches_are_added_up_once_each(tmp_path: Path) -> None:
    write_caches(
        tmp_path,
        [
            (0, 2, "1024K", "0"),
            (1, 2, "1024K", "1"),
            (0, 3, "32768K", "0-1"),
            (1, 3, "32768K", "0-1"),
            (2, 3, "32M", "2-3"),
        ],
    )

    assert last_level_cache_bytes(tmp_path) == 64 * MIB


def test_a_machine_that_lists_no_cache(tmp_path: Path) -> None:
    write_caches(tmp_path, [(0, 3, "large", "0")])

    assert last_level_cache_bytes(tmp_path) == 0


def test_a_buffer_that_does_not_fit_is_an_error_not_a_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bandwidth, "buffer_bytes", lambda: 2**60)

    with pytest.raises((MemoryError, RuntimeError)):
        memory_bandwidth_gb_s(0.01)
